// Simdgroup functions: each lane leaves its value and waits; the last one's arrival lets the
// scheduler compute for all of them.
#include <cstring>

#include "machine.h"

namespace {

// Codes of metal_simdgroup.
enum Element : uint32_t { i8, u8, i16, u16, i32, u32, f16, bf16, f32 };
enum Operation : uint32_t { sum, product, minimum, maximum, bit_and, bit_or, bit_xor };
enum Movement : uint32_t {
  to, by_xor, down, up, fill_down, fill_up, rotate_down, rotate_up, first
};

template <typename T>
T combine(uint32_t operation, T a, T b) {
  switch (operation) {
    case sum: return static_cast<T>(a + b);
    case product: return static_cast<T>(a * b);
    case minimum: return b < a ? b : a;
    case maximum: return b > a ? b : a;
    default: break;
  }
  if constexpr (std::is_integral_v<T>) {
    if (operation == bit_and) return a & b;
    if (operation == bit_or) return a | b;
    return a ^ b;
  }
  return a;
}

template <typename T>
T get(const Bits& bits, uint32_t i) {
  T value;
  memcpy(&value, reinterpret_cast<const char*>(&bits) + i * sizeof(T), sizeof(T));
  return value;
}
template <typename T>
void put(Bits& bits, uint32_t i, T value) {
  memcpy(reinterpret_cast<char*>(&bits) + i * sizeof(T), &value, sizeof(T));
}

// Neighbours first, as a GPU's tree does; lanes that are not active are left out.
template <typename T>
T reduce_tree(uint32_t operation, const T* values, uint32_t mask, uint32_t low, uint32_t lanes) {
  if (lanes == 1) return values[low];
  const uint32_t half = lanes / 2, part = half == 32 ? ~0u : (1u << half) - 1;
  const bool left = mask >> low & part, right = mask >> (low + half) & part;
  if (!right) return reduce_tree(operation, values, mask, low, half);
  if (!left) return reduce_tree(operation, values, mask, low + half, half);
  return combine(operation, reduce_tree(operation, values, mask, low, half),
                 reduce_tree(operation, values, mask, low + half, half));
}

template <typename T>
void reduce(Fiber* lanes, uint32_t mask, uint32_t what) {
  const uint32_t operation = what & 0xff, width = what >> 16 & 0xf, scope = what >> 24;
  T values[32];
  for (uint32_t i = 0; i < width; i++) {
    for (uint32_t l = 0; l < 32; l++)
      if (mask >> l & 1) values[l] = get<T>(lanes[l].request.in[0], i);
    for (uint32_t low = 0; low < 32; low += scope) {
      const uint32_t members = scope == 32 ? mask : mask >> low & 0xf;
      if (!members) continue;
      const T result = reduce_tree(operation, values, mask, low, scope);
      for (uint32_t l = low; l < low + scope; l++)
        if (mask >> l & 1) put(lanes[l].request.out, i, result);
    }
  }
}

template <typename T>
void scan(Fiber* lanes, uint32_t mask, uint32_t what) {
  const uint32_t operation = what & 0xff, width = what >> 16 & 0xf;
  const bool exclusive = what >> 20 & 1;
  for (uint32_t i = 0; i < width; i++) {
    T running = static_cast<T>(operation == product ? 1 : 0);
    for (uint32_t l = 0; l < 32; l++) {
      if (!(mask >> l & 1)) continue;
      const T with = combine(operation, running, get<T>(lanes[l].request.in[0], i));
      put(lanes[l].request.out, i, exclusive ? running : with);
      running = with;
    }
  }
}

#define FOR_ELEMENT(function, ...)                          \
  switch (what >> 8 & 0xff) {                               \
    case i8: return function<int8_t>(__VA_ARGS__);          \
    case u8: return function<uint8_t>(__VA_ARGS__);         \
    case i16: return function<int16_t>(__VA_ARGS__);        \
    case u16: return function<uint16_t>(__VA_ARGS__);       \
    case i32: return function<int32_t>(__VA_ARGS__);        \
    case u32: return function<uint32_t>(__VA_ARGS__);       \
    case f16: return function<_Float16>(__VA_ARGS__);       \
    case bf16: return function<__bf16>(__VA_ARGS__);        \
    default: return function<float>(__VA_ARGS__);           \
  }

void reduce_any(Fiber* lanes, uint32_t mask, uint32_t what) {
  FOR_ELEMENT(reduce, lanes, mask, what)
}
void scan_any(Fiber* lanes, uint32_t mask, uint32_t what) { FOR_ELEMENT(scan, lanes, mask, what) }

void inactive(Fiber& fiber, int32_t source) {
  machine.current = &fiber;
  Report r = at_hand(Fault::inactive_lane, fiber.code);
  r.offset = source;
  report(r);
  machine.current = nullptr;
}

void move(Fiber* lanes, uint32_t mask) {
  for (uint32_t l = 0; l < 32; l++) {
    if (!(mask >> l & 1)) continue;
    Request& r = lanes[l].request;
    const uint32_t how = r.what & 0xff;
    const int32_t scope = r.what >> 24, low = l / scope * scope, me = l - low;
    int32_t source = r.lane;
    if (how == by_xor) source = me ^ r.lane;
    if (how == down || how == fill_down) source = me + r.lane;
    if (how == up || how == fill_up) source = me - r.lane;
    if (how == rotate_down) source = (me + r.lane) % scope;
    if (how == rotate_up) source = (me - r.lane % scope + scope) % scope;
    if (how == first) source = __builtin_ctz(mask);
    if (how == fill_down && source >= scope) {
      // The values that come in are the fill's first ones.
      r.out = lanes[low + (source - scope) % scope].request.in[1];
    } else if (how == fill_up && source < 0) {
      r.out = lanes[low + (source + scope) % scope].request.in[1];
    } else if ((how == down && source >= scope) || (how == up && source < 0)) {
      r.out = r.in[0];  // Metal leaves these lanes their own value
    } else if (source < 0 || source >= scope || !(mask >> (low + source) & 1)) {
      inactive(lanes[l], source);
      r.out = r.in[0];
    } else {
      r.out = lanes[low + source].request.in[0];
    }
  }
}

void vote(Fiber* lanes, uint32_t mask) {
  uint64_t yes = 0;
  for (uint32_t l = 0; l < 32; l++)
    if (mask >> l & 1) yes |= (lanes[l].request.in[0].lo & 1) << l;
  for (uint32_t l = 0; l < 32; l++)
    if (mask >> l & 1) lanes[l].request.out.lo = yes | static_cast<uint64_t>(mask) << 32;
}

float widen(uint64_t bits, uint32_t element, uint32_t i) {
  const Bits b{bits, 0};
  if (element == f16) return static_cast<float>(get<_Float16>(b, i));
  if (element == bf16) return static_cast<float>(get<__bf16>(b, i));
  return get<float>(b, i);
}

// Where metal_simdgroup_matrix keeps a lane's two elements.
uint32_t matrix_row(uint32_t lane) { return (lane / 4 & 4) + lane / 2 % 4; }
uint32_t matrix_column(uint32_t lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

void multiply(Fiber* lanes, uint32_t mask) {
  if (mask != ~0u) return inactive(lanes[__builtin_ctz(mask)], __builtin_ctz(~mask));
  const uint32_t types = lanes[0].request.what;
  float a[8][8], b[8][8];
  for (uint32_t l = 0; l < 32; l++) {
    const Bits& in = lanes[l].request.in[0];
    for (uint32_t i = 0; i < 2; i++) {
      a[matrix_row(l)][matrix_column(l) + i] = widen(in.lo, types & 0xf, i);
      b[matrix_row(l)][matrix_column(l) + i] = widen(in.hi, types >> 4 & 0xf, i);
    }
  }
  for (uint32_t l = 0; l < 32; l++) {
    Request& r = lanes[l].request;
    for (uint32_t i = 0; i < 2; i++) {
      float sum = widen(r.in[1].lo, types >> 8 & 0xf, i);
      for (uint32_t k = 0; k < 8; k++)
        sum = __builtin_fmaf(a[matrix_row(l)][k], b[k][matrix_column(l) + i], sum);
      const uint32_t element = types >> 12 & 0xf;
      if (element == f16) put(r.out, i, static_cast<_Float16>(sum));
      else if (element == bf16) put(r.out, i, static_cast<__bf16>(sum));
      else put(r.out, i, sum);
    }
  }
  machine.totals.multiplications++;
}

// The request stands in the fiber while the others run.
Bits ask(Collective kind, uint32_t what, int32_t lane, Bits first, Bits second, uint64_t code) {
  Fiber& me = *machine.current;
  me.request = {kind, what, lane, {first, second}, {}};
  me.state = State::simd;
  me.code = code;
  suspend();
  return me.request.out;
}

}  // namespace

void complete(Fiber* lanes, uint32_t mask, uint32_t) {
  machine.totals.simd_operations++;
  const Request& any = lanes[__builtin_ctz(mask)].request;
  switch (any.kind) {
    case Collective::reduce: return reduce_any(lanes, mask, any.what);
    case Collective::scan: return scan_any(lanes, mask, any.what);
    case Collective::move: return move(lanes, mask);
    case Collective::vote: return vote(lanes, mask);
    case Collective::multiply: return multiply(lanes, mask);
  }
}

#define RETURN_ADDRESS reinterpret_cast<uint64_t>(__builtin_return_address(0))

extern "C" {
uint32_t mtl_lane() { return machine.current->position.lane; }
Bits mtl_simd_reduce(uint32_t what, Bits v) {
  return ask(Collective::reduce, what, 0, v, {}, RETURN_ADDRESS);
}
Bits mtl_simd_scan(uint32_t what, Bits v) {
  return ask(Collective::scan, what, 0, v, {}, RETURN_ADDRESS);
}
Bits mtl_simd_move(uint32_t how, int32_t lane, Bits v, Bits fill) {
  return ask(Collective::move, how, lane, v, fill, RETURN_ADDRESS);
}
uint64_t mtl_simd_vote(uint32_t yes) {
  return ask(Collective::vote, 0, 0, {yes != 0, 0}, {}, RETURN_ADDRESS).lo;
}
Bits mtl_simd_multiply(uint32_t types, uint64_t a, uint64_t b, uint64_t c) {
  return ask(Collective::multiply, types, 0, {a, b}, {c, 0}, RETURN_ADDRESS);
}
void mtl_threadgroup_barrier(uint32_t flags) {
  Fiber& me = *machine.current;
  me.state = State::threadgroup_barrier;
  me.flags = flags;
  me.code = RETURN_ADDRESS;
  suspend();
}
void mtl_simdgroup_barrier(uint32_t flags) {
  Fiber& me = *machine.current;
  me.state = State::simdgroup_barrier;
  me.flags = flags;
  me.code = RETURN_ADDRESS;
  suspend();
}
}
