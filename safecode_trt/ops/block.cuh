// What the threads of one block do together: reductions, running sums and the leading of many keys.
//
// All of it is the same whatever order the threads run in: keys are unique, and sums are trees of a fixed form.

#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int THREADS = 256;
constexpr int EACH = 4;  // neighbouring tokens of one thread
constexpr int TILE = THREADS * EACH;
constexpr int LEADING = 64;

struct Larger { template <class T> __device__ T operator()(T a, T b) const { return a > b ? a : b; } };
struct Smaller { template <class T> __device__ T operator()(T a, T b) const { return a < b ? a : b; } };
struct Sum { template <class T> __device__ T operator()(T a, T b) const { return a + b; } };

__device__ inline float minus_infinity() { return __uint_as_float(0xff800000u); }

// The order of floats as an order of integers: -inf is 0, equal zeros are equal, NaN is above all.
constexpr u32 INFINITE = 0xff000001u;

__device__ inline u32 ordered(float x) {
    if (x != x) return 0xffffffffu;
    const u32 bits = __float_as_uint(x + 0.0f);
    return (bits >> 31 ? ~bits : bits | 0x80000000u) - 0x007fffffu;
}

__device__ inline float value(u32 order) {
    const u32 bits = order + 0x007fffffu;
    return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

// Larger logits first, of equal ones the lower id; 0 is no token.
__device__ inline u64 key(float z, int id) {
    const u32 order = ordered(z);
    return order ? static_cast<u64>(order) << 32 | static_cast<u32>(~id) : 0;
}

__device__ inline int token_of(u64 key) { return ~static_cast<int>(key & 0xffffffffu); }
__device__ inline u32 order_of(u64 key) { return static_cast<u32>(key >> 32); }

__device__ inline u64 *block_cells() {
    __shared__ u64 cells[THREADS];
    return cells;
}

// One cell for every thread; its users make sure that no thread still reads them.
template <class T> __device__ T *cells_of_block() {
    return reinterpret_cast<T *>(block_cells());
}

template <class T, class Op> __device__ T reduce(T x, Op op) {
    T *cells = cells_of_block<T>();
    const int t = threadIdx.x;
    cells[t] = x;
    __syncthreads();
#pragma unroll 1
    for (int half = THREADS / 2; half; half /= 2) {
        if (t < half) cells[t] = op(cells[t], cells[t + half]);
        __syncthreads();
    }
    const T out = cells[0];
    __syncthreads();
    return out;
}

// The sum of x over this thread and those before it.
__device__ inline double running_sum(double x) {
    double *cells = cells_of_block<double>();
    const int t = threadIdx.x;
    cells[t] = x;
    __syncthreads();
#pragma unroll 1
    for (int step = 1; step < THREADS; step *= 2) {
        const double before = t >= step ? cells[t - step] : 0.0;
        __syncthreads();
        cells[t] += before;
        __syncthreads();
    }
    const double out = cells[t];
    __syncthreads();
    return out;
}

// The thread at which the running sum of weights passes the target, which becomes what is left of it there. Rounding
// may put the target at the total; the last weight above 0 is meant then.
__device__ inline int passing(double weight, double &target) {
    const int t = threadIdx.x;
    const double sum = running_sum(weight);
    const int first = reduce(weight > 0 && sum > target ? t : THREADS, Smaller());
    const int last = reduce(weight > 0 ? t : 0, Larger());
    const int at = first < THREADS ? first : last;
    target -= reduce(t == at - 1 ? sum : 0.0, Sum());
    return at;
}

// The LEADING largest of all keys, in falling order; returns how many there are. Each thread brings COUNT keys in
// falling order. The LEADING-th of the threads' first keys is a bound that few others reach; and key number i of the
// thread whose first key is number r has i + r larger ones.
template <int COUNT, class Keys> __device__ int lead(const Keys &keys, u64 *leading) {
    __shared__ u64 survivors[COUNT * LEADING - COUNT * (COUNT - 1) / 2], bound;
    __shared__ int survived;
    u64 *heads = cells_of_block<u64>();
    const int t = threadIdx.x;
    const u64 head = keys(0);
    heads[t] = head;
    if (t == 0) {
        bound = 1;
        survived = 0;
    }
    __syncthreads();
    int rank = 0;
#pragma unroll 8
    for (int j = 0; j < THREADS; ++j) rank += heads[j] > head;
    if (head && rank == LEADING - 1) bound = head;
    __syncthreads();
#pragma unroll(COUNT <= EACH ? COUNT : 1)
    for (int i = 0; i < COUNT; ++i) {
        const u64 next = keys(i);
        if (next < bound || i + rank >= LEADING) break;
        survivors[atomicAdd(&survived, 1)] = next;
    }
    __syncthreads();
    for (int i = t; i < survived; i += THREADS) {
        int larger = 0;
#pragma unroll 4
        for (int j = 0; j < survived && larger < LEADING; ++j) larger += survivors[j] > survivors[i];
        if (larger < LEADING) leading[larger] = survivors[i];
    }
    __syncthreads();
    return survived < LEADING ? survived : LEADING;
}

// Sorts the first LEADING threads' keys; returns how many are tokens, and where this thread's key went.
__device__ inline int sort_leading(u64 own, u64 *sorted, int &place) {
    __shared__ u64 keys[LEADING];
    const int t = threadIdx.x;
    if (t < LEADING) keys[t] = own;
    __syncthreads();
    place = LEADING;
    if (t < LEADING && own) {
        place = 0;
#pragma unroll 8
        for (int j = 0; j < LEADING; ++j) place += keys[j] > own;
        sorted[place] = own;
    }
    return reduce(place < LEADING ? 1 : 0, Sum());
}

__device__ inline void order_pair(u64 &a, u64 &b) {
    const u64 larger = a > b ? a : b;
    b = a > b ? b : a;
    a = larger;
}
