// A seeded draw on the device: the filters and the draw of sample.py, after the tiles have been merged.

#pragma once

#include "step.cuh"

// The merged step in the shared memory of the last block: what the choice of a token needs.
struct Merged {
    u64 sorted[LEADING];  // leading tokens after the shift
    int moved[LEADING];   // the tokens that stage 2 has moved, -1 for none
    int count;
    bool complete;        // no other token is left
    u64 bound;            // if others are left: their keys are below this one
    float lowest, top;
    int tiles;
};

__device__ inline float scaled(const Step &s, float z, float top) {
    return __fdiv_rn(__fsub_rn(z, top), s.temperature);
}

// The weights of this thread's tokens of a tile, after the shift.
__device__ inline double tile_weights(const Step &s, const Merged &m, int tile, float *weights) {
    double sum = 0.0;
    for (int i = 0; i < EACH; ++i) {
        const int id = tile * TILE + threadIdx.x * EACH + i;
        float z = contrasted(s, m.lowest, id);
#pragma unroll 1
        for (int j = 0; j < s.shift_top_k; ++j)
            if (m.moved[j] == id) z = __fadd_rn(z, s.amount);
        weights[i] = expf(scaled(s, z, m.top));
        sum += weights[i];
    }
    return sum;
}

// The weight of tile number threadIdx.x. The tiles summed their logits before the shift, each against its own
// largest; those with a moved token are summed again.
__device__ inline double tile_sum(const Step &s, const Merged &m) {
    const int t = threadIdx.x;
    double own = 0.0;
    if (t < m.tiles) {
        const u64 head = *const_cast<volatile const u64 *>(s.leading + t * LEADING);
        const double sum = *const_cast<volatile const double *>(s.sums + t);
        if (head) own = sum * expf(scaled(s, value(order_of(head)), m.top));
    }
    for (int j = 0; j < s.shift_top_k; ++j) {
        const int tile = m.moved[j] / TILE;
        bool again = m.moved[j] >= 0;
#pragma unroll 1
        for (int i = 0; i < j; ++i) again = again && !(m.moved[i] >= 0 && m.moved[i] / TILE == tile);
        if (!again) continue;
        float weights[EACH];
        const double sum = reduce(tile_weights(s, m, tile, weights), Sum());
        if (t == tile) own = sum;
    }
    return own;
}

// A draw from the whole row, in the order of the ids.
__device__ inline int draw_row(const Step &s, const Merged &m) {
    __shared__ int token;
    const double sum = tile_sum(s, m);
    double target = s.uniform * reduce(sum, Sum());
    const int tile = passing(sum, target);
    float weights[EACH];
    const double own = tile_weights(s, m, tile, weights);
    const int thread = passing(own, target);
    if (static_cast<int>(threadIdx.x) == thread) {
        double running = 0.0;
        for (int i = 0; i < EACH; ++i) {
            if (!(weights[i] > 0.0f)) continue;
            token = tile * TILE + thread * EACH + i;
            running += weights[i];
            if (running > target) break;
        }
    }
    __syncthreads();
    return token;
}

// A draw from the tokens that top-k, top-p and min-p leave; -1 if they may be more than the leading ones.
__device__ inline int draw_leading(const Step &s, const Merged &m) {
    __shared__ u64 sorted[LEADING];
    __shared__ float weights[LEADING];
    __shared__ int tokens[LEADING];
    const int t = threadIdx.x;
    const float top = s.scales ? 0.0f : m.top;
    // Rounding in the division may make tokens equal that were not, so they are put in order again.
    u64 own = 0;
    if (t < m.count) {
        const float z = value(order_of(m.sorted[t]));
        own = key(s.scales ? scaled(s, z, m.top) : z, token_of(m.sorted[t]));
    }
    // Tokens outside the list may be as likely as its bound; what is left of the list is then above all of them.
    const float bound = value(order_of(m.bound));
    const u32 limit = m.complete ? 0 : ordered(s.scales ? scaled(s, bound, m.top) : bound);
    int place;
    int kept = sort_leading(order_of(own) > limit ? own : 0, sorted, place);
    const u64 mine = t < kept ? sorted[t] : 0;
    bool closed = limit == 0;
    if (s.top_k > 0 && s.top_k <= kept) {
        kept = reduce(order_of(mine) >= order_of(sorted[s.top_k - 1]) ? 1 : 0, Sum());
        closed = true;
    } else if (s.top_k > 0 && !closed) {
        return -1;
    }
    const float z = value(order_of(mine));
    const float weight = t < kept ? expf(__fsub_rn(z, top)) : 0.0f;
    if (s.top_p < 1.0) {
        const double part = closed ? static_cast<double>(weight) : tile_sum(s, m);
        const double wanted = s.top_p * reduce(part, Sum());
        const double mass = running_sum(weight);
        const int last = reduce(t < kept && mass >= wanted ? t : LEADING, Smaller());
        if (last < kept) {
            kept = last + 1;
            closed = true;
        }
    }
    const float least = __fadd_rn(top, s.log_min_p);
    kept = reduce(t < kept && z >= least ? 1 : 0, Sum());
    if (!closed && value(limit) >= least) return -1;
    if (t < kept) {
        place = 0;
#pragma unroll 1
        for (int j = 0; j < kept; ++j) place += token_of(sorted[j]) < token_of(mine);
        weights[place] = weight;
        tokens[place] = token_of(mine);
    }
    __syncthreads();
    const double in_order = t < kept ? weights[t] : 0.0f;
    double target = s.uniform * reduce(in_order, Sum());
    return tokens[passing(in_order, target)];
}
