// Threads of a threadgroup as fibers: own stacks, switched by hand, on one thread of the machine.
#pragma once
#include "abi.h"

constexpr size_t stack_bytes = 256 << 10;
constexpr uint32_t most_loops = 8;

// What a fiber waits for.
enum class State : uint8_t { ready, threadgroup_barrier, simdgroup_barrier, simd, done };

enum class Collective : uint8_t { reduce, scan, move, vote, multiply };

// A simdgroup function, as one lane asks for it; `out` is what it gets.
struct Request {
  Collective kind;
  uint32_t what;
  int32_t lane;
  Bits in[2], out;
};

struct Fiber {
  void* stack_pointer;
  char* stack;
  State state;
  uint32_t flags;
  uint64_t code;
  Request request;
  Position position;
  uint32_t turns[most_loops];  // of the loops around, outermost first
};

// Saves the callee-saved registers on the current stack, its pointer in *save, and resumes `to`.
extern "C" void metal_switch(void** save, void* to);

// A stack whose first resume calls `entry`.
void* fresh_stack(char* stack, void (*entry)());

// `count` stacks with a guard page below each.
char* allocate_stacks(size_t count);
