// How each format's rows become tiles of bfloat16: matrices of 16 outputs and 32 inputs.
#pragma once

#include <immintrin.h>

#include "product.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

constexpr int TILE = 16;   // outputs of a tile of weights; columns of one of activations
constexpr int DEPTH = 32;  // inputs of a tile: a step
constexpr int TILE_BYTES = 1024;
constexpr int TILE_FLOATS = TILE * TILE;
constexpr int SIDES = 4;                            // tiles of outputs in a strip
constexpr int TILED = SIDES * TILE;                 // outputs of a strip
constexpr int64_t STEP_BYTES = SIDES * TILE_BYTES;  // of a plane of a strip's step

// The upper part of 32 floats as bfloat16, which is taken from them.
GPTOSS_INLINE __m512i take_part(Vec& a, Vec& b) {
    const __m512i part = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    const __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(part));
    const __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(part, 1));
    a = sub(a, _mm512_castsi512_ps(_mm512_slli_epi32(first, 16)));
    b = sub(b, _mm512_castsi512_ps(_mm512_slli_epi32(second, 16)));
    return part;
}

// The weights of a format as tiles. PLANES: numbers of bfloat16 that a weight is, at most. STEPS:
// steps widened at a time. ALWAYS: whether a few rows are multiplied in tiles too; AS_THEY_LIE:
// whether the matrix has tiles itself. Packed: the order in which `pack` has to lay activations;
// pair(i): the pair of a step's inputs that its weights have at place i. widen<N>(row, inputs,
// first, planes, out): the numbers of an output's inputs in the N steps from `first` on; those of
// plane p in step i go to out + (p * STEPS + i) * STEP_BYTES.
template <class F>
struct Tiled;

// Activations in their own order.
struct InOrder {
    static constexpr int CHUNK = DEPTH;
    static constexpr bool BIASED = false;
    static constexpr int order(int place) { return place; }
};

template <>
struct Tiled<Bfloat16> {
    using Packed = InOrder;
    static constexpr int PLANES = 1, STEPS = 4;
    static constexpr bool ALWAYS = true, AS_THEY_LIE = true;
    static constexpr int pair(int i) { return i; }

    template <int N>
    GPTOSS_INLINED static void widen(
        const Bfloat16& row, int64_t inputs, int64_t first, int, uint8_t* out) {
        for (int i = 0; i < N; i++) {
            const int64_t left = inputs - (first + i) * DEPTH;
            const __mmask32 some = left < DEPTH ? (1u << left) - 1 : ~0u;
            const __m512i w = _mm512_maskz_loadu_epi16(some, row.codes + (first + i) * DEPTH * 2);
            _mm512_store_si512(out + i * STEP_BYTES, w);
        }
    }
};

// The values of codes times 2^(e - 127), as bfloat16, of each exponent e. Each has them twice, since
// a lookup takes five bits of a lane, the highest of which is of the next code.
struct ScaledCodes {
    alignas(64) uint16_t of[256][32];

    constexpr ScaledCodes() : of() {
        for (int e = 0; e < 256; e++) {
            for (int i = 0; i < 32; i++) {
                const int bits = E2M1.high[i % 16] << 8 | E2M1.low[i % 16], sign = bits & 0x8000;
                const int exponent = (bits & 0x7FFF) / 128 + e - 127;
                // Tiles take what is less than 2^-126 as 0. Infinity times 0 would be no number.
                const bool nothing = (bits & 0x7FFF) == 0 || exponent <= 0;
                const int value =
                    nothing ? 0 : exponent >= 255 ? 0x7F7F : exponent << 7 | (bits & 0x7F);
                of[e][i] = uint16_t(sign | value);
            }
        }
    }
};
static constexpr ScaledCodes SCALED_CODES;

template <>
struct Tiled<Mxfp4> {
    using Packed = InOrder;
    static constexpr int PLANES = 1, STEPS = 4;
    static constexpr bool ALWAYS = true, AS_THEY_LIE = false;
    // Two pairs of the group's first half, two of the other, and so on.
    static constexpr int pair(int i) { return i / 4 * 2 + i % 2 + (i % 4 < 2 ? 0 : 8); }

    template <int N>
    GPTOSS_INLINED static void widen(
        const Mxfp4& row, int64_t, int64_t first, int, uint8_t* out) {
        // Eight bytes have sixteen codes; each of their two copies gives four of them to its lanes.
        const __m512i shifts = _mm512_set_epi64(
            0x003C003800340030, 0x003C003800340030, 0x002C002800240020, 0x002C002800240020,
            0x001C001800140010, 0x001C001800140010, 0x000C000800040000, 0x000C000800040000);
        for (int i = 0; i < N; i++) {
            const __m128i codes =
                _mm_loadu_si128((const __m128i*)(row.codes + (first + i) * (DEPTH / 2)));
            const __m512i lanes =
                _mm512_multishift_epi64_epi8(shifts, _mm512_broadcast_i64x2(codes));
            const __m512i values = _mm512_load_si512(SCALED_CODES.of[row.scales[first + i]]);
            _mm512_store_si512(out + i * STEP_BYTES, _mm512_permutexvar_epi16(lanes, values));
        }
    }
};

// Floats, split into as many parts as they need.
template <class F>
struct TiledFloats {
    using Packed = F;
    static constexpr int PLANES = 3, STEPS = 4;
    static constexpr bool ALWAYS = false, AS_THEY_LIE = false;
    static constexpr int pair(int i) { return i; }
    static_assert(STEPS * DEPTH % F::CHUNK == 0 && F::CHUNK % DEPTH == 0, "whole chunks");

    template <int N>
    GPTOSS_INLINED static void widen(
        const F& row, int64_t inputs, int64_t first, int planes, uint8_t* out) {
        constexpr int EACH = F::CHUNK / DEPTH;
        for (int i = 0; i < N; i += EACH) {
            const int64_t chunk = (first + i) / EACH, left = inputs - chunk * F::CHUNK;
            Vec w[F::VECS], scale;
            if (left >= F::CHUNK) {
                row.expand(row.codes + chunk * F::BYTES, w);
                scale = row.scale(chunk);
            } else {
                expand_last(row, chunk, left, w);
                scale = row.last_scale(chunk, left, false);
            }
            for (int j = 0; j < F::VECS; j += 2) {
                Vec a = F::SCALED ? mul(w[j], scale) : w[j];
                Vec b = F::SCALED ? mul(w[j + 1], scale) : w[j + 1];
                for (int p = 0; p < planes; p++) {
                    _mm512_store_si512(
                        out + (p * STEPS + i + j / 2) * STEP_BYTES, take_part(a, b));
                }
            }
        }
    }
};
template <>
struct Tiled<Float32> : TiledFloats<Float32> {};
template <int BITS, int WIDTH>
struct Tiled<Affine<BITS, WIDTH>> : TiledFloats<Affine<BITS, WIDTH>> {};

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
