// Units of a matrix: a few neighbouring weights of one row, in any of the formats of a matrix.
//
// A unit is 16 bytes or less, so that a simdgroup's load of one unit a lane is of whole lines.
// 5-bit codes are the exception: they come in units of 20 bytes.

#include "mxfp4.metal"
#include "packed.metal"

constant constexpr int DENSE = 0, AFFINE = 1, MXFP4 = 2;  // FORMAT
constant constexpr int LINE_BYTES = 128;

// Weights in a unit; its bytes.
constexpr int unit_size(int format, int bits) {
    return format == DENSE ? 128 / bits : bits % 2 ? 32 : 16;
}
constexpr int unit_bytes(int format, int bits) {
    return unit_size(format, bits) * bits / 8;
}

// A matrix in device memory; scales and biases are not read where the format has none.
template <typename S>
struct Matrix {
    const device uint* words;
    const device S* scales;
    const device S* biases;
};

// The factor of the vector's element at `place` in a unit, applied before the product: it makes up
// for the power of two by which unpacked weights are off.
template <int FORMAT, int BITS>
float element_scale(int place) {
    if (FORMAT == DENSE) {
        return 1.0f;
    }
    if (FORMAT == MXFP4) {
        return EIGHT_SCALE;
    }
    const int shift = code_shift(BITS, place % run_codes(BITS));
    return as_type<float>(uint(127 + 24 - shift) << 23);
}

// A scale as a number, whatever type it is kept in.
inline float scale_value(uchar scale) {
    return mxfp4_scale(scale);
}
template <typename S>
float scale_value(S scale) {
    return float(scale);
}

// COUNT words, read at once where a vector can hold them.
template <int COUNT>
struct Words {
    struct Held {
        uint words[COUNT];
        uint operator[](int i) const {
            return words[i];
        }
    };
    static Held read(const device uint* matrix, uint at) {
        Held held;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            held.words[i] = matrix[at * COUNT + i];
        }
        return held;
    }
};

template <>
struct Words<4> {
    typedef uint4 Held;
    static uint4 read(const device uint* matrix, uint at) {
        return ((const device uint4*)matrix)[at];
    }
};

template <>
struct Words<2> {
    typedef uint2 Held;
    static uint2 read(const device uint* matrix, uint at) {
        return ((const device uint2*)matrix)[at];
    }
};

// `read` loads unit `at` of a matrix; `add` returns acc + its dot product with x, which is already
// multiplied by element_scale. `sum` is the sum of x without that factor.
template <int FORMAT, int BITS>
struct Unit;

template <int BITS>
struct Unit<AFFINE, BITS> {
    typedef Words<unit_bytes(AFFINE, BITS) / 4> W;
    typename W::Held words;

    void read(const device uint* matrix, uint at) {
        words = W::read(matrix, at);
    }

    float add(const thread float4* x, float sum, float scale, float bias, float acc) const {
        constexpr int RUN = run_codes(BITS), PAIR_WORDS = run_halves(BITS);
        float product = 0.0f;
#pragma unroll
        for (int pair = 0; pair < unit_size(AFFINE, BITS) / (2 * RUN); pair++) {
            Runs<BITS> runs;
            runs.read(words, pair * PAIR_WORDS);
#pragma unroll
            for (int i = 0; i < RUN; i++) {
                const int first = pair * 2 * RUN + i, second = first + RUN;
                const half2 codes = runs.codes(i);
                product = fma(float(codes.x), x[first / 4][first % 4], product);
                product = fma(float(codes.y), x[second / 4][second % 4], product);
            }
        }
        return fma(scale, product, fma(bias, sum, acc));
    }
};

template <int BITS>
struct Unit<MXFP4, BITS> {
    uint2 words;

    void read(const device uint* matrix, uint at) {
        words = ((const device uint2*)matrix)[at];
    }

    float add(const thread float4* x, float, float scale, float, float acc) const {
        const float product = dot8(Eight(words[0]), x[0], x[1], 0.0f);
        return fma(scale, dot8(Eight(words[1]), x[2], x[3], product), acc);
    }
};

template <>
struct Unit<DENSE, 16> {
    uint4 words;

    void read(const device uint* matrix, uint at) {
        words = ((const device uint4*)matrix)[at];
    }

    // A bfloat is the upper half of a float.
    float add(const thread float4* x, float, float, float, float acc) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            acc = fma(as_type<float>(words[i] << 16), x[i / 2][i % 2 * 2], acc);
            acc = fma(as_type<float>(words[i] & 0xFFFF0000u), x[i / 2][i % 2 * 2 + 1], acc);
        }
        return acc;
    }
};

template <>
struct Unit<DENSE, 32> {
    float4 weights;

    void read(const device uint* matrix, uint at) {
        weights = ((const device float4*)matrix)[at];
    }

    float add(const thread float4* x, float, float, float, float acc) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            acc = fma(weights[i], x[0][i], acc);
        }
        return acc;
    }
};
