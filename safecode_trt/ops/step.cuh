// The records of one step, laid out as in fused.py, and a logit of it before and after the contrast.

#pragma once

#include "block.cuh"

constexpr int TRACED = 8;

enum Status { CHOSEN, BAD_LOGITS, BAD_STEERED, NEEDS_HOST };

struct Candidate {
    int token;
    float real, reference, contrasted, final;
    int moved;
};

struct Outcome {
    int status, token, candidates, unused;
    Candidate traced[TRACED];
    Candidate leaders[2];  // on the real picture, and after the contrast
};

struct Step {
    const void *logits;  // (rows, vocabulary), float or half
    const u32 *refusal;  // one bit for every token
    u32 *maxima;         // (rows, tiles)
    u64 *leading;        // (tiles, LEADING)
    double *sums;        // (tiles)
    u32 *ticket;         // 0 between steps
    Outcome *outcome;
    double uniform, top_p;
    float negated_alpha, real_weight, log_beta, amount, temperature, log_min_p;
    int rows, vocabulary, half, contrasts, exempts, shift_top_k, top_k, scales;
};

static_assert(sizeof(Step) == 128 && sizeof(Outcome) == 256, "ops/fused.py has other sizes");

__device__ inline float logit(const Step &s, int row, int id) {
    const long long at = static_cast<long long>(row) * s.vocabulary + id;
    if (!s.half) return static_cast<const float *>(s.logits)[at];
    const u32 bits = static_cast<const unsigned short *>(s.logits)[at], magnitude = (bits & 0x7fffu) << 13;
    // A half's exponent is 112 too small for a float, which a product repairs for subnormal numbers too.
    const float x = magnitude < 0x0f800000u ? __uint_as_float(magnitude) * 0x1p112f
                                            : __uint_as_float(magnitude | 0x7f800000u);
    return bits & 0x8000u ? -x : x;
}

__device__ inline bool refuses(const Step &s, int id) { return s.refusal[id >> 5] >> (id & 31) & 1u; }

// A logit after stage 1; a token below `lowest` on the real picture is implausible.
__device__ inline float contrasted(const Step &s, float lowest, int id) {
    if (id >= s.vocabulary) return minus_infinity();
    const float real = logit(s, 0, id);
    if (real == minus_infinity()) return real;
    if (real < lowest && !(s.exempts && refuses(s, id))) return minus_infinity();
    if (!s.contrasts) return real;
    return __fadd_rn(__fmul_rn(logit(s, 1, id), s.negated_alpha), __fmul_rn(real, s.real_weight));
}
