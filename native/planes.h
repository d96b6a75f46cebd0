// MXFP4 times activations in integers, for a few tokens, where a processor multiplies bytes.
//
// A code's value, times two and plus 12, is a byte from 0 to 24. An activation is an integer of 24
// bits, relative to the largest of its group of 32: as exact as float32's 24 bits. It lies in three
// planes of signed bytes, its digits in base 256, so that one instruction multiplies and adds many.
// A lane has a whole group: its products are summed as integers, without rounding, and scaled once.
// A variant has `bytes_of_codes`, `add_digits`, `plus_256_times`, `lane_scales` and smaller things
// (simd/).
#pragma once

#include "product.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

// The largest integer of which every digit is at most 127, less 2 that rounding may add.
constexpr int LARGEST = 127 * 65536 + 127 * 256 + 127 - 2;
constexpr int OFFSET = 12;

// LANES groups of activations, in the order of `lane_of`. digits[plane][2 * k + half] are those of
// the codes in bytes 4 * k to 4 * k + 3 of each group, the lower or the upper halves. scale: half of
// what an integer counts, as a code's value is doubled. high, low: what the sums begin with, -OFFSET
// times the group's sum in all.
struct Chunk {
    int8_t digits[DIGITS][8][4 * LANES];
    float scale[LANES];
    int32_t high[LANES], low[LANES];
};

// The lane of a group, after four vectors of codes have been transposed.
constexpr int lane_of(int group) { return group % (LANES / 4) * 4 + group / (LANES / 4); }

// The values of 32 floats as integers, and what one counts.
static float integers(const float* x, int32_t out[32]) {
    Vec most = zero();
    for (int i = 0; i < 32; i += LANES) {
        const Vec values = load(x + i);
        most = max(most, max(values, sub(zero(), values)));
    }
    alignas(64) float lanes[LANES];
    store(lanes, most);
    float largest = 0.0f;
    for (float lane : lanes) largest = lane > largest ? lane : largest;
    if (!(largest > 1e-30f)) largest = 1.0f;  // they count as 0: the inverse would be infinite
    const float inverse = float(LARGEST) / largest;
    for (int i = 0; i < 32; i++) out[i] = int32_t(__builtin_rintf(x[i] * inverse));
    return largest / float(LARGEST);
}

// Bytes 0, 2, 4 and 6.
GPTOSS_INLINE uint32_t every_second(uint64_t bytes) {
    const uint64_t pairs = bytes & 0x00FF00FF00FF00FF;
    const uint64_t halves = (pairs | pairs >> 8) & 0x0000FFFF0000FFFF;
    return uint32_t(halves | halves >> 16);
}

static void pack_group(const float* x, int lane, Chunk& chunk) {
    alignas(64) int32_t whole[32];
    chunk.scale[lane] = 0.5f * integers(x, whole);
    int64_t sum = 0;
    for (int32_t value : whole) sum += value;
    chunk.high[lane] = int32_t((-OFFSET * sum) >> 16);
    chunk.low[lane] = int32_t((-OFFSET * sum) & 0xFFFF);
    for (int plane = 0; plane < DIGITS; plane++) {
        int8_t digits[32];  // from -128 to 127; the rest is divided by 256
        for (int i = 0; i < 32; i++) digits[i] = int8_t(whole[i]);
        for (int i = 0; i < 32; i++) whole[i] = (whole[i] - digits[i]) >> 8;
        for (int i = 0; i < 8; i++) {
            uint64_t eight;
            std::memcpy(&eight, digits + i / 2 * 8, 8);
            const uint32_t four = every_second(eight >> i % 2 * 8);
            std::memcpy(chunk.digits[plane][i] + 4 * lane, &four, 4);
        }
    }
}

// MXFP4 with rows that `pack` has packed.
struct Mxfp4Planes : Mxfp4 {
    static constexpr int CHUNK = LANES * GROUP, BYTES = CHUNK / 2;
    static constexpr bool PLANES = true;
    static_assert(sizeof(Chunk) <= CHUNK * sizeof(float), "a chunk lies where its floats would");

    using Mxfp4::Mxfp4;

    // x [inputs], a multiple of 32; groups beyond it are 0.
    static void pack(const float* x, int64_t inputs, float* out) {
        alignas(64) static const float nothing[GROUP] = {};
        const int64_t groups = inputs / GROUP;
        for (int64_t g = 0; g < chunks_of<Mxfp4Planes>(inputs) * LANES; g++) {
            const float* from = g < groups ? x + g * GROUP : nothing;
            pack_group(from, lane_of(int(g % LANES)), *(Chunk*)(out + g / LANES * CHUNK));
        }
    }

    GPTOSS_INLINED Vec scale(int64_t chunk) const { return lane_scales(scales + chunk * LANES); }
    GPTOSS_INLINED Vec last_scale(int64_t chunk, int64_t left, bool beyond) const {
        const First<LANES> few(scales + chunk * LANES, left / GROUP, beyond);
        return lane_scales(few.bytes);
    }

    // A chunk's products with R rows, added to their totals, as in product.h.
    template <int O, int R>
    GPTOSS_INLINED static void add_chunk(
        const uint8_t* const p[O], const Vec scale[O], const float* const x[R], Vec total[O][R]) {
        CodeBytes w[O];
        GPTOSS_UNROLL
        for (int o = 0; o < O; o++) w[o] = bytes_of_codes(p[o]);
        GPTOSS_UNROLL
        for (int r = 0; r < R; r++) {
            const Chunk& chunk = *(const Chunk*)x[r];
            Ints sums[O][DIGITS];
            GPTOSS_UNROLL
            for (int o = 0; o < O; o++) {
                sums[o][0] = load_ints(chunk.low);
                sums[o][1] = zero_ints();
                sums[o][2] = load_ints(chunk.high);
            }
            add_digits<O>(w, chunk.digits, sums);
            GPTOSS_UNROLL
            for (int o = 0; o < O; o++) {
                const Vec low = to_floats(sums[o][0]);
                const Vec high = to_floats(plus_256_times(sums[o][1], sums[o][2]));
                const Vec sum = fma(high, fill(256.0f), low);
                total[o][r] = fma(mul(sum, load(chunk.scale)), scale[o], total[o][r]);
            }
        }
    }
};

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
