// Vectors of eight floats: AVX2 and FMA.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../gptoss.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace gptoss {
namespace avx2 {

constexpr int LANES = 8;
constexpr int REGISTERS = 16;
using Vec = __m256;

GPTOSS_INLINE bool supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

GPTOSS_INLINE Vec zero() { return _mm256_setzero_ps(); }
GPTOSS_INLINE Vec fill(float x) { return _mm256_set1_ps(x); }
GPTOSS_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
GPTOSS_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
// A vector that is used several times: compilers would load it from memory again each time.
GPTOSS_INLINE Vec held(Vec a) {
    asm("" : "+x"(a));
    return a;
}
GPTOSS_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
GPTOSS_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
GPTOSS_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
GPTOSS_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
GPTOSS_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }

GPTOSS_INLINE float sum(Vec a) {
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

// Columns become rows.
GPTOSS_INLINE void transpose(Vec r[LANES]) {
    Vec t[LANES];
    for (int i = 0; i < 8; i += 4) {
        const Vec a = _mm256_unpacklo_ps(r[i], r[i + 1]), b = _mm256_unpackhi_ps(r[i], r[i + 1]);
        const Vec c = _mm256_unpacklo_ps(r[i + 2], r[i + 3]);
        const Vec d = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm256_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm256_shuffle_ps(a, c, 0xEE);
        t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm256_shuffle_ps(b, d, 0xEE);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
    }
}

// n to the nearest integer; 2^n of an integer n from -126 to 127.
GPTOSS_INLINE Vec nearest(Vec n) {
    return _mm256_round_ps(n, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
GPTOSS_INLINE Vec power_of_two(Vec n) {
    const __m256i bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
}

// LANES consecutive values, widened.
GPTOSS_INLINE Vec load_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
GPTOSS_INLINE Vec load_u8(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}

// Of 2 * LANES values of bfloat16, those at even places, or those at odd ones.
GPTOSS_INLINE Vec load_even(const uint8_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)p), 16));
}
GPTOSS_INLINE Vec load_odd(const uint8_t* p) {
    const __m256i mask = _mm256_set1_epi32(int(0xFFFF0000u));
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i*)p), mask));
}

struct Table {
    __m256i high, low;
};
GPTOSS_INLINE Table table(const Bytes& bytes) {
    return {
        _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)bytes.high)),
        _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)bytes.low))};
}

// 64 codes of 4 bits -> their values, in the order of `nibble_order`. Lanes 0 to 3 are of the first
// 32 codes, lanes 4 to 7 of the others.
GPTOSS_INLINE void nibbles(const uint8_t* p, const Table& t, Vec w[8]) {
    const __m256i codes = _mm256_loadu_si256((const __m256i*)p), mask = _mm256_set1_epi8(15);
    const __m256i upper = _mm256_set1_epi32(int(0xFFFF0000u));
    const __m256i parts[2] = {
        _mm256_and_si256(codes, mask), _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask)};
    for (int i = 0; i < 2; i++) {
        const __m256i high = _mm256_shuffle_epi8(t.high, parts[i]);
        const __m256i low = _mm256_shuffle_epi8(t.low, parts[i]);
        const __m256i a = _mm256_unpacklo_epi8(low, high), b = _mm256_unpackhi_epi8(low, high);
        w[4 * i + 0] = _mm256_castsi256_ps(_mm256_slli_epi32(a, 16));
        w[4 * i + 1] = _mm256_castsi256_ps(_mm256_and_si256(a, upper));
        w[4 * i + 2] = _mm256_castsi256_ps(_mm256_slli_epi32(b, 16));
        w[4 * i + 3] = _mm256_castsi256_ps(_mm256_and_si256(b, upper));
    }
}

// The number, from 0 to 63, of the code whose value lies at a place of `nibbles`.
constexpr int nibble_order(int place) {
    const int vector = place / 8, lane = place % 8;
    const int byte = vector % 4 / 2 * 8 + lane % 4 * 2 + vector % 2;
    return lane / 4 * 32 + 2 * byte + vector / 4;
}

// Scales of the groups of 32 that a vector of `nibbles` has lanes of.
GPTOSS_INLINE Vec power_scales(const uint8_t* exponents) {
    uint16_t both;
    std::memcpy(&both, exponents, 2);
    const __m256i spread = _mm256_setr_epi8(
        0, -1, -1, -1, 0, -1, -1, -1, 0, -1, -1, -1, 0, -1, -1, -1,
        1, -1, -1, -1, 1, -1, -1, -1, 1, -1, -1, -1, 1, -1, -1, -1);
    const __m256i each = _mm256_shuffle_epi8(_mm256_set1_epi16(int16_t(both)), spread);
    // 2^-127, of the exponent 0, is subnormal.
    const __m256i least = _mm256_set1_epi32(0x00400000);
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(each, 23), least));
}

// LANES codes of BITS bits, 2 to 7, from the code number `first` on, a multiple of LANES.
template <int BITS>
GPTOSS_INLINE Vec load_codes(const uint8_t* p, int first) {
    const int64_t word = int64_t(load_bytes<BITS>(p + first * BITS / 8));
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i at = _mm256_mullo_epi32(lanes, _mm256_set1_epi32(BITS));
    // Into each lane the two bytes that have its code, which begins at bit `at`.
    const __m256i one = _mm256_srli_epi32(at, 3);
    const __m256i two = _mm256_slli_epi32(_mm256_add_epi32(one, _mm256_set1_epi32(1)), 8);
    const __m256i absent = _mm256_set1_epi32(int(0x80800000u));
    const __m256i spread = _mm256_or_si256(_mm256_or_si256(one, two), absent);
    const __m256i both = _mm256_shuffle_epi8(_mm256_set1_epi64x(word), spread);
    const __m256i shifted = _mm256_srlv_epi32(both, _mm256_and_si256(at, _mm256_set1_epi32(7)));
    return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32((1 << BITS) - 1)));
}

#define GPTOSS_PLANES
using Ints = __m256i;
GPTOSS_INLINE Ints load_ints(const int32_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
GPTOSS_INLINE Ints zero_ints() { return _mm256_setzero_si256(); }
GPTOSS_INLINE Ints plus_256_times(Ints a, Ints b) {
    return _mm256_add_epi32(a, _mm256_slli_epi32(b, 8));
}
GPTOSS_INLINE Vec to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }

// 256 codes as planes.h has them: in each lane four of the group's, from its bytes 4 * k to 4 * k + 3
// the lower halves at 2 * k, the upper at 2 * k + 1.
struct CodeBytes {
    __m256i codes[4];  // widened where they are used: there are not registers enough
};
GPTOSS_INLINE CodeBytes bytes_of_codes(const uint8_t* p) {
    CodeBytes w;
    __m256i t[4];
    for (int i = 0; i < 2; i++) {
        const __m256i a = _mm256_loadu_si256((const __m256i*)(p + 64 * i));
        const __m256i b = _mm256_loadu_si256((const __m256i*)(p + 64 * i + 32));
        t[i] = _mm256_unpacklo_epi32(a, b);
        t[i + 2] = _mm256_unpackhi_epi32(a, b);
    }
    for (int i = 0; i < 2; i++) {
        w.codes[2 * i] = _mm256_unpacklo_epi64(t[2 * i], t[2 * i + 1]);
        w.codes[2 * i + 1] = _mm256_unpackhi_epi64(t[2 * i], t[2 * i + 1]);
    }
    return w;
}

// sums[o][plane] += the codes of output o times a plane of digits. In 16 bits four sums of two
// products are at most 4 * 2 * 24 * 128.
template <int O>
GPTOSS_INLINE void add_digits(
    const CodeBytes w[O], const int8_t (*digits)[8][32], Ints sums[O][DIGITS]) {
    const __m256i bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m256i mask = _mm256_set1_epi8(15);
    GPTOSS_UNROLL
    for (int o = 0; o < O; o++) {
        GPTOSS_UNROLL
        for (int k = 0; k < 4; k += 2) {
            __m256i v[4];
            for (int j = 0; j < 2; j++) {
                const __m256i upper = _mm256_srli_epi16(w[o].codes[k + j], 4);
                v[2 * j] = _mm256_shuffle_epi8(bytes, _mm256_and_si256(w[o].codes[k + j], mask));
                v[2 * j + 1] = _mm256_shuffle_epi8(bytes, _mm256_and_si256(upper, mask));
            }
            GPTOSS_UNROLL
            for (int plane = 0; plane < DIGITS; plane++) {
                __m256i products[4];
                GPTOSS_UNROLL
                for (int j = 0; j < 4; j++) {
                    const __m256i x = _mm256_loadu_si256((const __m256i*)digits[plane][2 * k + j]);
                    products[j] = _mm256_maddubs_epi16(v[j], x);
                }
                const __m256i pairs = _mm256_add_epi16(
                    _mm256_add_epi16(products[0], products[1]),
                    _mm256_add_epi16(products[2], products[3]));
                const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                sums[o][plane] = _mm256_add_epi32(sums[o][plane], fours);
            }
        }
    }
}

// Scales of eight groups, in the lanes where `bytes_of_codes` has them.
GPTOSS_INLINE Vec lane_scales(const uint8_t* exponents) {
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m128i each = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i*)exponents), order);
    // 2^-127, of the exponent 0, is subnormal.
    const __m256i least = _mm256_set1_epi32(0x00400000);
    return _mm256_castsi256_ps(
        _mm256_max_epi32(_mm256_slli_epi32(_mm256_cvtepu8_epi32(each), 23), least));
}

// Into the first cache; into the second one.
GPTOSS_INLINE void prefetch(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
GPTOSS_INLINE void prefetch_far(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

}  // namespace avx2
}  // namespace gptoss

#define GPTOSS_VARIANT avx2
