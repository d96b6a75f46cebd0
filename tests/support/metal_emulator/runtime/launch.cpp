// One launch: buffers between guard pages, threadgroups in the launch's order, results.
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "machine.h"

namespace {

constexpr uint64_t page = 4096, huge_page = 2 << 20, gap = 4ull << 30, shared_gap = 1 << 20;
constexpr uint8_t poison = 0xff;  // a NaN in every floating type

uint64_t pages(uint64_t bytes) { return (bytes + page - 1) / page * page; }

std::unordered_map<char*, void*> bases;  // of mappings, by where their memory starts

// Memory far from any other, so that a wrong index ends in a hole.
char* guarded(uint64_t bytes) {
  const uint64_t whole = pages(bytes) + gap;
  void* base = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  // Aligned for huge pages: most of a launch's overhead is the faults of its copies.
  const uint64_t middle = reinterpret_cast<uint64_t>(base) + gap / 2;
  char* data = reinterpret_cast<char*>((middle + huge_page - 1) / huge_page * huge_page);
  mprotect(data, pages(bytes), PROT_READ | PROT_WRITE);
  if (bytes >= 2 * huge_page) madvise(data, pages(bytes), MADV_HUGEPAGE);
  bases[data] = base;
  return data;
}
void release(char* data, uint64_t bytes) {
  munmap(bases[data], pages(bytes) + gap);
  bases.erase(data);
}

// Threadgroup variables of one threadgroup, each in its own megabyte.
char* shared_arena() {
  static char* arena = guarded(256 * shared_gap);
  return arena;
}

void grow_fibers(uint32_t count) {
  const size_t have = machine.fibers.size();
  if (have >= count) return;
  char* stacks = allocate_stacks(count - have);
  for (size_t i = have; i < count; i++) {
    Fiber fiber{};
    fiber.stack = stacks + (i - have) * (stack_bytes + page);
    machine.fibers.push_back(fiber);
  }
}

Cell* new_cells(uint64_t bytes) { return static_cast<Cell*>(calloc(bytes + 1, sizeof(Cell))); }

void add_buffer(const Buffer& buffer, uint64_t& argument) {
  argument = buffer.data;
  if (!machine.options.check) return;
  char* copy = guarded(buffer.bytes);
  memcpy(copy, reinterpret_cast<void*>(buffer.data), buffer.bytes);
  argument = reinterpret_cast<uint64_t>(copy);
  machine.regions.push_back({argument, argument + buffer.bytes, device_memory,
                             buffer.writable != 0, buffer.initialised != 0, buffer.name,
                             buffer.writable ? new_cells(buffer.bytes) : nullptr});
}

uint64_t unwritten(const Region& region) {
  uint64_t count = 0;
  for (uint64_t i = 0; region.cells && i < region.high - region.low; i++)
    count += region.cells[i].written == 0;
  return count;
}

void take_back(const Buffer* buffers, uint32_t count, Traffic* traffic) {
  if (machine.options.trace) {
    const auto& totals = machine.tracer.finish();
    for (uint32_t i = 0; i < count; i++) traffic[i] = totals[i];
    machine.totals.threadgroup_read = totals[count].read_bytes;
    machine.totals.threadgroup_written = totals[count].written_bytes;
    machine.totals.threadgroup_accesses = totals[count].accesses;
  }
  for (uint32_t i = 0; i < count && machine.options.check; i++) {
    const Region& region = machine.regions[i];
    char* copy = reinterpret_cast<char*>(region.low);
    if (buffers[i].writable) memcpy(reinterpret_cast<void*>(buffers[i].data), copy, buffers[i].bytes);
    traffic[i].unwritten = region.initialised ? 0 : unwritten(region);
    release(copy, buffers[i].bytes);
  }
  for (Region& region : machine.regions) free(region.cells);
  machine.regions.clear();
}

void place(const uint32_t* grid, const uint32_t* size, const uint32_t* groups, uint32_t group) {
  const uint32_t at[3] = {group % groups[0], group / groups[0] % groups[1],
                          group / (groups[0] * groups[1])};
  uint32_t actual[3];  // a threadgroup at the grid's edge is smaller
  for (int i = 0; i < 3; i++) {
    const uint32_t left = grid[i] - at[i] * size[i];
    actual[i] = left < size[i] ? left : size[i];
  }
  machine.group = group;
  machine.threads = actual[0] * actual[1] * actual[2];
  machine.simdgroups = (machine.threads + 31) / 32;
  for (uint32_t t = 0; t < machine.threads; t++) {
    Position& p = machine.fibers[t].position;
    const uint32_t in[3] = {t % actual[0], t / actual[0] % actual[1],
                            t / (actual[0] * actual[1])};
    for (int i = 0; i < 3; i++) {
      p.in_threadgroup[i] = in[i];
      p.threadgroup[i] = at[i];
      p.in_grid[i] = at[i] * size[i] + in[i];
      p.grid_size[i] = grid[i];
      p.threadgroups[i] = groups[i];
      p.size[i] = actual[i];
      p.dispatched_size[i] = size[i];
    }
    p.index = t;
    p.lane = t % 32;
    p.simdgroup = t / 32;
    p.simdgroups = machine.simdgroups;
    p.dispatched_simdgroups = (size[0] * size[1] * size[2] + 31) / 32;
  }
}

void start_group() {
  machine.group_start = ++machine.clock;
  machine.group_starts.push_back(machine.clock);
  machine.group_ids.push_back(machine.group);
  const Barriers none{{machine.clock, machine.clock}, machine.clock};
  machine.group_barriers = none;
  machine.simdgroup_barriers.assign(machine.simdgroups, none);
  machine.shared.clear();
  machine.shared_bytes = 0;
}

std::vector<uint32_t> group_order(uint32_t count) {
  std::vector<uint32_t> order(count);
  const auto how = static_cast<Order>(machine.options.order);
  for (uint32_t i = 0; i < count; i++) order[i] = how == Order::reverse ? count - 1 - i : i;
  if (how == Order::random)
    for (uint32_t i = count; i > 1; i--) std::swap(order[i - 1], order[machine.random() % i]);
  return order;
}

void reset(const Options& options, Entry entry, uint64_t* arguments) {
  machine.options = options;
  machine.totals = {};
  machine.entry = entry;
  machine.arguments = arguments;
  machine.random_state = options.seed * 0x9E3779B97F4A7C15ull + 1;
  machine.clock = 0;
  machine.stopped = false;
  machine.current = nullptr;
  machine.group_starts.clear();
  machine.group_ids.clear();
  machine.reports.clear();
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(entry), &info);
  machine.code_low = reinterpret_cast<uint64_t>(info.dli_fbase);
  machine.totals.code_base = machine.code_low;
}

}  // namespace

extern "C" {
// A `threadgroup` variable of the kernel: one place for the whole threadgroup.
void* mtl_threadgroup_memory(const char* name, uint32_t id, uint64_t bytes, uint64_t alignment) {
  for (const Shared& known : machine.shared)
    if (known.id == id && known.bytes == bytes) return known.at;
  alignment = alignment < 16 ? 16 : alignment;
  machine.shared_bytes = (machine.shared_bytes + alignment - 1) / alignment * alignment + bytes;
  if (machine.shared_bytes > machine.totals.threadgroup_bytes)
    machine.totals.threadgroup_bytes = machine.shared_bytes;
  if (machine.shared_bytes > machine.options.threadgroup_limit || machine.shared.size() == 128) {
    Report r = at_hand(Fault::too_much_threadgroup_memory,
                       reinterpret_cast<uint64_t>(__builtin_return_address(0)));
    snprintf(r.region, sizeof r.region, "%s", name);
    r.offset = static_cast<int64_t>(machine.shared_bytes);
    r.size = machine.options.threadgroup_limit;
    give_up(r);
  }
  char* at = shared_arena() + machine.shared.size() * 2 * shared_gap;
  memset(at, poison, bytes);
  const auto low = reinterpret_cast<uint64_t>(at);
  if (machine.options.check) {
    // The cells of an earlier threadgroup serve again: its records are older than this one's birth.
    const size_t index = machine.buffers + machine.shared.size();
    if (index < machine.regions.size() && machine.regions[index].high - machine.regions[index].low != bytes) {
      free(machine.regions[index].cells);
      machine.regions[index].cells = new_cells(bytes);
    }
    if (index >= machine.regions.size())
      machine.regions.push_back({low, low + bytes, threadgroup_memory, true, false, name, new_cells(bytes)});
    Region& region = machine.regions[index];
    region.high = low + bytes;
    region.name = name;
  }
  machine.shared.push_back({id, bytes, at});
  return at;
}

// Runs the whole grid. Returns how many reports there are; `traffic` has one entry a buffer.
int32_t metal_launch(Entry entry, const Buffer* buffers, uint32_t count, const uint32_t* grid,
                     const uint32_t* threadgroup, const Options* options, Traffic* traffic,
                     Totals* totals, Report* reports, uint32_t most_reports) {
  std::vector<uint64_t> arguments(count), sizes;
  reset(*options, entry, arguments.data());
  machine.buffers = count;
  for (uint32_t i = 0; i < count; i++) {
    add_buffer(buffers[i], arguments[i]);
    sizes.push_back(buffers[i].bytes);
  }
  uint32_t groups[3];
  for (int i = 0; i < 3; i++) groups[i] = (grid[i] + threadgroup[i] - 1) / threadgroup[i];
  const uint32_t threads = threadgroup[0] * threadgroup[1] * threadgroup[2];
  grow_fibers(threads);
  sizes.push_back(0);
  machine.tracer.start(sizes, (threads + 31) / 32);
  for (uint32_t group : group_order(groups[0] * groups[1] * groups[2])) {
    place(grid, threadgroup, groups, group);
    start_group();
    run_threadgroup();
    machine.totals.threadgroups++;
    if (machine.stopped) break;
  }
  take_back(buffers, count, traffic);
  *totals = machine.totals;
  const auto found = static_cast<uint32_t>(machine.reports.size());
  for (uint32_t i = 0; i < found && i < most_reports; i++) reports[i] = machine.reports[i];
  return static_cast<int32_t>(found);
}
}
