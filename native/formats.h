// How each format's rows become vectors of floats.
//
// A row is read in chunks of CHUNK codes, VECS vectors. A chunk's vectors have its values in an
// order that suits the format (`order`), and activations are packed in the same order, once an
// operation. A chunk's products are summed, then multiplied by its scales, and added to the row's
// sum: always so, for one token as for many, so that a token's result does not depend on the others.
//
// A format has: VECS, CHUNK, BYTES of a chunk's codes; SCALED, whether `scale` says anything;
// BIASED, whether a group has a bias; order(place), the number in the chunk of the value at a place;
// and, of the row that it was made for, expand(codes, w), step(codes, i), which is w[i] alone,
// scale(chunk), last_scale(chunk, left, beyond) of a chunk that has only `left` values (beyond: others
// can be read behind them), bytes(values), and fetch_scales(outputs, inputs), which prefetches those
// of so many outputs.
// STEPPED: a chunk's vectors one by one take no more instructions than all together. PLANES: it is
// not widened, but multiplied as planes.h says. CODED: all that may be read is a number.
#pragma once

#include "gptoss.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

// The values of sixteen codes, as bfloat16.
struct Sixteen {
    uint16_t of[16];
};
constexpr Bytes bytes_of(const Sixteen& values) {
    Bytes bytes{};
    for (int i = 0; i < 16; i++) {
        bytes.high[i] = uint8_t(values.of[i] >> 8);
        bytes.low[i] = uint8_t(values.of[i]);
    }
    return bytes;
}

#if defined(GPTOSS_NIBBLES_ONE_BY_ONE)
constexpr bool ONE_BY_ONE = true;
#else
constexpr bool ONE_BY_ONE = false;
// Vector i of `nibbles`, which looks them up together.
GPTOSS_INLINE Vec nibble(const uint8_t* p, const Table& t, int i) {
    Vec w[8];
    nibbles(p, t, w);
    return w[i];
}
#endif

GPTOSS_INLINE void fetch_bytes(const uint8_t* p, int64_t count) {
    for (int64_t at = 0; at < count; at += 64) prefetch_far(p + at);
}

constexpr int MOST_VECS = 8;
constexpr int MOST_BYTES = 4 * MOST_VECS * LANES;  // of a chunk's codes

struct Float32 {
    static constexpr int VECS = 8, CHUNK = VECS * LANES, BYTES = 4 * CHUNK;
    static constexpr bool SCALED = false, BIASED = false, STEPPED = true, PLANES = false;
    static constexpr bool CODED = false;
    static constexpr int order(int place) { return place; }

    const uint8_t* codes;

    Float32(const Matrix& m, int64_t row) : codes(m.weight + row * m.inputs * 4) {}
    GPTOSS_INLINED void expand(const uint8_t* p, Vec w[VECS]) const {
        for (int i = 0; i < VECS; i++) w[i] = step(p, i);
    }
    GPTOSS_INLINED Vec step(const uint8_t* p, int i) const {
        return load((const float*)p + i * LANES);
    }
    GPTOSS_INLINED Vec scale(int64_t) const { return fill(1.0f); }
    Vec last_scale(int64_t chunk, int64_t, bool) const { return scale(chunk); }
    static int64_t bytes(int64_t values) { return values * 4; }
    GPTOSS_INLINED void fetch_scales(int, int64_t) const {}
};

struct Bfloat16 {
    static constexpr int VECS = 8, CHUNK = VECS * LANES, BYTES = 2 * CHUNK;
    static constexpr bool SCALED = false, BIASED = false, STEPPED = true, PLANES = false;
    static constexpr bool CODED = false;
    static constexpr int order(int place) {
        const int vector = place / LANES, lane = place % LANES;
        return vector / 2 * 2 * LANES + 2 * lane + vector % 2;
    }

    const uint8_t* codes;

    Bfloat16(const Matrix& m, int64_t row) : codes(m.weight + row * m.inputs * 2) {}
    GPTOSS_INLINED void expand(const uint8_t* p, Vec w[VECS]) const {
        for (int i = 0; i < VECS; i++) w[i] = step(p, i);
    }
    GPTOSS_INLINED Vec step(const uint8_t* p, int i) const {
        return i % 2 == 0 ? load_even(p + i / 2 * 4 * LANES) : load_odd(p + i / 2 * 4 * LANES);
    }
    GPTOSS_INLINED Vec scale(int64_t) const { return fill(1.0f); }
    Vec last_scale(int64_t chunk, int64_t, bool) const { return scale(chunk); }
    static int64_t bytes(int64_t values) { return values * 2; }
    GPTOSS_INLINED void fetch_scales(int, int64_t) const {}
};

// E2M1: sign, two bits of exponent, one of mantissa. OCP, "Microscaling Formats (MX)
// Specification", v1.0, 2023. As bfloat16.
static constexpr Bytes E2M1 = bytes_of({{
    0x0000, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0,
    0x8000, 0xBF00, 0xBF80, 0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0}});
static constexpr Bytes INTEGERS = bytes_of({{
    0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0,
    0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170}});

// N bytes of which the first `count` are read, and the others are 0. beyond: whether those exist.
template <int N>
struct First {
    alignas(N) uint8_t bytes[N] = {};

    GPTOSS_INLINED First(const uint8_t* from, int64_t count, bool beyond) {
        struct Keep {
            uint8_t of[2 * N];
            constexpr Keep() : of() {
                for (int i = 0; i < N; i++) of[i] = 255;
            }
        };
        static constexpr Keep KEEP;
        if (beyond) {
            for (int i = 0; i < N; i++) bytes[i] = from[i] & KEEP.of[N - count + i];
        } else {
            std::memcpy(bytes, from, size_t(count));
        }
    }
};

struct Mxfp4 {
    static constexpr int VECS = 8, CHUNK = VECS * LANES, BYTES = CHUNK / 2, GROUP = 32;
    static constexpr bool SCALED = true, BIASED = false, STEPPED = ONE_BY_ONE, PLANES = false;
    static constexpr bool CODED = true;
    static constexpr int order(int place) { return nibble_order(place); }

    const uint8_t *codes, *scales;
    Table values;

    Mxfp4(const Matrix& m, int64_t row)
        : codes(m.weight + row * (m.inputs / 2)),
          scales(m.scales + row * (m.inputs / GROUP)),
          values(table(E2M1)) {}
    GPTOSS_INLINED void expand(const uint8_t* p, Vec w[VECS]) const { nibbles(p, values, w); }
    GPTOSS_INLINED Vec step(const uint8_t* p, int i) const { return nibble(p, values, i); }
    GPTOSS_INLINED Vec scale(int64_t chunk) const {
        return power_scales(scales + chunk * (CHUNK / GROUP));
    }
    GPTOSS_INLINED Vec last_scale(int64_t chunk, int64_t left, bool beyond) const {
        const First<CHUNK / GROUP> few(scales + chunk * (CHUNK / GROUP), left / GROUP, beyond);
        return power_scales(few.bytes);
    }
    static int64_t bytes(int64_t values) { return values / 2; }
    GPTOSS_INLINED void fetch_scales(int outputs, int64_t inputs) const {
        fetch_bytes(scales, outputs * (inputs / GROUP));
    }
};

// The scale or bias number i of an affine matrix.
GPTOSS_INLINE float affine_parameter(const uint8_t* p, bool wide, int64_t i) {
    float x;
    if (wide) {
        std::memcpy(&x, p + 4 * i, 4);
    } else {
        uint16_t narrow;
        std::memcpy(&narrow, p + 2 * i, 2);
        const uint32_t bits = uint32_t(narrow) << 16;
        std::memcpy(&x, &bits, 4);
    }
    return x;
}

// Affine codes. WIDTH: codes of a chunk, where eight vectors are more than a group has, else 0.
template <int BITS, int WIDTH>
struct Affine {
    static constexpr int CHUNK = WIDTH ? WIDTH : 8 * LANES, VECS = CHUNK / LANES;
    static constexpr int BYTES = CHUNK * BITS / 8;
    static constexpr bool SCALED = true, BIASED = true, PLANES = false, CODED = true;
    // Lanes of nibbles belong to different groups of 32.
    static constexpr bool LOOKED_UP = BITS == 4 && CHUNK == 8 * LANES;
    static constexpr bool STEPPED = !LOOKED_UP || ONE_BY_ONE;
    static constexpr int order(int place) { return LOOKED_UP ? nibble_order(place) : place; }

    const uint8_t *codes, *scales, *biases;
    int64_t group;
    bool wide;
    Table values;

    Affine(const Matrix& m, int64_t row)
        : codes(m.weight + row * (m.inputs * BITS / 8)), group(m.group), wide(m.wide != 0) {
        const int64_t at = row * (m.inputs / m.group) * (wide ? 4 : 2);
        scales = m.scales + at;
        biases = m.biases + at;
        if (LOOKED_UP) values = table(INTEGERS);
    }
    GPTOSS_INLINED void expand(const uint8_t* p, Vec w[VECS]) const {
        if constexpr (LOOKED_UP) {
            nibbles(p, values, w);
        } else {
            for (int i = 0; i < VECS; i++) w[i] = step(p, i);
        }
    }
    GPTOSS_INLINED Vec step(const uint8_t* p, int i) const {
        if constexpr (LOOKED_UP) {
            return nibble(p, values, i);
        } else if constexpr (BITS == 8) {
            return load_u8(p + i * LANES);
        } else {
            return load_codes<BITS>(p, i * LANES);
        }
    }
    GPTOSS_INLINED Vec scale(int64_t chunk) const {
        return fill(affine_parameter(scales, wide, chunk * CHUNK / group));
    }
    float bias(int64_t number) const { return affine_parameter(biases, wide, number); }
    GPTOSS_INLINED Vec bias_vec(const uint8_t* p) const {
        return wide ? load((const float*)p) : load_bf16((const uint16_t*)p);
    }
    Vec last_scale(int64_t chunk, int64_t, bool) const { return scale(chunk); }
    static int64_t bytes(int64_t values) { return values * BITS / 8; }
    GPTOSS_INLINED void fetch_scales(int outputs, int64_t inputs) const {
        const int64_t each = outputs * (inputs / group) * (wide ? 4 : 2);
        fetch_bytes(scales, each);
        fetch_bytes(biases, each);
    }
};

// Chunks of a row, the last of which may be shorter.
template <class F>
GPTOSS_INLINE int64_t chunks_of(int64_t inputs) {
    return (inputs + F::CHUNK - 1) / F::CHUNK;
}

// The vectors of the last chunk, of which only `left` values exist; the others are 0.
template <class F>
GPTOSS_INLINE void expand_last(const F& row, int64_t chunk, int64_t left, Vec w[F::VECS]) {
    alignas(64) uint8_t rest[MOST_BYTES] = {};
    std::memcpy(rest, row.codes + chunk * F::BYTES, size_t(row.bytes(left)));
    row.expand(rest, w);
}

// Call work.template run<F>() with the affine format of these bits, in chunks of WIDTH.
template <int WIDTH, class Work>
static inline void with_bits(int32_t bits, Work& work) {
    switch (bits) {
        case 2: return work.template run<Affine<2, WIDTH>>();
        case 3: return work.template run<Affine<3, WIDTH>>();
        case 4: return work.template run<Affine<4, WIDTH>>();
        case 5: return work.template run<Affine<5, WIDTH>>();
        case 6: return work.template run<Affine<6, WIDTH>>();
        default: return work.template run<Affine<8, WIDTH>>();
    }
}

// Call work.template run<F>() with the matrix's format.
template <class Work>
static inline void with_format(const Matrix& m, Work& work) {
    constexpr int MOST = 8 * LANES, MIDDLE = 64 < MOST ? 64 : 0, NARROW = 32 < MOST ? 32 : 0;
    switch (m.format) {
        case F32: return work.template run<Float32>();
        case BF16: return work.template run<Bfloat16>();
        case MXFP4: return work.template run<Mxfp4>();
        default:
            if (m.group >= MOST) return with_bits<0>(m.bits, work);
            if (m.group == 64) return with_bits<MIDDLE>(m.bits, work);
            return with_bits<NARROW>(m.bits, work);
    }
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
