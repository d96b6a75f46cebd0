// Vectors of four floats in plain C++, for any processor; the compiler may make real ones of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../gptoss.h"

namespace gptoss {
namespace portable {

constexpr int LANES = 4;
constexpr int REGISTERS = 16;
struct Vec {
    float of[LANES];
};

GPTOSS_INLINE bool supported() { return true; }

GPTOSS_INLINE Vec fill(float x) { return {{x, x, x, x}}; }
GPTOSS_INLINE Vec zero() { return fill(0.0f); }
GPTOSS_INLINE Vec load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
GPTOSS_INLINE void store(float* p, Vec a) { std::memcpy(p, a.of, sizeof a.of); }
GPTOSS_INLINE Vec held(Vec a) { return a; }

GPTOSS_INLINE Vec add(Vec a, Vec b) {
    for (int i = 0; i < LANES; i++) a.of[i] += b.of[i];
    return a;
}
GPTOSS_INLINE Vec sub(Vec a, Vec b) {
    for (int i = 0; i < LANES; i++) a.of[i] -= b.of[i];
    return a;
}
GPTOSS_INLINE Vec mul(Vec a, Vec b) {
    for (int i = 0; i < LANES; i++) a.of[i] *= b.of[i];
    return a;
}
GPTOSS_INLINE Vec fma(Vec a, Vec b, Vec c) { return add(mul(a, b), c); }
GPTOSS_INLINE Vec max(Vec a, Vec b) {
    for (int i = 0; i < LANES; i++) a.of[i] = a.of[i] > b.of[i] ? a.of[i] : b.of[i];
    return a;
}

GPTOSS_INLINE float sum(Vec a) { return (a.of[0] + a.of[2]) + (a.of[1] + a.of[3]); }

// Columns become rows.
GPTOSS_INLINE void transpose(Vec r[LANES]) {
    for (int i = 0; i < LANES; i++) {
        for (int j = 0; j < i; j++) {
            const float x = r[i].of[j];
            r[i].of[j] = r[j].of[i];
            r[j].of[i] = x;
        }
    }
}

GPTOSS_INLINE Vec nearest(Vec n) {
    for (int i = 0; i < LANES; i++) n.of[i] = std::nearbyint(n.of[i]);
    return n;
}
GPTOSS_INLINE Vec power_of_two(Vec n) {
    for (int i = 0; i < LANES; i++) {
        const uint32_t bits = uint32_t(int32_t(n.of[i]) + 127) << 23;
        std::memcpy(&n.of[i], &bits, 4);
    }
    return n;
}

GPTOSS_INLINE float widened(uint16_t bf16) {
    const uint32_t bits = uint32_t(bf16) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
GPTOSS_INLINE Vec load_bf16(const uint16_t* p) {
    return {{widened(p[0]), widened(p[1]), widened(p[2]), widened(p[3])}};
}
GPTOSS_INLINE Vec load_u8(const uint8_t* p) {
    return {{float(p[0]), float(p[1]), float(p[2]), float(p[3])}};
}
GPTOSS_INLINE Vec load_half(const uint8_t* p, int first) {
    uint16_t values[2 * LANES];
    std::memcpy(values, p, sizeof values);
    Vec half;
    for (int i = 0; i < LANES; i++) half.of[i] = widened(values[2 * i + first]);
    return half;
}
GPTOSS_INLINE Vec load_even(const uint8_t* p) { return load_half(p, 0); }
GPTOSS_INLINE Vec load_odd(const uint8_t* p) { return load_half(p, 1); }

struct Table {
    float of[16];
};
GPTOSS_INLINE Table table(const Bytes& bytes) {
    Table t;
    for (int i = 0; i < 16; i++) t.of[i] = widened(uint16_t(bytes.high[i] << 8 | bytes.low[i]));
    return t;
}

// 32 codes of 4 bits -> their values, in order.
GPTOSS_INLINE void nibbles(const uint8_t* p, const Table& t, Vec w[8]) {
    for (int i = 0; i < 32; i++) {
        w[i / LANES].of[i % LANES] = t.of[i % 2 == 0 ? p[i / 2] & 15 : p[i / 2] >> 4];
    }
}
constexpr int nibble_order(int place) { return place; }

GPTOSS_INLINE Vec power_scales(const uint8_t* exponents) {
    // 2^-127, of the exponent 0, is subnormal.
    const uint32_t bits = exponents[0] == 0 ? 0x00400000u : uint32_t(exponents[0]) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return fill(scale);
}

// LANES codes of BITS bits, 2 to 7, from the code number `first` on.
template <int BITS>
GPTOSS_INLINE Vec load_codes(const uint8_t* p, int first) {
    Vec w;
    for (int i = 0; i < LANES; i++) {
        const int at = (first + i) * BITS;
        const int both = p[at / 8] | (at % 8 + BITS > 8 ? p[at / 8 + 1] << 8 : 0);
        w.of[i] = float(both >> at % 8 & ((1 << BITS) - 1));
    }
    return w;
}

// Into the first cache; into the second one.
GPTOSS_INLINE void prefetch(const uint8_t*) {}
GPTOSS_INLINE void prefetch_far(const uint8_t*) {}

}  // namespace portable
}  // namespace gptoss

#define GPTOSS_VARIANT portable
