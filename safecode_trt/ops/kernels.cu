// One step of steered decoding in two launches: contrast, plausibility mask, top-k, refusal shift, choice of a token.
//
// measure_rows looks for the largest logit of every row (and for NaN); choose_token does the rest: every block finds
// the leading tokens of its tile, and the block that finishes last merges them and chooses. numpy's definition is
// ops/reference.py and ops/sample.py; the records are those of ops/fused.py. Compiled by NVRTC without any header.
//
// Nothing depends on the order in which blocks or threads run: keys of tokens are unique, so ranks are, and sums of
// weights are trees over the ids. Products and sums of logits are rounded one by one, as numpy does it (no FMA).

#include "sampling.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) measure_rows(const Step s) {
    u32 largest = 0;
    for (int i = 0; i < EACH; ++i) {
        const int id = blockIdx.x * TILE + threadIdx.x * EACH + i;
        if (id < s.vocabulary) largest = Larger()(largest, ordered(logit(s, blockIdx.y, id)));
    }
    largest = reduce(largest, Larger());
    if (threadIdx.x == 0) s.maxima[blockIdx.y * gridDim.x + blockIdx.x] = largest;
}

// The largest logit of a row in the order of integers.
__device__ inline u32 row_maximum(const Step &s, int row, int tiles) {
    const int t = threadIdx.x;
    return reduce(t < tiles ? s.maxima[row * tiles + t] : 0, Larger());
}

// The part of one block: the leading tokens of its tile and the sum of its weights.
__device__ inline void survey_tile(const Step &s, float lowest) {
    __shared__ u64 leading[LEADING];
    const int t = threadIdx.x;
    float z[EACH];
    u64 keys[EACH];
    for (int i = 0; i < EACH; ++i) {
        const int id = blockIdx.x * TILE + t * EACH + i;
        z[i] = contrasted(s, lowest, id);
        keys[i] = key(z[i], id);
    }
    order_pair(keys[0], keys[1]);
    order_pair(keys[2], keys[3]);
    order_pair(keys[0], keys[2]);
    order_pair(keys[1], keys[3]);
    order_pair(keys[1], keys[2]);
    const int count = lead<EACH>([&](int i) { return keys[i]; }, leading);
    if (t < LEADING) s.leading[blockIdx.x * LEADING + t] = t < count ? leading[t] : 0;
    if (s.temperature == 0.0f) return;
    const float top = count ? value(order_of(leading[0])) : 0.0f;
    double sum = 0.0;
    for (int i = 0; i < EACH; ++i) sum += expf(scaled(s, z[i], top));
    sum = reduce(sum, Sum());
    if (t == 0) s.sums[blockIdx.x] = sum;
}

__device__ inline Candidate traced(const Step &s, int id, float contrasted, float final, bool moves) {
    return {id, logit(s, 0, id), s.rows > 1 ? logit(s, 1, id) : 0.0f, contrasted, final, moves};
}

// Merges the tiles, moves the refusal tokens and writes the trace.
__device__ inline void merge(const Step &s, Merged &m) {
    __shared__ u64 leading[LEADING];
    const int t = threadIdx.x;
    const volatile u64 *list = s.leading + t * LEADING;
    const int tiles = m.tiles;
    const int count = lead<LEADING>([&](int i) { return t < tiles ? list[i] : 0; }, leading);
    const u64 bound = count < LEADING ? 0 : leading[LEADING - 1];
    const u64 own = t < count ? leading[t] : 0;
    const bool moves = own && t < s.shift_top_k && refuses(s, token_of(own));
    const float z = value(order_of(own)), final = moves ? __fadd_rn(z, s.amount) : z;
    if (t < LEADING) m.moved[t] = moves ? token_of(own) : -1;
    // A token that has moved below the bound is not among the leading ones any more.
    const u64 moved_to = own ? key(final, token_of(own)) : 0;
    int place;
    const int left = sort_leading(moved_to >= bound ? moved_to : 0, m.sorted, place);
    if (t == 0) {
        m.count = left;
        m.complete = count < LEADING;
        m.bound = bound;
        m.top = left ? value(order_of(m.sorted[0])) : 0.0f;
        s.outcome->candidates = left < TRACED ? left : TRACED;
    }
    if (place < TRACED) {
        const int id = token_of(own);
        s.outcome->traced[place] = traced(s, id, z, final, moves);
    }
    if (t == 0 && count) s.outcome->leaders[1] = traced(s, token_of(own), z, final, moves);
    __syncthreads();
}

// Writes down the token that leads on the real picture, of equal ones the lowest, wherever the stages have left it.
__device__ inline void note_leader(const Step &s, const Merged &m) {
    const int t = threadIdx.x, tiles = m.tiles;
    const u32 largest = row_maximum(s, 0, tiles);
    const int tile = reduce(t < tiles && s.maxima[t] == largest ? t : tiles - 1, Smaller());
    int own = s.vocabulary - 1;
    for (int i = EACH - 1; i >= 0; --i) {
        const int id = tile * TILE + t * EACH + i;
        if (id < s.vocabulary && ordered(logit(s, 0, id)) == largest) own = id;
    }
    const int id = reduce(own, Smaller());
    if (t != 0) return;
    const float z = contrasted(s, m.lowest, id);
    bool moves = false;
    for (int j = 0; j < s.shift_top_k; ++j) moves = moves || m.moved[j] == id;
    s.outcome->leaders[0] = traced(s, id, z, moves ? __fadd_rn(z, s.amount) : z, moves);
}

// Two blocks on a multiprocessor leave enough registers; without the number ptxas aims at more, and spills.
extern "C" __global__ void __launch_bounds__(THREADS, 2) choose_token(const Step s) {
    __shared__ Merged m;
    __shared__ bool is_last;
    const int t = threadIdx.x, tiles = gridDim.x;
    const float lowest = __fadd_rn(value(row_maximum(s, 0, tiles)), s.log_beta);
    survey_tile(s, lowest);
    __threadfence();
    __syncthreads();
    if (t == 0) {
        is_last = atomicInc(s.ticket, tiles - 1) == static_cast<u32>(tiles - 1);
        m.lowest = lowest;
        m.tiles = tiles;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    merge(s, m);
    note_leader(s, m);
    bool finite = true;
    for (int row = 0; row < s.rows; ++row) {
        const u32 largest = row_maximum(s, row, tiles);
        finite = finite && largest > 0 && largest < INFINITE;
    }
    int status = CHOSEN, token = -1;
    if (!finite) {
        status = BAD_LOGITS;
    } else if (m.count == 0 || order_of(m.sorted[0]) >= INFINITE) {
        status = BAD_STEERED;
    } else if (s.temperature == 0.0f) {
        token = token_of(m.sorted[0]);
    } else {
        const bool filters = s.top_k > 0 || s.top_p < 1.0 || s.log_min_p > minus_infinity();
        token = filters ? draw_leading(s, m) : draw_row(s, m);
        if (token < 0) status = NEEDS_HOST;
    }
    if (t == 0) {
        s.outcome->status = status;
        s.outcome->token = token;
    }
}
