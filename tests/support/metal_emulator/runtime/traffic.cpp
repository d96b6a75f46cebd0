#include "traffic.h"

#include <algorithm>
#include <bit>

void Tracer::start(const std::vector<uint64_t>& sizes, uint32_t simdgroups) {
  simdgroups_.assign(simdgroups, {});
  totals_.assign(sizes.size(), {});
  touched_read_.clear();
  touched_written_.clear();
  for (uint64_t bytes : sizes) {
    touched_read_.emplace_back((bytes + 63) / 64);
    touched_written_.emplace_back((bytes + 63) / 64);
  }
}

void Tracer::add(uint32_t simdgroup, uint32_t lane, uint64_t place, uint32_t region,
                 uint64_t offset, uint32_t bytes, bool stores) {
  Instruction& instruction = simdgroups_[simdgroup][place << 1 | stores];
  const size_t turn = instruction.executed[lane]++;
  if (turn >= instruction.open) {
    instruction.open = turn + 1;
    if (instruction.accesses.size() <= turn) instruction.accesses.resize(turn + 1);
    instruction.accesses[turn].lines.clear();
  }
  Access& access = instruction.accesses[turn];
  access.region = region;
  access.stores = stores;
  (stores ? totals_[region].written_bytes : totals_[region].read_bytes) += bytes;
  auto& touched = (stores ? touched_written_ : touched_read_)[region];
  // In pieces that share a word of 64 bytes.
  for (uint64_t at = offset; at < offset + bytes;) {
    const uint64_t end = std::min(offset + bytes, (at / 64 + 1) * 64), count = end - at;
    const uint64_t bits = (count == 64 ? ~0ull : (1ull << count) - 1) << at % 64;
    if (at / 64 < touched.size()) touched[at / 64] |= bits;
    line_of(access, at / line_bytes).bytes[at % line_bytes / 64] |= bits;
    at = end;
  }
}

Tracer::Line& Tracer::line_of(Access& access, uint64_t number) {
  // Neighbours share a line: the latest is the likeliest.
  for (size_t i = access.lines.size(); i--;)
    if (access.lines[i].number == number) return access.lines[i];
  return access.lines.emplace_back(Line{number, {0, 0}});
}

void Tracer::close(Instruction& instruction) {
  for (size_t i = 0; i < instruction.open; i++) {
    const Access& access = instruction.accesses[i];
    uint64_t distinct = 0;
    for (const Line& line : access.lines)
      distinct += std::popcount(line.bytes[0]) + std::popcount(line.bytes[1]);
    Traffic& total = totals_[access.region];
    total.accesses++;
    total.lines += access.lines.size();
    total.distinct_bytes += distinct;
    total.fewest_lines += (distinct + line_bytes - 1) / line_bytes;
  }
  instruction.open = 0;
  for (uint32_t& count : instruction.executed) count = 0;
}

void Tracer::meet(uint32_t simdgroup) {
  for (auto& [place, instruction] : simdgroups_[simdgroup])
    if (instruction.open) close(instruction);
  simdgroups_[simdgroup].clear();
}

const std::vector<Traffic>& Tracer::finish() {
  for (size_t region = 0; region < totals_.size(); region++) {
    for (uint64_t word : touched_read_[region]) totals_[region].touched_read += std::popcount(word);
    for (uint64_t word : touched_written_[region])
      totals_[region].touched_written += std::popcount(word);
  }
  return totals_;
}
