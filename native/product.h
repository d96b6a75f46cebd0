// The product of a part of a matrix's outputs and packed activations, DECODED rows at a time.
//
// Weights go from memory to registers, where a tile of outputs and rows shares every load; memory is
// the limit for a few rows. A row is added in one order, whatever their number. A prompt's rows are
// multiplied in panels (panel.h), which is faster, and rounded differently.
//
// Weights are widened to floats, or stay bytes that are multiplied by integers (planes.h).
#pragma once

#include <utility>

#include "rows.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

constexpr int STRIP = 12;  // outputs whose results are handed on at a time
// Bytes between what is prefetched and what is read: where one output is read at a time, and where
// tiles of several are.
constexpr int AHEAD = 4096, FAR = 8192;

// Rows of a prompt that are multiplied like a decoded token's: panels are not worth their making.
constexpr int FEW = LANES == 16 ? DECODED : 2;

// Rows of a tile, at most.
template <class F>
constexpr int ABREAST = F::PLANES && REGISTERS == 16 ? 2 : 4;

// Outputs of a tile of so many rows: its sums, twice if they are scaled, and what is multiplied fit
// into the registers. Planes hold eight vectors of an output's codes.
template <class F>
constexpr int together(int rows) {
    if (F::PLANES) return REGISTERS > 16 ? 2 : 1;
    if (!F::STEPPED) return 1;
    if (REGISTERS > 16) return !F::SCALED ? 6 : rows > 2 ? 3 : 4;
    return F::SCALED && rows > 2 ? 1 : 2;
}

// What a thread reads after the outputs it works on: those of a matrix, from a number on. No matrix:
// it is not known.
struct Then {
    const Matrix* matrix;
    int64_t output;
};

// Tiles of registers. out [DECODED, STRIP] is in the thread's workspace.
template <class F>
struct RegisterTiles {
    const Matrix& m;
    const Rows& rows;
    int64_t end;
    Then then;
    int64_t whole, left;
    float* out;

    // last: the end of the outputs that are worked on.
    RegisterTiles(
        const Matrix& matrix, const Rows& packed, int64_t last, const Then& after, float* own)
        : m(matrix),
          rows(packed),
          end(last),
          then(after),
          whole(m.inputs / F::CHUNK),
          left(m.inputs % F::CHUNK),
          out(own) {}

    // Some outputs, at most STRIP, for all rows.
    void multiply(int64_t output, int count) const {
        constexpr int most = ABREAST<F>;
        if (rows.count == most || rows.count > 2 * (most - 1)) {
            blocks<together<F>(most)>(output, count);
        } else {
            blocks<together<F>(1)>(output, count);
        }
    }

private:
    // The part of a product that biases make: the sum of bias times the group's sum.
    float biased(const F& row, const float* x) const {
        if constexpr (F::BIASED) {
            const float* sums = x + rows.padded;  // zeros follow the last one
            const int64_t groups = m.inputs / m.group, size = m.wide ? 4 : 2;
            Vec total = zero();
            int64_t g = 0;
            for (; g + LANES <= groups; g += LANES) {
                total = fma(row.bias_vec(row.biases + g * size), load(sums + g), total);
            }
            if (g < groups) {
                alignas(64) uint8_t rest[4 * LANES] = {};
                std::memcpy(rest, row.biases + g * size, size_t((groups - g) * size));
                total = fma(row.bias_vec(rest), load(sums + g), total);
            }
            return sum(total);
        }
        return 0.0f;
    }

    // Outputs that are worked on later: the first of them, if it is known.
    struct Later {
        F row;
        bool known;
    };

    // The outputs to fetch while O from this number on are worked on: FAR bytes further, or a little
    // more, so that they come in whole blocks.
    template <int O>
    Later later_than(int64_t output) const {
        const int64_t bytes = O * F::bytes(m.inputs);
        const int64_t number = output + O * ((FAR + bytes - 1) / bytes);
        if (number < end) return {F(m, number), true};
        if (then.matrix) return {F(*then.matrix, then.output + number - end), true};
        return {F(m, output), false};
    }

    // Blocks of O outputs, each for all rows while it is in the cache.
    template <int O>
    void blocks(int64_t output, int count) const {
        const int n = int(rows.count), parts = (n + ABREAST<F> - 1) / ABREAST<F>;
        for (int o = 0; o < count;) {
            const bool whole = count - o >= O;
            const Later later = later_than<O>(output + o);
            for (int part = 0; part < parts; part++) {
                const int row = n * part / parts, some = n * (part + 1) / parts - row;
                const Block block{output + o, row, part, parts, later, out + row * STRIP + o};
                if (whole) {
                    some_rows<O>(block, some);
                } else {
                    some_rows<1>(block, some);
                }
            }
            o += whole ? O : 1;
        }
    }

    // Outputs and rows from these numbers on. part: of the rows' `parts`, which share the fetching of
    // later outputs.
    struct Block {
        int64_t output;
        int row, part, parts;
        const Later& later;
        float* out;
    };

    template <int O>
    void some_rows(const Block& block, int some) const {
        constexpr auto each = std::make_index_sequence<O>{};
        switch (some) {
            case 1: return tile<1>(block, each);
            case 2: return tile<2>(block, each);
            case 3: return tile<ABREAST<F> == 4 ? 3 : 2>(block, each);
            default: return tile<ABREAST<F>>(block, each);
        }
    }

    // Prefetches as many bytes of later outputs as a chunk of O has, and the scales with the first.
    // Planes of three rows or more are read from the second cache again and again; what is fetched
    // goes into the first one then, or it would wait behind them.
    template <int O, int R>
    GPTOSS_INLINED void fetch(int64_t chunk, const Block& block) const {
        if (!block.later.known || (block.parts > 1 && chunk % block.parts != block.part)) return;
        const uint8_t* p = block.later.row.codes + chunk * O * F::BYTES;
        for (int line = 0; line < O * F::BYTES; line += 64) {
            F::PLANES && R > 2 ? prefetch(p + line) : prefetch_far(p + line);
        }
        if (chunk == 0) block.later.row.fetch_scales(O, m.inputs);
    }

    // Whether the outputs from this number on have as many bytes as a chunk. Then what lies behind the
    // end of a row can be read, and multiplied by the zeros that are packed behind its activations.
    bool readable_beyond(int64_t output) const {
        return (m.outputs - output) * F::bytes(m.inputs) >= F::BYTES;
    }

    // R rows of a block of outputs, numbered I. Meanwhile a later block comes from memory, which is
    // fastest from its first byte to its last.
    template <int R, size_t... I>
    GPTOSS_APART void tile(const Block& block, std::index_sequence<I...>) const {
        constexpr int O = sizeof...(I);
        const F of[O] = {F(m, block.output + int64_t(I))...};
        const float* x[R];
        Vec total[O][R], scale[O];
        const uint8_t* p[O];
        for (int r = 0; r < R; r++) x[r] = rows.row(block.row + r);
        for (int o = 0; o < O; o++) {
            for (int r = 0; r < R; r++) total[o][r] = zero();
        }
        for (int64_t c = 0; c < whole; c++) {
            fetch<O, R>(c, block);
            for (int o = 0; o < O; o++) {
                p[o] = of[o].codes + c * F::BYTES;
                scale[o] = of[o].scale(c);
            }
            add_chunk<O, R>(of, p, scale, x, c * F::CHUNK, total);
        }
        if (left > 0) {
            fetch<O, R>(whole, block);
            alignas(64) uint8_t rest[O][F::BYTES];
            const bool beyond = F::CODED && readable_beyond(block.output + O);
            for (int o = 0; o < O; o++) {
                p[o] = of[o].codes + whole * F::BYTES;
                if (!beyond) {
                    std::memset(rest[o], 0, F::BYTES);
                    std::memcpy(rest[o], p[o], size_t(of[o].bytes(left)));
                    p[o] = rest[o];
                }
                scale[o] = of[o].last_scale(whole, left, beyond);
            }
            add_chunk<O, R>(of, p, scale, x, whole * F::CHUNK, total);
        }
        for (int o = 0; o < O; o++) {
            for (int r = 0; r < R; r++) {
                block.out[r * STRIP + o] = sum(total[o][r]) + biased(of[o], x[r]);
            }
        }
    }

    // A chunk's products with R rows, added to their totals.
    template <int O, int R>
    GPTOSS_INLINED static void add_chunk(
        const F of[O], const uint8_t* const p[O], const Vec scale[O], const float* const x[R],
        int64_t at, Vec total[O][R]) {
        if constexpr (F::PLANES) {
            const float* chunk[R];
            for (int r = 0; r < R; r++) chunk[r] = x[r] + at;
            F::template add_chunk<O, R>(p, scale, chunk, total);
        } else {
            add_floats<O, R>(of, p, scale, x, at, total);
        }
    }

    // The same of a chunk that is widened; scaled products are summed first.
    template <int O, int R>
    GPTOSS_INLINED static void add_floats(
        const F of[O], const uint8_t* const p[O], const Vec scale[O], const float* const x[R],
        int64_t at, Vec total[O][R]) {
        Vec products[O][R], widened[F::VECS];
        if (!F::STEPPED) of[0].expand(p[0], widened);
        GPTOSS_UNROLL
        for (int i = 0; i < F::VECS; i++) {
            Vec a[R];
            GPTOSS_UNROLL
            for (int r = 0; r < R; r++) a[r] = held(load(x[r] + at + i * LANES));
            GPTOSS_UNROLL
            for (int o = 0; o < O; o++) {
                const Vec w = F::STEPPED ? of[o].step(p[o], i) : widened[i];
                GPTOSS_UNROLL
                for (int r = 0; r < R; r++) {
                    Vec& sum = F::SCALED ? products[o][r] : total[o][r];
                    sum = F::SCALED && i == 0 ? mul(w, a[r]) : fma(w, a[r], sum);
                }
            }
        }
        if (!F::SCALED) return;
        GPTOSS_UNROLL
        for (int o = 0; o < O; o++) {
            GPTOSS_UNROLL
            for (int r = 0; r < R; r++) {
                total[o][r] = fma(products[o][r], scale[o], total[o][r]);
            }
        }
    }
};

// Outputs `begin` to `end` for all rows. use(output, count, row, rows, out, stride) takes the results
// of `count` outputs and `rows` rows from those numbers on: out [rows, stride].
template <class F, class Use>
static void product(
    const Matrix& m, int64_t begin, int64_t end, const Rows& rows, float* own, Use& use,
    const Then& then) {
    for (int64_t first = 0; first < rows.count; first += DECODED) {
        const Rows some = rows.part(first, DECODED);
        const RegisterTiles<F> tiles(m, some, end, then, own);
        for (int64_t output = begin; output < end; output += STRIP) {
            const int count = end - output < STRIP ? int(end - output) : STRIP;
            tiles.multiply(output, count);
            use(output, count, first, int(some.count), tiles.out, STRIP);
        }
    }
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
