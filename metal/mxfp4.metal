// MXFP4: 32 four-bit floats (E2M1, sign on top) share one power-of-two scale (E8M0).
// OCP, "Microscaling Formats (MX) Specification", v1.0, 2023.

#include <metal_stdlib>

using namespace metal;

// The scale of a group, 2^(exponent - 127); the smallest is subnormal.
inline float mxfp4_scale(uchar exponent) {
    return as_type<float>(max(uint(exponent) << 23, 0x00400000u));
}

constant constexpr float EIGHT_SCALE = 16384.0f;

// Eight values of a word as halves, exactly, but EIGHT_SCALE times too small.
//
// A nibble's three bits of exponent and mantissa land on the lowest exponent bits and the highest
// mantissa bit of a half; adding 7 to the three bits above carries the sign into its place.
struct Eight {
    half2 v04, v26, v15, v37;

    explicit Eight(uint word) {
        const uint even = ((word << 1) & 0x1E1E1E1Eu) + 0x70707070u;
        const uint odd = ((word >> 3) & 0x1E1E1E1Eu) + 0x70707070u;
        v04 = as_type<half2>((even << 8) & 0x8E008E00u);
        v26 = as_type<half2>(even & 0x8E008E00u);
        v15 = as_type<half2>((odd << 8) & 0x8E008E00u);
        v37 = as_type<half2>(odd & 0x8E008E00u);
    }
};

// acc + the dot product of eight values and x[0 .. 8), given as two vectors.
inline float dot8(Eight w, float4 low, float4 high, float acc) {
    acc = fma(float(w.v04.x), low.x, acc);
    acc = fma(float(w.v15.x), low.y, acc);
    acc = fma(float(w.v26.x), low.z, acc);
    acc = fma(float(w.v37.x), low.w, acc);
    acc = fma(float(w.v04.y), high.x, acc);
    acc = fma(float(w.v15.y), high.y, acc);
    acc = fma(float(w.v26.y), high.z, acc);
    return fma(float(w.v37.y), high.w, acc);
}
