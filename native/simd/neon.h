// Vectors of four floats: NEON, which every 64-bit Arm processor has.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "../gptoss.h"

namespace gptoss {
namespace neon {

constexpr int LANES = 4;
constexpr int REGISTERS = 32;
using Vec = float32x4_t;

GPTOSS_INLINE bool supported() { return true; }

GPTOSS_INLINE Vec zero() { return vdupq_n_f32(0.0f); }
GPTOSS_INLINE Vec fill(float x) { return vdupq_n_f32(x); }
GPTOSS_INLINE Vec load(const float* p) { return vld1q_f32(p); }
GPTOSS_INLINE void store(float* p, Vec a) { vst1q_f32(p, a); }
// A vector that is used several times: compilers would load it from memory again each time.
GPTOSS_INLINE Vec held(Vec a) {
    asm("" : "+w"(a));
    return a;
}
GPTOSS_INLINE Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
GPTOSS_INLINE Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
GPTOSS_INLINE Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
GPTOSS_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
GPTOSS_INLINE Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
GPTOSS_INLINE float sum(Vec a) { return vaddvq_f32(a); }

// Columns become rows.
GPTOSS_INLINE void transpose(Vec r[LANES]) {
    const float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

// n to the nearest integer; 2^n of an integer n from -126 to 127.
GPTOSS_INLINE Vec nearest(Vec n) { return vrndnq_f32(n); }
GPTOSS_INLINE Vec power_of_two(Vec n) {
    const int32x4_t bits = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(bits, 23));
}

// LANES consecutive values, widened.
GPTOSS_INLINE Vec load_bf16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
GPTOSS_INLINE Vec load_u8(const uint8_t* p) {
    uint32_t four;
    std::memcpy(&four, p, 4);
    const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)));
}

// Of 2 * LANES values of bfloat16, those at even places, or those at odd ones.
GPTOSS_INLINE Vec load_even(const uint8_t* p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(vld1q_u8(p)), 16));
}
GPTOSS_INLINE Vec load_odd(const uint8_t* p) {
    const uint32x4_t both = vreinterpretq_u32_u8(vld1q_u8(p));
    return vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xFFFF0000u)));
}

struct Table {
    uint8x16_t high, low;
};
GPTOSS_INLINE Table table(const Bytes& bytes) {
    return {vld1q_u8(bytes.high), vld1q_u8(bytes.low)};
}

// 32 codes of 4 bits -> their values, in the order of `nibble_order`.
GPTOSS_INLINE void nibbles(const uint8_t* p, const Table& t, Vec w[8]) {
    const uint8x16_t codes = vld1q_u8(p);
    const uint8x16_t parts[2] = {vandq_u8(codes, vdupq_n_u8(15)), vshrq_n_u8(codes, 4)};
    for (int i = 0; i < 2; i++) {
        const uint8x16_t high = vqtbl1q_u8(t.high, parts[i]), low = vqtbl1q_u8(t.low, parts[i]);
        const uint16x8_t a = vreinterpretq_u16_u8(vzip1q_u8(low, high));
        const uint16x8_t b = vreinterpretq_u16_u8(vzip2q_u8(low, high));
        w[4 * i + 0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(a), 16));
        w[4 * i + 1] = vreinterpretq_f32_u32(vshll_high_n_u16(a, 16));
        w[4 * i + 2] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(b), 16));
        w[4 * i + 3] = vreinterpretq_f32_u32(vshll_high_n_u16(b, 16));
    }
}

// The number, from 0 to 31, of the code whose value lies at a place of `nibbles`.
constexpr int nibble_order(int place) { return place % 16 * 2 + place / 16; }

// The scale of a group of 32, in every lane.
GPTOSS_INLINE Vec power_scales(const uint8_t* exponents) {
    // 2^-127, of the exponent 0, is subnormal.
    const uint32_t bits = exponents[0] == 0 ? 0x00400000u : uint32_t(exponents[0]) << 23;
    return vreinterpretq_f32_u32(vdupq_n_u32(bits));
}

// LANES codes of BITS bits, 2 to 7, from the code number `first` on, a multiple of LANES.
template <int BITS>
GPTOSS_INLINE Vec load_codes(const uint8_t* p, int first) {
    const uint64_t word = load_bytes<BITS>(p + first / 8 * BITS);
    const uint32x4_t four = vdupq_n_u32(uint32_t(word >> first % 8 * BITS));
    const int32_t back[4] = {0, -BITS, -2 * BITS, -3 * BITS};
    const uint32x4_t shifted = vshlq_u32(four, vld1q_s32(back));
    return vcvtq_f32_u32(vandq_u32(shifted, vdupq_n_u32((1u << BITS) - 1)));
}

// Into the first cache; into the second one.
GPTOSS_INLINE void prefetch(const uint8_t* p) { __builtin_prefetch(p); }
GPTOSS_INLINE void prefetch_far(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace neon
}  // namespace gptoss

#define GPTOSS_VARIANT neon
