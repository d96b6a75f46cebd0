// AVX-512 with VNNI, which multiplies bytes: 64 products at a time, summed in fours.
#pragma once

#include <immintrin.h>

#define GPTOSS_VARIANT vnni
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma")
#endif

#include "avx512.h"

namespace gptoss {
namespace vnni {

static bool supported() {
    return has_avx512() && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vnni");
}

#define GPTOSS_PLANES
using Ints = __m512i;
GPTOSS_INLINE Ints load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
GPTOSS_INLINE Ints zero_ints() { return _mm512_setzero_si512(); }
GPTOSS_INLINE Ints plus_256_times(Ints a, Ints b) {
    return _mm512_add_epi32(a, _mm512_slli_epi32(b, 8));
}
GPTOSS_INLINE Vec to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }

// 512 codes as planes.h has them: in each lane four of the group's, from its bytes 4 * k to 4 * k + 3
// the lower halves at 2 * k, the upper at 2 * k + 1.
struct CodeBytes {
    __m512i of[8];
};
GPTOSS_INLINE CodeBytes bytes_of_codes(const uint8_t* p) {
    // The lowest six bits are the index: four times the same values, so nothing has to be masked.
    const __m512i bytes = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    __m512i t[4], codes[4];
    for (int i = 0; i < 2; i++) {
        const __m512i a = _mm512_loadu_si512(p + 128 * i), b = _mm512_loadu_si512(p + 128 * i + 64);
        t[i] = _mm512_unpacklo_epi32(a, b);
        t[i + 2] = _mm512_unpackhi_epi32(a, b);
    }
    for (int i = 0; i < 2; i++) {
        codes[2 * i] = _mm512_unpacklo_epi64(t[2 * i], t[2 * i + 1]);
        codes[2 * i + 1] = _mm512_unpackhi_epi64(t[2 * i], t[2 * i + 1]);
    }
    CodeBytes w;
    GPTOSS_UNROLL
    for (int k = 0; k < 4; k++) {
        w.of[2 * k] = _mm512_permutexvar_epi8(codes[k], bytes);
        w.of[2 * k + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes[k], 4), bytes);
    }
    return w;
}

// sums[o][plane] += the codes of output o times a plane of digits.
template <int O>
GPTOSS_INLINE void add_digits(
    const CodeBytes w[O], const int8_t (*digits)[8][64], Ints sums[O][DIGITS]) {
    GPTOSS_UNROLL
    for (int i = 0; i < 8; i++) {
        GPTOSS_UNROLL
        for (int plane = 0; plane < DIGITS; plane++) {
            const __m512i x = (__m512i)held((Vec)_mm512_loadu_si512(digits[plane][i]));
            GPTOSS_UNROLL
            for (int o = 0; o < O; o++) {
                sums[o][plane] = _mm512_dpbusd_epi32(sums[o][plane], w[o].of[i], x);
            }
        }
    }
}

// Scales of sixteen groups, in the lanes where `bytes_of_codes` has them.
GPTOSS_INLINE Vec lane_scales(const uint8_t* exponents) {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m128i each = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)exponents), order);
    // 2^-127, of the exponent 0, is subnormal.
    const __m512i least = _mm512_set1_epi32(0x00400000);
    return _mm512_castsi512_ps(
        _mm512_max_epi32(_mm512_slli_epi32(_mm512_cvtepu8_epi32(each), 23), least));
}

}  // namespace vnni
}  // namespace gptoss
