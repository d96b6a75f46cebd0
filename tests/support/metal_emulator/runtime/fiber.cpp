#include "fiber.h"

#include <sys/mman.h>

asm(R"(.text
.globl metal_switch
.hidden metal_switch
.type metal_switch,@function
metal_switch:
 pushq %rbp
 pushq %rbx
 pushq %r12
 pushq %r13
 pushq %r14
 pushq %r15
 movq %rsp,(%rdi)
 movq %rsi,%rsp
 popq %r15
 popq %r14
 popq %r13
 popq %r12
 popq %rbx
 popq %rbp
 ret
.size metal_switch,.-metal_switch
)");

void* fresh_stack(char* stack, void (*entry)()) {
  auto* top = reinterpret_cast<uint64_t*>(stack + stack_bytes);
  *--top = 0;  // entry finds the alignment a call would leave
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; i++) *--top = 0;
  return top;
}

char* allocate_stacks(size_t count) {
  constexpr size_t guard = 4096;
  const size_t bytes = count * (stack_bytes + guard);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  char* base = static_cast<char*>(memory);
  for (size_t i = 0; i < count; i++) mprotect(base + i * (stack_bytes + guard), guard, PROT_NONE);
  return base + guard;
}
