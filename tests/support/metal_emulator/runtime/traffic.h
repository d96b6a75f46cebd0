// Counts what simdgroups ask of memory: the k-th execution of one instruction by the lanes of a
// simdgroup, in the same turn of the loops around it and between two points where they wait for
// each other, is one access.
#pragma once
#include <unordered_map>
#include <vector>

#include "abi.h"

constexpr uint64_t line_bytes = 128;

class Tracer {
 public:
  // Sizes of the argument buffers, in bytes; the last region is all of threadgroup memory.
  void start(const std::vector<uint64_t>& sizes, uint32_t simdgroups);
  // `place`: the instruction, and the turn of each loop around it.
  void add(uint32_t simdgroup, uint32_t lane, uint64_t place, uint32_t region, uint64_t offset,
           uint32_t bytes, bool stores);
  // The lanes of a simdgroup have met: what they did before is complete.
  void meet(uint32_t simdgroup);
  const std::vector<Traffic>& finish();

 private:
  struct Line {
    uint64_t number, bytes[2];  // a bit for each byte
  };
  struct Access {
    uint32_t region;
    bool stores;
    std::vector<Line> lines;
  };
  struct Instruction {
    uint32_t executed[32] = {};  // by each lane since the lanes met
    std::vector<Access> accesses;
    size_t open = 0;
  };
  using Instructions = std::unordered_map<uint64_t, Instruction>;

  static Line& line_of(Access& access, uint64_t number);
  void close(Instruction& instruction);

  std::vector<Instructions> simdgroups_;
  std::vector<Traffic> totals_;
  std::vector<std::vector<uint64_t>> touched_read_, touched_written_;  // a bit for each byte
};
