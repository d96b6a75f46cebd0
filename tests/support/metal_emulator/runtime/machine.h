// The state of one launch, which hooks, simdgroup functions and the scheduler share.
#pragma once
#include <vector>

#include "abi.h"
#include "fiber.h"
#include "shadow.h"
#include "traffic.h"

constexpr uint32_t nobody = ~0u;
enum Memory : uint32_t { device_memory, threadgroup_memory };

struct Region {
  uint64_t low, high;
  Memory memory;
  bool writable, initialised;
  const char* name;
  Cell* cells;  // one a byte where writes are possible
};

// The clock at the latest barriers: with the flag of each memory, and of any kind.
struct Barriers {
  uint32_t flagged[2], any;
};

struct Shared {
  uint32_t id;
  uint64_t bytes;
  char* at;
};

struct Machine {
  Options options;
  Totals totals;
  Entry entry;
  uint64_t* arguments;
  uint64_t code_low;

  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  void* scheduler = nullptr;
  bool stopped = false;
  uint64_t random_state;

  uint32_t group, threads, simdgroups;
  uint32_t clock = 0, group_start = 0;
  Barriers group_barriers;
  std::vector<Barriers> simdgroup_barriers;
  std::vector<uint32_t> group_starts, group_ids;  // to name the threadgroup of an old record

  std::vector<Region> regions;  // the buffers, then the threadgroup's variables
  size_t buffers;
  std::vector<Shared> shared;
  uint64_t shared_bytes;
  Tracer tracer;
  std::vector<Report> reports;

  uint64_t random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
  }
};

extern Machine machine;

// Back to the scheduler, as what the fiber's state says.
inline void suspend() { metal_switch(&machine.current->stack_pointer, machine.scheduler); }

// Keeps a report, unless the same instructions did the same before.
void report(Report what);
// A report with the current thread filled in.
Report at_hand(Fault fault, uint64_t code);
// Reports, and ends the launch: does not return.
[[noreturn]] void give_up(const Report& what);

void run_threadgroup();
// Computes what the lanes of a simdgroup asked for; `mask` are those who did.
void complete(Fiber* lanes, uint32_t mask, uint32_t count);
void drop_threadgroup_memory();
