// What the compiled kernel, the runtime and Python agree on. Python's mirror: runtime.py.
#pragma once
#include <cstddef>
#include <cstdint>

// Where a thread is, as Metal's attributes name it; the launcher in the kernel's object reads it.
struct Position {
  uint32_t in_grid[3], in_threadgroup[3], threadgroup[3], grid_size[3], threadgroups[3];
  uint32_t size[3], dispatched_size[3];
  uint32_t index, lane, simdgroup, simdgroups, dispatched_simdgroups;
};

// Two words of a value on their way through a simdgroup function.
struct Bits {
  uint64_t lo, hi;
};

using Entry = void (*)(uint64_t* buffers, const Position*);

enum class Order : uint32_t { forward, reverse, random };

// Faults, in the order of reports.py's texts.
enum class Fault : uint32_t {
  race, cross_race, out_of_bounds, misaligned, uninitialised, read_only, divergent_barrier,
  missing_threads, divergent_simd, inactive_lane, too_much_threadgroup_memory, array_bounds,
  endless,
};

enum class Kind : uint32_t { read, write, atomic };

struct Report {
  uint32_t fault, kind, other_kind;
  uint32_t thread, other_thread, group, other_group;  // ~0u: several or none
  uint64_t code, other_code;                          // return addresses, 0: unknown
  uint64_t size;
  int64_t offset;  // bytes from the region's start, or what the fault counts
  uint32_t hint;   // a barrier lay between, but without the flag of this memory
  char region[52];
};

// One argument buffer. Checked launches copy it between guard pages and copy outputs back.
struct Buffer {
  uint64_t data, bytes;
  const char* name;
  uint32_t writable, initialised;
};

struct Options {
  uint64_t seed, access_limit;
  uint32_t order, check, trace, threadgroup_limit;
};

// What crossed between a simdgroup and a buffer.
struct Traffic {
  uint64_t read_bytes, written_bytes;      // requested, summed over threads
  uint64_t accesses;                       // of a simdgroup: one instruction, once
  uint64_t lines, fewest_lines;            // of 128 bytes, summed over accesses
  uint64_t distinct_bytes;                 // of each access, summed
  uint64_t touched_read, touched_written;  // distinct bytes in the whole launch
  uint64_t unwritten;                      // bytes of an output that nobody wrote
};

struct Totals {
  uint64_t accesses, switches, barriers, simd_operations, multiplications;
  uint64_t threadgroup_bytes, threadgroup_read, threadgroup_written, threadgroup_accesses;
  uint64_t threadgroups, code_base;
  uint64_t floating, integer, conversions;
};
