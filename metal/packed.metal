// Codes of 2 to 8 bits as mx.quantize packs them: a stream of bits, the lowest first, in words.
//
// A run of codes that fills whole 16-bit halves is unpacked together with the run after it, one in
// the lower and one in the upper half of a word. As a half-precision float, a 16-bit pattern n up
// to 2047 means n * 2^-24, denormal or not. So one mask unpacks two codes that lie in the lower
// eleven bits, without a conversion, and gives code * 2^(code_shift - 24).

#include <metal_stdlib>

using namespace metal;

// 16-bit halves that a run fills, an odd number; codes in it.
constexpr int run_halves(int bits) {
    return bits % 2 ? bits : bits % 4 ? bits / 2 : 1;
}
constexpr int run_codes(int bits) {
    return 16 * run_halves(bits) / bits;
}

// The place of a run's code in its first half, and how far that half is shifted before the mask.
constexpr int code_place(int bits, int code) {
    return code * bits % 16;
}
constexpr int half_shift(int bits, int place) {
    return place + bits <= 11 ? 0 : place + bits > 16 || place < 8 ? place : 8;
}

// Log2 of the factor by which an unpacked code is too large, apart from 2^-24.
constexpr int code_shift(int bits, int code) {
    return code_place(bits, code) - half_shift(bits, code_place(bits, code));
}

// Two runs of BITS-bit codes.
template <int BITS>
struct Runs {
    uint halves[run_halves(BITS)];

    // The j-th half of a run beside that of the next, which starts in the other half of a word.
    template <typename Words>
    void read(Words words, int from) {
        constexpr int H = run_halves(BITS);
#pragma unroll
        for (int j = 0; j < H; j++) {
            const uint first = words[from + j / 2], second = words[from + (j + H) / 2];
            halves[j] = j % 2 == 0 ? (first & 0x0000FFFFu) | (second & 0xFFFF0000u)
                                   : (first >> 16) | (second << 16);
        }
    }

    // Code i of both runs, each * 2^(code_shift - 24).
    half2 codes(int i) const {
        const int j = i * BITS / 16, place = code_place(BITS, i), shift = half_shift(BITS, place);
        const int low = min(BITS, 16 - place);
        uint bits = (halves[j] >> shift) & both(((1u << low) - 1) << (place - shift));
        if (low < BITS) {
            bits |= (halves[j + 1] << low) & both((1u << BITS) - (1u << low));
        }
        return as_type<half2>(bits);
    }

    static uint both(uint mask) {
        return mask << 16 | mask;
    }
};
