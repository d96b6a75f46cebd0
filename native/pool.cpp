#include "pool.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__APPLE__)
#include <pthread.h>
#include <pthread/qos.h>
#endif

namespace gptoss {

namespace {

constexpr size_t LARGE_PAGE = 2 << 20;
constexpr int SPINS = 20000;    // about 100 us, before a thread sleeps
constexpr int PATIENCE = 2000;  // spins before a thread yields, where there are more than cores

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

void prefer_fast_core() {
#if defined(__APPLE__)
    pthread_set_qos_class_self_np(QOS_CLASS_USER_INITIATED, 0);
#endif
}

}  // namespace

void Worker::barrier() {
    const uint64_t passed = pool->passed_.load(std::memory_order_acquire);
    if (pool->waiting_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
        pool->waiting_.store(0, std::memory_order_relaxed);
        pool->passed_.store(passed + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; pool->passed_.load(std::memory_order_acquire) == passed; spins++) {
        if (spins < PATIENCE) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

bool Worker::take(int phase, int64_t grain, int64_t count, int64_t* begin, int64_t* end) {
    *begin = pool->counters_[phase].next.fetch_add(grain, std::memory_order_relaxed);
    *end = *begin + grain < count ? *begin + grain : count;
    return *begin < count;
}

void Worker::part(int64_t count, int64_t* begin, int64_t* end) const {
    *begin = count * index / threads;
    *end = count * (index + 1) / threads;
}

Pool::Pool(int threads, size_t own, size_t shared) {
    auto allocate = [this](size_t bytes) {
        void* memory = nullptr;
        // Whole large pages where it is more than a half of one: fewer pages are looked up.
        const size_t alignment = bytes > LARGE_PAGE / 2 ? LARGE_PAGE : 64;
        bytes = (bytes + alignment) / alignment * alignment;
        if (posix_memalign(&memory, alignment, bytes) != 0) {
            throw std::bad_alloc();
        }
        memory_.push_back(memory);
#if defined(__linux__)
        if (alignment == LARGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
        return static_cast<float*>(memory);
    };
    try {
        float* all = allocate(shared);
        for (int i = 0; i < threads; i++) {
            workers_.push_back(Worker{this, i, threads, allocate(own), all});
        }
        for (int i = 1; i < threads; i++) {
            threads_.emplace_back(&Pool::loop, this, i);
        }
    } catch (...) {
        finish();
        throw;
    }
}

Pool::~Pool() { finish(); }

void Pool::finish() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
        turn_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) {
        thread.join();
    }
    for (void* memory : memory_) {
        std::free(memory);
    }
}

void Pool::reset() {
    for (Counter& counter : counters_) {
        counter.next.store(0, std::memory_order_relaxed);
    }
}

void Pool::run_alone(void (*work)(const void*, Worker&), const void* argument) {
    reset();
    Worker alone = {this, 0, 1, workers_[0].own, workers_[0].shared};
    work(argument, alone);
}

void Pool::run(void (*work)(const void*, Worker&), const void* argument) {
    reset();
    work_ = work;
    argument_ = argument;
    running_.store(threads() - 1, std::memory_order_relaxed);
    turn_.fetch_add(1, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    work(argument, workers_[0]);
    for (int spins = 0; running_.load(std::memory_order_acquire) != 0; spins++) {
        if (spins < PATIENCE) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

void Pool::loop(int index) {
    prefer_fast_core();
    for (uint64_t done = 0;; done++) {
        for (int spins = 0; turn_.load(std::memory_order_acquire) == done; spins++) {
            if (spins < SPINS) {
                pause();
                continue;
            }
            std::unique_lock<std::mutex> lock(mutex_);
            sleeping_.fetch_add(1, std::memory_order_seq_cst);
            wake_.wait(lock, [&] { return turn_.load(std::memory_order_seq_cst) != done; });
            sleeping_.fetch_sub(1, std::memory_order_relaxed);
        }
        if (stopping_) {
            return;
        }
        work_(argument_, workers_[size_t(index)]);
        running_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace gptoss
