// Runs kernels.cu on the CPU: its own source, compiled as C++, with every thread of a block as a coroutine.
//
// Threads of a block run one after the other from barrier to barrier, in a chosen order. What differs between orders
// is a race; threads that wait at different barriers, or at one that others never reach, are an error.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __shared__ static
#define __syncthreads() wait_here(__FILE__, __LINE__)

struct Index {
    unsigned x, y;
};
static Index threadIdx, blockIdx, gridDim;

static void wait_here(const char *file, int line);
static inline void __threadfence() {}
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __uint_as_float(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static inline unsigned __float_as_uint(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
static inline int atomicAdd(int *at, int by) { const int old = *at; *at += by; return old; }
static inline unsigned atomicInc(unsigned *at, unsigned last) {
    const unsigned old = *at;
    *at = old >= last ? 0 : old + 1;
    return old;
}

#include "kernels.cu"

namespace {

struct Thread {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 17);
    const char *file = nullptr;
    int line = 0;
    bool begun = false, over = false;
    jmp_buf here;
};

std::vector<Thread> threads(THREADS);
jmp_buf scheduler;
Thread *running;
void (*kernel)(Step);
const Step *step;

void run_thread() {
    kernel(*step);
    running->over = true;
    _longjmp(scheduler, 1);
}

// A context gives a thread its stack; from then on jumps are far cheaper than switching contexts.
void resume(Thread &thread) {
    running = &thread;
    if (_setjmp(scheduler)) return;
    if (thread.begun) _longjmp(thread.here, 1);
    thread.begun = true;
    setcontext(&thread.context);
}

bool run_block(std::mt19937 &random, int shuffle) {
    for (Thread &thread : threads) {
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = nullptr;
        thread.begun = thread.over = false;
        makecontext(&thread.context, run_thread, 0);
    }
    std::vector<int> order(THREADS);
    std::iota(order.begin(), order.end(), 0);
    do {
        if (shuffle) std::shuffle(order.begin(), order.end(), random);
        for (int t : order) {
            threadIdx = {static_cast<unsigned>(t), 0};
            resume(threads[t]);
        }
        for (const Thread &thread : threads) {
            const Thread &first = threads[0];
            if (thread.over != first.over) return false;
            if (!thread.over && (thread.line != first.line || thread.file != first.file)) return false;
        }
    } while (!threads[0].over);
    return true;
}

bool run_grid(void (*entry)(Step), unsigned x, unsigned y, unsigned seed) {
    std::mt19937 random(seed);
    kernel = entry;
    gridDim = {x, y};
    std::vector<unsigned> blocks(x * y);
    std::iota(blocks.begin(), blocks.end(), 0u);
    if (seed) std::shuffle(blocks.begin(), blocks.end(), random);
    for (unsigned block : blocks) {
        blockIdx = {block % x, block / x};
        if (!run_block(random, seed != 0)) return false;
    }
    return true;
}

}  // namespace

static void wait_here(const char *file, int line) {
    running->file = file;
    running->line = line;
    if (!_setjmp(running->here)) _longjmp(scheduler, 1);
}

// Blocks and threads in the order of their numbers for seed 0, else in one of many orders. False: barriers diverge.
extern "C" bool launch(const char *entry, const Step *own, unsigned x, unsigned y, unsigned seed) {
    step = own;
    if (!std::strcmp(entry, "measure_rows")) return run_grid(measure_rows, x, y, seed);
    if (!std::strcmp(entry, "choose_token")) return run_grid(choose_token, x, y, seed);
    return false;
}

extern "C" float half_logit(unsigned short bits) {
    Step own = {};
    own.logits = &bits;
    own.half = 1;
    return logit(own, 0, 0);
}
