// The kernel's loads and stores. The compiler calls __tsan_* before each of them (ThreadSanitizer's
// instrumentation, with these functions in place of its library).
#include <cstdio>
#include <cstring>

#include "machine.h"

#define RETURN_ADDRESS reinterpret_cast<uint64_t>(__builtin_return_address(0))

Machine machine;

Report at_hand(Fault fault, uint64_t code) {
  Report r{};
  r.fault = static_cast<uint32_t>(fault);
  r.code = code;
  r.other_thread = r.other_group = nobody;
  r.thread = machine.current ? machine.current->position.index : nobody;
  r.group = machine.group;
  return r;
}

void report(Report what) {
  for (const Report& known : machine.reports)
    if (known.fault == what.fault && known.code == what.code && known.other_code == what.other_code)
      return;
  if (machine.reports.size() < 16) machine.reports.push_back(what);
}

void give_up(const Report& what) {
  report(what);
  machine.stopped = true;
  suspend();
  __builtin_unreachable();
}

namespace {

void name(Report& r, const Region& region, uint64_t address) {
  snprintf(r.region, sizeof r.region, "%s", region.name);
  r.offset = static_cast<int64_t>(address - region.low);
}

const Region* find(uint64_t address) {
  for (const Region& region : machine.regions)
    if (address >= region.low && address < region.high) return &region;
  return nullptr;
}

// Buffers lie gigabytes apart: the nearest is the one that was meant.
[[noreturn]] void out_of_bounds(uint64_t address, uint32_t bytes, Kind kind, uint64_t code) {
  Report r = at_hand(Fault::out_of_bounds, code);
  r.kind = static_cast<uint32_t>(kind);
  r.size = bytes;
  const Region* nearest = nullptr;
  uint64_t least = ~0ull;
  for (const Region& region : machine.regions) {
    const uint64_t away =
        address >= region.high ? address - region.high : region.low - address;
    if (address >= region.low && address < region.high) {
      nearest = &region;
      break;
    }
    if (away < least) least = away, nearest = &region;
  }
  if (nearest) name(r, *nearest, address);
  give_up(r);
}

uint32_t offset_in_code(uint64_t code) {
  const uint64_t offset = code - machine.code_low;
  return offset < (1u << 20) ? static_cast<uint32_t>(offset) : 0;
}

uint32_t group_at(uint32_t clock) {
  uint32_t found = nobody;
  for (size_t i = 0; i < machine.group_starts.size() && machine.group_starts[i] <= clock; i++)
    found = machine.group_ids[i];
  return found;
}

void race(const Region& region, uint64_t address, uint32_t bytes, Kind kind, uint64_t code,
          const Cell& cell, const Record& earlier, const Now& now) {
  Report r = at_hand(Fault::race, code);
  name(r, region, address);
  r.size = bytes;
  r.kind = static_cast<uint32_t>(kind);
  r.other_kind = static_cast<uint32_t>(&earlier == &cell.write  ? Kind::write
                                       : &earlier == &cell.read ? Kind::read
                                                                : Kind::atomic);
  if (earlier.clock < now.group_start || earlier.who == several_threadgroups)
    r.fault = static_cast<uint32_t>(Fault::cross_race);
  r.other_thread = earlier.who == one ? earlier.thread : nobody;
  r.other_group = earlier.who == several_threadgroups ? nobody : group_at(earlier.clock);
  r.other_code = earlier.code ? machine.code_low + earlier.code : 0;
  const bool same_simdgroup = earlier.thread / 32 == now.thread / 32;
  const uint32_t simdgroup = machine.current->position.simdgroup;
  r.hint = earlier.clock < machine.group_barriers.any ||
           (same_simdgroup && earlier.clock < machine.simdgroup_barriers[simdgroup].any);
  report(r);
}

void check(const Region& region, uint64_t address, uint32_t bytes, Kind kind, bool loads,
           bool stores, uint64_t code) {
  const Barriers& simdgroup = machine.simdgroup_barriers[machine.current->position.simdgroup];
  const Now now{machine.clock,
                region.memory == device_memory ? 1 : machine.group_start,
                machine.group_start,
                machine.group_barriers.flagged[region.memory],
                simdgroup.flagged[region.memory],
                machine.current->position.index,
                offset_in_code(code)};
  bool raced = false, blank = false;
  for (uint64_t at = address; at < address + bytes; at++) {
    Cell& cell = region.cells[at - region.low];
    const Record* earlier = raced ? nullptr : conflicting(cell, kind, stores, now);
    if (earlier) {
      raced = true;
      race(region, at, bytes, kind, code, cell, *earlier, now);
    } else if (loads && !blank && !region.initialised && cell.written < now.birth) {
      blank = true;
      Report r = at_hand(Fault::uninitialised, code);
      name(r, region, at);
      r.size = bytes;
      r.kind = static_cast<uint32_t>(kind);
      report(r);
    }
    remember(cell, kind, stores, now);
  }
}

void count(const Region& region, uint64_t address, uint32_t bytes, bool loads, bool stores,
           uint64_t code) {
  const Position& p = machine.current->position;
  const size_t index = &region - machine.regions.data();
  const uint32_t counted = index < machine.buffers ? index : machine.buffers;
  const uint64_t offset = address - (index < machine.buffers ? region.low : 0);
  uint64_t place = code;
  for (uint32_t turn : machine.current->turns) place = (place ^ turn) * 0x9E3779B97F4A7C15ull;
  if (loads) machine.tracer.add(p.simdgroup, p.lane, place, counted, offset, bytes, false);
  if (stores) machine.tracer.add(p.simdgroup, p.lane, place, counted, offset, bytes, true);
}

void access(uint64_t address, uint32_t bytes, Kind kind, bool loads, bool stores, bool aligned,
            uint64_t code) {
  if (!machine.current) return;
  const auto stack = reinterpret_cast<uint64_t>(machine.current->stack);
  if (address - stack < stack_bytes) return;
  if (++machine.totals.accesses > machine.options.access_limit) {
    Report r = at_hand(Fault::endless, code);
    r.offset = static_cast<int64_t>(machine.options.access_limit);
    give_up(r);
  }
  // An instruction mostly stays with one region.
  static uint32_t latest[1024];
  uint32_t& guess = latest[code / 4 % 1024];
  const Region* region = guess < machine.regions.size() ? &machine.regions[guess] : nullptr;
  if (!region || address < region->low || address >= region->high) {
    region = find(address);
    if (!region) out_of_bounds(address, bytes, kind, code);
    guess = static_cast<uint32_t>(region - machine.regions.data());
  }
  if (address + bytes > region->high) out_of_bounds(address, bytes, kind, code);
  if (aligned && address % bytes) {
    Report r = at_hand(Fault::misaligned, code);
    name(r, *region, address);
    r.size = bytes;
    r.kind = static_cast<uint32_t>(kind);
    give_up(r);
  }
  if (stores && !region->writable) {
    Report r = at_hand(Fault::read_only, code);
    name(r, *region, address);
    r.size = bytes;
    give_up(r);
  }
  if (region->cells) check(*region, address, bytes, kind, loads, stores, code);
  if (machine.options.trace) count(*region, address, bytes, loads, stores, code);
}

void access_range(const void* at, size_t bytes, Kind kind, uint64_t code) {
  const auto address = reinterpret_cast<uint64_t>(at);
  if (bytes)
    access(address, static_cast<uint32_t>(bytes), kind, kind == Kind::read, kind == Kind::write,
           false, code);
}

template <typename T>
uint64_t atomic_result(uint32_t operation, T was, T value, T expected, T& now) {
  switch (operation) {
    case 1: case 2: now = value; break;
    case 3: now = memcmp(&was, &expected, sizeof was) == 0 ? value : was; break;
    case 4: now = was + value; break;
    case 5: now = was - value; break;
    case 6: now = value < was ? value : was; break;
    case 7: now = value > was ? value : was; break;
    default: break;
  }
  if constexpr (!std::is_floating_point_v<T>) {
    if (operation == 8) now = was & value;
    if (operation == 9) now = was | value;
    if (operation == 10) now = was ^ value;
  }
  uint64_t bits = 0;
  memcpy(&bits, &was, sizeof was);
  return bits;
}

template <typename T>
uint64_t atomic_on(uint32_t operation, void* at, uint64_t value, uint64_t expected) {
  T was, v, e;
  memcpy(&was, at, sizeof was);
  memcpy(&v, &value, sizeof v);
  memcpy(&e, &expected, sizeof e);
  T now = was;
  const uint64_t result = atomic_result(operation, was, v, e, now);
  if (operation) memcpy(at, &now, sizeof now);
  return result;
}

}  // namespace

extern "C" {
// Element codes of metal_simdgroup: int, uint and float have atomics.
uint64_t mtl_atomic(uint32_t what, void* at, uint64_t value, uint64_t expected) {
  const uint32_t operation = what & 0xff, type = what >> 8;
  if (machine.options.check) {
    access(reinterpret_cast<uint64_t>(at), 4, Kind::atomic, operation != 1, operation != 0, true,
           RETURN_ADDRESS);
    // Other threads get a chance between two atomics.
    if (machine.options.order == static_cast<uint32_t>(Order::random) && machine.random() % 2) {
      machine.current->state = State::ready;
      suspend();
    }
  }
  if (type == 4) return atomic_on<int32_t>(operation, at, value, expected);
  if (type == 5) return atomic_on<uint32_t>(operation, at, value, expected);
  return atomic_on<float>(operation, at, value, expected);
}

// Loops of a traced kernel (loops.py), 1 the outermost: another turn; all deeper ones are left.
void metal_loop_again(uint32_t depth) {
  if (depth <= most_loops) machine.current->turns[depth - 1]++;
}
void metal_loop_left(uint32_t depth) {
  for (uint32_t i = depth; i < most_loops; i++) machine.current->turns[i] = 0;
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define HOOK(name, bytes, kind, loads, stores, aligned)                                       \
  void __tsan_##name##bytes(void* at) {                                                       \
    access(reinterpret_cast<uint64_t>(at), bytes, Kind::kind, loads, stores, aligned,         \
           RETURN_ADDRESS);                                                                   \
  }
#define HOOKS(bytes)                                     \
  HOOK(read, bytes, read, true, false, true)             \
  HOOK(write, bytes, write, false, true, true)           \
  HOOK(unaligned_read, bytes, read, true, false, false)  \
  HOOK(unaligned_write, bytes, write, false, true, false)
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)

#define VOLATILE(bytes)                                                                        \
  void __tsan_volatile_read##bytes(void* at) {                                                 \
    access(reinterpret_cast<uint64_t>(at), bytes, Kind::read, true, false, true, RETURN_ADDRESS); \
  }                                                                                            \
  void __tsan_volatile_write##bytes(void* at) {                                                \
    access(reinterpret_cast<uint64_t>(at), bytes, Kind::write, false, true, true, RETURN_ADDRESS); \
  }
VOLATILE(1) VOLATILE(2) VOLATILE(4) VOLATILE(8) VOLATILE(16)

void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  access_range(from, bytes, Kind::read, RETURN_ADDRESS);
  access_range(to, bytes, Kind::write, RETURN_ADDRESS);
  return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  access_range(from, bytes, Kind::read, RETURN_ADDRESS);
  access_range(to, bytes, Kind::write, RETURN_ADDRESS);
  return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  access_range(to, bytes, Kind::write, RETURN_ADDRESS);
  return memset(to, value, bytes);
}

// Indices of arrays whose length the type says (-fsanitize=array-bounds).
void __ubsan_handle_out_of_bounds_abort(const void*, uint64_t index) {
  Report r = at_hand(Fault::array_bounds, RETURN_ADDRESS);
  r.offset = static_cast<int64_t>(index);
  give_up(r);
}

// float to bfloat, to nearest even, as the compiler calls it where the CPU cannot.
__bf16 __truncsfbf2(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  const auto half = static_cast<uint16_t>(
      nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  __bf16 result;
  memcpy(&result, &half, 2);
  return result;
}
}
