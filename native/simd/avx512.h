// Vectors of sixteen floats: AVX-512 with its byte, word and doubleword instructions. A variant that
// has more than these includes this file too, under its own name (amx.h, vnni.h).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../gptoss.h"

#if !defined(GPTOSS_VARIANT)
#define GPTOSS_VARIANT avx512
#define GPTOSS_AVX512_ALONE
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#endif

namespace gptoss {
namespace GPTOSS_VARIANT {

constexpr int LANES = 16;
constexpr int REGISTERS = 32;
using Vec = __m512;

GPTOSS_INLINE bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#if defined(GPTOSS_AVX512_ALONE)
GPTOSS_INLINE bool supported() { return has_avx512(); }
#endif

GPTOSS_INLINE Vec zero() { return _mm512_setzero_ps(); }
GPTOSS_INLINE Vec fill(float x) { return _mm512_set1_ps(x); }
GPTOSS_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
GPTOSS_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
// A vector that is used several times: compilers would load it from memory again each time.
GPTOSS_INLINE Vec held(Vec a) {
    asm("" : "+v"(a));
    return a;
}
GPTOSS_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
GPTOSS_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
GPTOSS_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
GPTOSS_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
GPTOSS_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }

GPTOSS_INLINE float sum(Vec a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

// Columns of 16 numbers of 32 bits become rows.
GPTOSS_INLINE void transpose(__m512i r[LANES]) {
    __m512i t[LANES];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
    }
}

GPTOSS_INLINE void transpose(Vec r[LANES]) { transpose((__m512i*)r); }

// n to the nearest integer; 2^n of an integer n from -126 to 127.
GPTOSS_INLINE Vec nearest(Vec n) {
    return _mm512_roundscale_ps(n, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
GPTOSS_INLINE Vec power_of_two(Vec n) {
    const __m512i bits = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23));
}

// LANES consecutive values, widened.
GPTOSS_INLINE Vec load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
GPTOSS_INLINE Vec load_u8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

// Of 2 * LANES values of bfloat16, those at even places, or those at odd ones.
GPTOSS_INLINE Vec load_even(const uint8_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
GPTOSS_INLINE Vec load_odd(const uint8_t* p) {
    const __m512i mask = _mm512_set1_epi32(int(0xFFFF0000u));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), mask));
}

struct Table {
    Vec values;
};
GPTOSS_INLINE Table table(const Bytes& bytes) {
    const __m512i high = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i*)bytes.high));
    const __m512i low = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i*)bytes.low));
    return {_mm512_castsi512_ps(
        _mm512_or_si512(_mm512_slli_epi32(high, 24), _mm512_slli_epi32(low, 16)))};
}

#define GPTOSS_NIBBLES_ONE_BY_ONE
// 128 codes of 4 bits -> their values, in the order of `nibble_order`: vector i of them, or all. A
// lane's index is the lowest four bits of its doubleword, so nothing has to be masked. Lanes 4 * i to
// 4 * i + 3 are of the codes 32 * i to 32 * i + 31.
GPTOSS_INLINE Vec nibble(const uint8_t* p, const Table& t, int i) {
    const __m512i codes = _mm512_loadu_si512(p);
    return _mm512_permutexvar_ps(i == 0 ? codes : _mm512_srli_epi32(codes, 4 * i), t.values);
}
GPTOSS_INLINE void nibbles(const uint8_t* p, const Table& t, Vec w[8]) {
    for (int i = 0; i < 8; i++) w[i] = nibble(p, t, i);
}

// The number, from 0 to 127, of the code whose value lies at a place of `nibbles`.
constexpr int nibble_order(int place) { return 8 * (place % 16) + place / 16; }

// Scales of the groups of 32 that a vector of `nibbles` has lanes of.
GPTOSS_INLINE Vec power_scales(const uint8_t* exponents) {
    int32_t four;
    std::memcpy(&four, exponents, 4);
    const __m512i each = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(
        _mm_cvtsi32_si128(four),
        _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)));
    // 2^-127, of the exponent 0, is subnormal.
    const __m512i least = _mm512_set1_epi32(0x00400000);
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(each, 23), least));
}

// LANES codes of BITS bits, 2 to 7, from the code number `first` on, a multiple of LANES.
template <int BITS>
GPTOSS_INLINE Vec load_codes(const uint8_t* p, int first) {
    const int64_t low = int64_t(load_bytes<BITS>(p + first * BITS / 8));
    const int64_t high = int64_t(load_bytes<BITS>(p + first * BITS / 8 + BITS));
    const __m512i words = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_set1_epi64x(low)), _mm256_set1_epi64x(high), 1);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i at = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(BITS));
    // Into each lane the two bytes that have its code, which begins at bit `at`.
    const __m512i one = _mm512_srli_epi32(at, 3);
    const __m512i two = _mm512_slli_epi32(_mm512_add_epi32(one, _mm512_set1_epi32(1)), 8);
    const __m512i absent = _mm512_set1_epi32(int(0x80800000u));
    const __m512i spread = _mm512_or_si512(_mm512_or_si512(one, two), absent);
    const __m512i both = _mm512_shuffle_epi8(words, spread);
    const __m512i shifted = _mm512_srlv_epi32(both, _mm512_and_si512(at, _mm512_set1_epi32(7)));
    return _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32((1 << BITS) - 1)));
}

// Into the first cache; into the second one.
GPTOSS_INLINE void prefetch(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
GPTOSS_INLINE void prefetch_far(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
