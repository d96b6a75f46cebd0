// The functions that Python calls: the choice of a variant, the pool, and one function an operation.
#include <cstring>
#include <exception>

#include "gptoss.h"

namespace gptoss {
#if defined(__x86_64__)
#if defined(GPTOSS_AMX)
namespace amx {
extern const Kernels KERNELS;
}
#endif
namespace vnni {
extern const Kernels KERNELS;
}
namespace avx512 {
extern const Kernels KERNELS;
}
namespace avx2 {
extern const Kernels KERNELS;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels KERNELS;
}
#endif
namespace portable {
extern const Kernels KERNELS;
}

namespace {

// The preferred first.
const Kernels* const VARIANTS[] = {
#if defined(__x86_64__)
#if defined(GPTOSS_AMX)
    &amx::KERNELS,
#endif
    &vnni::KERNELS,
    &avx512::KERNELS,
    &avx2::KERNELS,
#elif defined(__aarch64__)
    &neon::KERNELS,
#endif
    &portable::KERNELS,
};

// A pool and the kernels that it runs.
struct Device {
    const Kernels* kernels;
    Pool pool;
};

template <class Call>
struct Job {
    void (*kernel)(const Call&, Worker&);
    const Call* call;

    static void work(const void* job, Worker& worker) {
        const Job& self = *static_cast<const Job*>(job);
        self.kernel(*self.call, worker);
    }
};

template <class Call>
void run(Device* device, void (*kernel)(const Call&, Worker&), const Call* call) {
    const Job<Call> job{kernel, call};
    device->pool.run(Job<Call>::work, &job);
}

// An operation that takes microseconds for a few tokens, which stay on the calling thread: where other
// programs compute too, the other threads may have to wait for a processor.
constexpr int64_t ALONE = 4;  // tokens

template <class Call>
void run_small(
    Device* device, void (*kernel)(const Call&, Worker&), const Call* call, int64_t tokens) {
    if (tokens > ALONE) return run(device, kernel, call);
    const Job<Call> job{kernel, call};
    device->pool.run_alone(Job<Call>::work, &job);
}

int64_t tokens_of(const StoreCall& call) {
    int64_t tokens = 0;
    for (int64_t i = 0; i < call.spans; i++) tokens += call.span[i].tokens;
    return tokens;
}

}  // namespace
}  // namespace gptoss

using namespace gptoss;

#define EXPORT extern "C" __attribute__((visibility("default")))

// The name of variant number i, the preferred first; null behind the last.
EXPORT const char* gptoss_variant(int i) {
    return i < int(sizeof VARIANTS / sizeof *VARIANTS) ? VARIANTS[i]->name : nullptr;
}

EXPORT bool gptoss_supported(int i) { return VARIANTS[i]->supported(); }

// A device of variant i, with workspaces in bytes for each thread and for all; null where this
// processor cannot run it, or where there is no memory or no thread to be had.
EXPORT Device* gptoss_open(int i, int threads, size_t own, size_t shared) {
    if (!gptoss_supported(i)) return nullptr;  // which also asks for what a process has to ask for
    try {
        return new Device{VARIANTS[i], {threads, own, shared}};
    } catch (const std::exception&) {
        return nullptr;
    }
}

EXPORT void gptoss_close(Device* device) { delete device; }

EXPORT void gptoss_rows(Device* d, const RowsCall* call) { run(d, d->kernels->rows, call); }
EXPORT void gptoss_linear(Device* d, const LinearCall* call) { run(d, d->kernels->linear, call); }
EXPORT void gptoss_store(Device* d, const StoreCall* call) {
    run_small(d, d->kernels->store, call, tokens_of(*call));
}
EXPORT void gptoss_attention(Device* d, const AttentionCall* call) {
    run(d, d->kernels->attention, call);
}
EXPORT void gptoss_router_topk(Device* d, const RouterCall* call) {
    run_small(d, d->kernels->router_topk, call, call->rows);
}
EXPORT void gptoss_moe_gate_up(Device* d, const VisitsCall* call) {
    run(d, d->kernels->moe_gate_up, call);
}
EXPORT void gptoss_moe_down(Device* d, const VisitsCall* call) {
    run(d, d->kernels->moe_down, call);
}
EXPORT void gptoss_sum(Device* d, const SumCall* call) {
    run_small(d, d->kernels->sum, call, call->rows);
}

namespace {

struct Reading {
    const uint8_t* memory;
    int64_t bytes;
    uint64_t* sums;
};

void read_part(const Reading& call, Worker& worker) {
    uint64_t sum = 0;
    int64_t begin, end;
    while (worker.take(0, 1 << 20, call.bytes / 64, &begin, &end)) {
        for (int64_t i = begin; i < end; i++) {
            uint64_t words[8];
            __builtin_prefetch(call.memory + i * 64 + 4096);
            std::memcpy(words, call.memory + i * 64, 64);
            for (uint64_t word : words) sum ^= word;
        }
    }
    call.sums[worker.index] = sum;
}

}  // namespace

// Reads memory once, on all threads: what a step is measured against.
EXPORT uint64_t gptoss_read(Device* d, const uint8_t* memory, int64_t bytes) {
    uint64_t sums[1024] = {}, all = 0;
    const Reading call{memory, bytes, sums};
    run(d, read_part, &call);
    for (uint64_t sum : sums) all ^= sum;
    return all;
}
