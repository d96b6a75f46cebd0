// Runs one threadgroup: lanes of a simdgroup until they wait, simdgroups in the launch's order.
#include "machine.h"

namespace {

void fiber_main() {
  machine.entry(machine.arguments, &machine.current->position);
  machine.current->state = State::done;
  suspend();
}

// `count` numbers in the order of the launch.
void arrange(uint32_t* numbers, uint32_t count) {
  const auto order = static_cast<Order>(machine.options.order);
  for (uint32_t i = 0; i < count; i++) numbers[i] = order == Order::reverse ? count - 1 - i : i;
  if (order != Order::random) return;
  for (uint32_t i = count; i > 1; i--) {
    const auto j = static_cast<uint32_t>(machine.random() % i);
    const uint32_t held = numbers[i - 1];
    numbers[i - 1] = numbers[j];
    numbers[j] = held;
  }
}

[[nodiscard]] bool stop(Fault fault, Fiber& fiber, Fiber* other, int64_t count) {
  machine.current = &fiber;
  Report r = at_hand(fault, fiber.code);
  if (other) {
    r.other_thread = other->position.index;
    r.other_code = other->code;
  }
  r.offset = count;
  report(r);
  machine.current = nullptr;
  machine.stopped = true;
  return false;
}

void pass(Barriers& barriers, uint32_t flags) {
  machine.clock++;
  barriers.any = machine.clock;
  if (flags & 1) barriers.flagged[device_memory] = machine.clock;
  if (flags & 2) barriers.flagged[threadgroup_memory] = machine.clock;
}

// What lies between two meetings of a simdgroup: its lanes run until each waits or is done.
void run_lanes(uint32_t low, uint32_t count) {
  uint32_t order[32];
  arrange(order, count);
  for (uint32_t i = 0; i < count && !machine.stopped; i++) {
    Fiber& fiber = machine.fibers[low + order[i]];
    if (fiber.state != State::ready) continue;
    machine.current = &fiber;
    metal_switch(&machine.scheduler, fiber.stack_pointer);
    machine.totals.switches++;
  }
  machine.current = nullptr;
}

// Whether the lanes may go on. Those still running wait at one place, or the kernel is wrong.
bool meet(uint32_t simdgroup, uint32_t low, uint32_t count) {
  Fiber* first = nullptr;
  uint32_t mask = 0;
  for (uint32_t i = 0; i < count; i++) {
    Fiber& fiber = machine.fibers[low + i];
    if (fiber.state == State::done) continue;
    if (fiber.state == State::ready) return true;  // it stepped back between two atomics
    if (!first) first = &fiber;
    if (fiber.state != first->state || fiber.code != first->code) {
      const bool barriers =
          fiber.state != State::simd && first->state != State::simd;
      return stop(barriers ? Fault::divergent_barrier : Fault::divergent_simd, *first, &fiber, 0);
    }
    mask |= 1u << i;
  }
  if (machine.options.trace) machine.tracer.meet(simdgroup);
  if (!first || first->state == State::threadgroup_barrier) return false;
  if (first->state == State::simd) {
    complete(first - first->position.lane, mask, count);
  } else {
    pass(machine.simdgroup_barriers[simdgroup], first->flags);
  }
  for (uint32_t i = 0; i < count; i++) {
    Fiber& fiber = machine.fibers[low + i];
    if (mask >> i & 1) fiber.state = State::ready;
  }
  return true;
}

uint32_t lanes_of(uint32_t simdgroup) {
  const uint32_t left = machine.threads - simdgroup * 32;
  return left < 32 ? left : 32;
}

// All simdgroups until every thread waits at a barrier of the threadgroup or is done.
void run_simdgroups() {
  std::vector<uint32_t> runnable(machine.simdgroups);
  for (uint32_t i = 0; i < machine.simdgroups; i++) runnable[i] = i;
  const auto order = static_cast<Order>(machine.options.order);
  while (!runnable.empty() && !machine.stopped) {
    size_t pick = order == Order::reverse ? runnable.size() - 1 : 0;
    if (order == Order::random) pick = machine.random() % runnable.size();
    const uint32_t simdgroup = runnable[pick];
    run_lanes(simdgroup * 32, lanes_of(simdgroup));
    if (machine.stopped) return;
    if (!meet(simdgroup, simdgroup * 32, lanes_of(simdgroup)))
      runnable.erase(runnable.begin() + static_cast<ptrdiff_t>(pick));
  }
}

// Whether threads remain that go on after a barrier which all of them reached.
bool pass_threadgroup_barrier() {
  Fiber* first = nullptr;
  uint32_t waiting = 0;
  for (uint32_t i = 0; i < machine.threads; i++) {
    Fiber& fiber = machine.fibers[i];
    if (fiber.state == State::done) continue;
    if (!first) first = &fiber;
    if (fiber.code != first->code) return stop(Fault::divergent_barrier, *first, &fiber, 0);
    waiting++;
  }
  if (!first) return false;
  if (waiting != machine.threads) return stop(Fault::missing_threads, *first, nullptr, waiting);
  machine.totals.barriers++;
  pass(machine.group_barriers, first->flags);
  for (uint32_t i = 0; i < machine.threads; i++) machine.fibers[i].state = State::ready;
  return true;
}

}  // namespace

void run_threadgroup() {
  for (uint32_t i = 0; i < machine.threads; i++) {
    Fiber& fiber = machine.fibers[i];
    fiber.state = State::ready;
    fiber.stack_pointer = fresh_stack(fiber.stack, fiber_main);
    for (uint32_t& turn : fiber.turns) turn = 0;
  }
  do {
    run_simdgroups();
  } while (!machine.stopped && pass_threadgroup_barrier());
}
