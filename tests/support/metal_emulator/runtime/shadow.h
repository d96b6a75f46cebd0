// Who touched a byte last, and whether that is ordered before the access at hand.
//
// One clock counts barriers and starts of threadgroups; threadgroups run one after another. An
// access is ordered after another of the same threadgroup if a barrier with the flag of this
// memory came between: of the threadgroup, or of the simdgroup if both threads are in it. Across
// threadgroups nothing orders device memory.
#pragma once
#include "abi.h"

// Whose accesses a record stands for.
enum Who : uint32_t { one, several_in_simdgroup, several_simdgroups, several_threadgroups };

struct Record {
  uint32_t clock = 0;  // 0: never
  uint32_t thread : 10 = 0;
  uint32_t who : 2 = 0;
  uint32_t code : 20 = 0;  // offset in the kernel's code, 0: unknown
};

struct Cell {
  Record write, read, atomic;
  uint32_t written : 31 = 0;  // the clock then; 0: never
  uint32_t atomic_stores : 1 = 0;
};

// The thread at hand, since when the memory exists, and the latest barriers that cover it.
struct Now {
  uint32_t clock, birth, group_start, threadgroup_barrier, simdgroup_barrier;
  uint32_t thread, code;
};

inline bool ordered(const Record& earlier, const Now& now) {
  if (earlier.clock < now.group_start || earlier.who == several_threadgroups) return false;
  if (earlier.clock < now.threadgroup_barrier) return true;
  if (earlier.who == one && earlier.thread == now.thread) return true;
  const bool same_simdgroup =
      earlier.thread / 32 == now.thread / 32 && earlier.who <= several_in_simdgroup;
  return same_simdgroup && earlier.clock < now.simdgroup_barrier;
}

inline bool conflicts(const Record& earlier, const Now& now) {
  return earlier.clock >= now.birth && !ordered(earlier, now);
}

// Before a barrier of this threadgroup, or from before the memory was.
inline bool stale(const Record& earlier, const Now& now) {
  return earlier.clock < now.birth ||
         (earlier.clock >= now.group_start && earlier.clock < now.threadgroup_barrier);
}

// Reads and atomics may come from several threads at once: the record then stands for all.
inline uint32_t joined(const Record& record, const Now& now) {
  if (record.clock < now.birth) return one;
  if (record.clock < now.group_start || record.who == several_threadgroups)
    return several_threadgroups;
  if (stale(record, now)) return one;
  if (record.who == several_simdgroups || record.thread / 32 != now.thread / 32)
    return several_simdgroups;
  if (record.clock < now.simdgroup_barrier) return one;
  return record.who == one && record.thread == now.thread ? one : several_in_simdgroup;
}

// The record that the access conflicts with, or null.
inline const Record* conflicting(const Cell& cell, Kind kind, bool stores, const Now& now) {
  if (conflicts(cell.write, now)) return &cell.write;
  const bool against_atomics = kind == Kind::write || (kind == Kind::read && cell.atomic_stores);
  if (against_atomics && conflicts(cell.atomic, now)) return &cell.atomic;
  if (stores && conflicts(cell.read, now)) return &cell.read;
  return nullptr;
}

inline void remember(Cell& cell, Kind kind, bool stores, const Now& now) {
  if (kind == Kind::read) {
    cell.read = {now.clock, now.thread, joined(cell.read, now), now.code};
  } else if (kind == Kind::write) {
    cell.write = {now.clock, now.thread, one, now.code};
  } else {
    cell.atomic_stores = stores || (cell.atomic_stores && !stale(cell.atomic, now));
    cell.atomic = {now.clock, now.thread, joined(cell.atomic, now), now.code};
  }
  if (stores) cell.written = now.clock;
}
