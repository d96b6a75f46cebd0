// A pool of threads: one operation at a time, on all of them, the calling thread included.
//
// Threads wait for the next operation by spinning for a moment, since the operations of a step
// follow one another within microseconds, and then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace gptoss {

class Pool;

// One thread's view of the operation that runs.
struct Worker {
    Pool* pool;
    int index, threads;
    float* own;     // workspace of this thread
    float* shared;  // workspace of all

    // Wait until every thread has come here.
    void barrier();

    // Take the next `grain` of `count` items, in order; false when all are taken. phase: 0 to
    // PHASES - 1, a counter each; an operation uses each counter once.
    bool take(int phase, int64_t grain, int64_t count, int64_t* begin, int64_t* end);

    // This thread's equal part of `count` items.
    void part(int64_t count, int64_t* begin, int64_t* end) const;
};

// The items that a thread takes, one ahead: while it works on one it knows the next, whose weights
// can be prefetched.
class Items {
public:
    // phase, grain, count: as for `Worker::take`.
    Items(Worker& worker, int phase, int64_t grain, int64_t count)
        : worker_(worker), phase_(phase), grain_(grain), count_(count) {
        look();
    }

    bool take() {
        begin = next_begin_;
        end = next_end_;
        const bool taken = more_;
        if (taken) look();
        return taken;
    }

    // The beginning of the next item; -1 behind the last.
    int64_t next() const { return more_ ? next_begin_ : -1; }

    int64_t begin = 0, end = 0;

private:
    void look() { more_ = worker_.take(phase_, grain_, count_, &next_begin_, &next_end_); }

    Worker& worker_;
    int phase_;
    int64_t grain_, count_, next_begin_ = 0, next_end_ = 0;
    bool more_ = false;
};

class Pool {
public:
    static constexpr int PHASES = 8;

    // own, shared: bytes of workspaces. Throws std::bad_alloc or std::system_error.
    Pool(int threads, size_t own, size_t shared);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // Run work(argument, worker) on every thread, and wait for all.
    void run(void (*work)(const void*, Worker&), const void* argument);

    // The same on the calling thread alone.
    void run_alone(void (*work)(const void*, Worker&), const void* argument);

    int threads() const { return int(workers_.size()); }

private:
    friend struct Worker;
    void loop(int index);
    void finish();
    void reset();

    std::vector<Worker> workers_;
    std::vector<std::thread> threads_;
    std::vector<void*> memory_;
    std::mutex mutex_;
    std::condition_variable wake_;
    void (*work_)(const void*, Worker&) = nullptr;
    const void* argument_ = nullptr;
    alignas(64) std::atomic<uint64_t> turn_{0};  // operations begun
    alignas(64) std::atomic<int> running_{0};    // threads that have not finished the operation
    alignas(64) std::atomic<int> waiting_{0};    // threads at the barrier
    alignas(64) std::atomic<uint64_t> passed_{0};  // barriers passed
    struct alignas(64) Counter {
        std::atomic<int64_t> next{0};
    };
    Counter counters_[PHASES];
    std::atomic<int> sleeping_{0};
    bool stopping_ = false;
};

}  // namespace gptoss
