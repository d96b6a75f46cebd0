// MXFP4 times activations in integers, for a few tokens where vectors have eight lanes (AVX2).
//
// A code's value, times two and plus 12, is a byte from 0 to 24. An activation is an integer of 24
// bits, relative to the largest of its group of 32: as exact as float32's 24 bits. It lies in three
// planes of signed bytes, its digits in base 256, so that one instruction multiplies and adds pairs
// of 32 bytes. This takes 25 vector instructions for 64 codes, where looking up floats takes 33.
#pragma once

#include <immintrin.h>

#include "product.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

constexpr int DIGITS = 3;
// The largest integer of which every digit is at most 127, less 2 that rounding may add.
constexpr int LARGEST = 127 * 65536 + 127 * 256 + 127 - 2;
constexpr int OFFSET = 12;

// 64 packed activations, as large as 64 floats. digits[plane][0] belong to the codes in the lower
// halves of bytes, [1] to those in the upper. Lanes 0 to 3 are of the first group, 4 to 7 of the
// second. scale: half of what an integer counts, as a code's value is doubled. offset: of eight
// activations each, OFFSET times their sum.
struct Chunk {
    int8_t digits[DIGITS][2][32];
    float scale[8];
    int32_t offset[8];
};
static_assert(sizeof(Chunk) == 64 * sizeof(float), "a row of chunks is as long as one of floats");

constexpr int CODES = 64;       // of a chunk
constexpr int CODE_BYTES = 32;  // of a chunk's codes

// The values of 32 floats as integers, and what one counts.
static float integers(const float* x, int32_t out[32]) {
    Vec most = zero();
    const Vec sign = fill(-0.0f);
    for (int i = 0; i < 32; i += LANES) most = max(most, _mm256_andnot_ps(sign, load(x + i)));
    alignas(32) float lanes[LANES];
    store(lanes, most);
    float largest = 0.0f;
    for (float lane : lanes) largest = lane > largest ? lane : largest;
    if (!(largest > 0.0f)) largest = 1.0f;
    const float count = largest / float(LARGEST), inverse = float(LARGEST) / largest;
    for (int i = 0; i < 32; i += LANES) {
        const __m256i near = _mm256_cvtps_epi32(mul(load(x + i), fill(inverse)));
        _mm256_storeu_si256((__m256i*)(out + i), near);
    }
    return count;
}

static void pack_group(const float* x, int group, Chunk& chunk) {
    alignas(32) int32_t whole[32];
    const float count = integers(x, whole);
    for (int lane = 0; lane < 4; lane++) {
        int32_t sum = 0;
        for (int i = 0; i < 8; i++) sum += whole[8 * lane + i];
        chunk.scale[4 * group + lane] = 0.5f * count;
        chunk.offset[4 * group + lane] = OFFSET * sum;
    }
    for (int plane = 0; plane < DIGITS; plane++) {
        for (int half = 0; half < 2; half++) {
            int8_t* digits = chunk.digits[plane][half] + 16 * group;
            for (int i = 0; i < 16; i++) digits[i] = int8_t(whole[2 * i + half]);
        }
        // The rest is divided by 256; a digit is from -128 to 127.
        for (int i = 0; i < 32; i++) whole[i] = (whole[i] - int8_t(whole[i])) >> 8;
    }
}

// Packs x [inputs], a multiple of 32; a group beyond it is 0.
static void pack_planes(const float* x, int64_t inputs, float* out) {
    Chunk* chunks = (Chunk*)out;
    alignas(32) static const float nothing[32] = {};
    for (int64_t at = 0; at < inputs; at += CODES) {
        Chunk& chunk = chunks[at / CODES];
        pack_group(x + at, 0, chunk);
        pack_group(at + 32 < inputs ? x + at + 32 : nothing, 1, chunk);
    }
}

// A chunk's weights: bytes for the lower and the upper halves, and scales as lanes have them.
struct Weights {
    __m256i lower, upper;
    Vec scale;
};

// The bits of 2^(e - 127) for every exponent e; 255 is no scale.
struct Powers {
    int32_t of[256];
    constexpr Powers() : of() {
        of[0] = 0x00400000;
        for (int32_t e = 1; e < 255; e++) of[e] = e << 23;
    }
};
static constexpr Powers POWERS;

GPTOSS_INLINE Weights weights_of(__m256i codes, const uint8_t* exponents) {
    const __m256i bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i first = _mm256_set1_epi32(POWERS.of[exponents[0]]);
    const __m256i second = _mm256_set1_epi32(POWERS.of[exponents[1]]);
    return {
        _mm256_shuffle_epi8(bytes, _mm256_and_si256(codes, mask)),
        _mm256_shuffle_epi8(bytes, _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask)),
        _mm256_castsi256_ps(_mm256_blend_epi32(first, second, 0xF0))};
}

// Sums of a plane: of two bytes in 16 bits, at most 2 * 2 * 24 * 128, and of four of these.
GPTOSS_INLINE __m256i plane_sum(const Weights& w, const Chunk& x, int plane, __m256i times) {
    const __m256i lower = _mm256_loadu_si256((const __m256i*)x.digits[plane][0]);
    const __m256i upper = _mm256_loadu_si256((const __m256i*)x.digits[plane][1]);
    const __m256i pairs = _mm256_add_epi16(
        _mm256_maddubs_epi16(w.lower, lower), _mm256_maddubs_epi16(w.upper, upper));
    return _mm256_madd_epi16(pairs, times);
}

// The products of a chunk in integers, which are exact.
GPTOSS_INLINE __m256i multiply_planes(const Weights& w, const Chunk& x) {
    const __m256i one = _mm256_set1_epi16(1), base = _mm256_set1_epi16(256);
    __m256i sum = _mm256_slli_epi32(plane_sum(w, x, 2, one), 16);
    sum = _mm256_add_epi32(sum, plane_sum(w, x, 1, base));
    sum = _mm256_add_epi32(sum, plane_sum(w, x, 0, one));
    return _mm256_sub_epi32(sum, _mm256_loadu_si256((const __m256i*)x.offset));
}

GPTOSS_INLINE Vec add_planes(const Weights& w, const Chunk& x, Vec total) {
    const Vec products = mul(_mm256_cvtepi32_ps(multiply_planes(w, x)), load(x.scale));
    return fma(products, w.scale, total);
}

// Chunks of a row of codes; the second group of the last may be missing.
struct Codes {
    const uint8_t *codes, *scales;
    int64_t whole;
    bool half;

    Codes(const Matrix& m, int64_t row)
        : codes(m.weight + row * (m.inputs / 2)),
          scales(m.scales + row * (m.inputs / 32)),
          whole(m.inputs / CODES),
          half(m.inputs % CODES != 0) {}
    GPTOSS_INLINED Weights at(int64_t chunk) const {
        const uint8_t* p = codes + chunk * CODE_BYTES;
        prefetch(p + AHEAD);
        return weights_of(_mm256_loadu_si256((const __m256i*)p), scales + chunk * 2);
    }
    Weights last() const {
        const __m128i* p = (const __m128i*)(codes + whole * CODE_BYTES);
        const uint8_t exponents[2] = {scales[whole * 2], 0};
        return weights_of(_mm256_zextsi128_si256(_mm_loadu_si128(p)), exponents);
    }
};

constexpr int SUMS = DECODED + 2;  // from an output's sums to the next: not 4 KB, or they collide
constexpr int OUTPUTS = 3;         // of a tile of weights
constexpr int TOKENS = 4;          // of a tile of activations
constexpr int64_t AT_ONCE = 8;     // chunks of a strip that tiles pass over

// Passes tiles over a strip of `count` outputs and `rows` rows x. The strip's length is taken in
// parts of `at_once`, which stay in the cache. tile.run<O, M>(output, row, x, first, last) adds the
// products of O outputs and M rows, in the part from `first` to `last`, to their sums.
template <class Tile>
static void sweep(
    const Tile& tile, int64_t length, int64_t at_once, int count, const float* const* x,
    int rows) {
    for (int64_t first = 0; first < length; first += at_once) {
        const int64_t last = first + at_once < length ? first + at_once : length;
        for (int r = 0; r < rows;) {
            const int some = rows - r >= TOKENS ? TOKENS : 1;
            for (int o = 0; o < count;) {
                const int together = count - o >= OUTPUTS ? OUTPUTS : 1;
                if (some == 1 && together == 1) {
                    tile.template run<1, 1>(o, r, x + r, first, last);
                } else if (some == 1) {
                    tile.template run<OUTPUTS, 1>(o, r, x + r, first, last);
                } else if (together == 1) {
                    tile.template run<1, TOKENS>(o, r, x + r, first, last);
                } else {
                    tile.template run<OUTPUTS, TOKENS>(o, r, x + r, first, last);
                }
                o += together;
            }
            r += some;
        }
    }
}

// A strip of outputs in the thread's workspace. It holds, one after another: weights [STRIP,
// length], sums [STRIP, SUMS] vectors, results [DECODED, STRIP].
struct Strip {
    float *weights, *sums, *out;

    Strip(float* own, int64_t length)
        : weights(own),
          sums(weights + STRIP * length),
          out(sums + STRIP * SUMS * LANES) {}
    float* sum_of(int output, int row) const { return sums + (output * SUMS + row) * LANES; }
};

// Chunks of a strip of planes' weights.
struct PlanesTile {
    const Strip& s;
    int64_t chunks;

    template <int O, int M>
    void run(int output, int row, const float* const* x, int64_t first, int64_t last) const {
        for (int o = 0; o < O; o++) {
            const Weights* weights = (const Weights*)s.weights + (output + o) * chunks;
            Vec total[M];
            for (int r = 0; r < M; r++) total[r] = load(s.sum_of(output + o, row + r));
            for (int64_t c = first; c < last; c++) {
                const Weights w = weights[c];
                for (int r = 0; r < M; r++) {
                    total[r] = add_planes(w, ((const Chunk*)x[r])[c], total[r]);
                }
            }
            for (int r = 0; r < M; r++) store(s.sum_of(output + o, row + r), total[r]);
        }
    }
};

// The scheme of MXFP4 and rows that `pack_planes` has packed.
struct Planes {
    const Matrix& m;
    const Rows& rows;
    int64_t chunks;
    Strip s;
    float* out;

    Planes(const Matrix& matrix, const Rows& packed, float* own)
        : m(matrix),
          rows(packed),
          chunks((m.inputs + CODES - 1) / CODES),
          s(own, chunks * int64_t(sizeof(Weights) / sizeof(float))),
          out(s.out) {}

    // Some outputs, at most STRIP, for all rows.
    void multiply(int64_t output, int count) const {
        switch (rows.count) {
            case 1: return few<1>(output, count);
            case 2: return few<2>(output, count);
            default: return many(output, count);
        }
    }

private:
    // Two outputs at a time: what is loaded of a row serves both.
    template <int R>
    void few(int64_t output, int count) const {
        int o = 0;
        for (; o + 2 <= count; o += 2) few_rows<2, R>(output + o, s.out + o);
        if (o < count) few_rows<1, R>(output + o, s.out + o);
    }

    // More rows: the outputs are widened into the strip, and tiles pass over it.
    void many(int64_t output, int count) const {
        const int some = int(rows.count);
        const float* x[DECODED];
        for (int r = 0; r < some; r++) x[r] = rows.row(r);
        for (int o = 0; o < count; o++) {
            const Codes row(m, output + o);
            Weights* to = (Weights*)s.weights + o * chunks;
            for (int64_t c = 0; c < row.whole; c++) to[c] = row.at(c);
            if (row.half) to[row.whole] = row.last();
            for (int r = 0; r < some; r++) store(s.sum_of(o, r), zero());
        }
        sweep(PlanesTile{s, chunks}, chunks, AT_ONCE, count, x, some);
        for (int o = 0; o < count; o++) {
            for (int r = 0; r < some; r++) s.out[r * STRIP + o] = sum(load(s.sum_of(o, r)));
        }
    }

    template <int O, int R>
    void few_rows(int64_t output, float* out) const {
        const Codes first(m, output), second(m, output + O - 1);
        const Codes* row[2] = {&first, &second};
        const Chunk* x[R];
        Vec total[O][R];
        for (int r = 0; r < R; r++) {
            x[r] = (const Chunk*)rows.row(r);
            for (int o = 0; o < O; o++) total[o][r] = zero();
        }
        for (int64_t c = 0; c < first.whole; c++) {
            Weights w[O];
            for (int o = 0; o < O; o++) w[o] = row[o]->at(c);
            for (int r = 0; r < R; r++) {
                for (int o = 0; o < O; o++) total[o][r] = add_planes(w[o], x[r][c], total[o][r]);
            }
        }
        for (int o = 0; o < O; o++) {
            for (int r = 0; r < R; r++) {
                if (first.half) {
                    total[o][r] = add_planes(row[o]->last(), x[r][first.whole], total[o][r]);
                }
                out[r * STRIP + o] = sum(total[o][r]);
            }
        }
    }
};

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
