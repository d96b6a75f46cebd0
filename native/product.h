// The product of a part of a matrix's outputs and packed activations, of any number of rows.
//
// One or two rows: a chunk of weights is widened into registers and multiplied at once; memory is
// the limit. More rows: STRIP outputs are widened into the thread's workspace, where they stay in
// the cache while tiles of OUTPUTS x TOKENS pass over them. Both add in the same order. A prompt's
// rows are multiplied in panels (panel.h), which is faster, and rounded differently.
//
// How weights are widened and multiplied is a scheme: `Floats` here, `Planes` in planes.h.
#pragma once

#include "rows.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

constexpr int FEW = 2;                  // rows that are multiplied without a strip
constexpr int STRIP = 12;               // outputs widened at a time
constexpr int SUMS = DECODED + 2;       // from an output's sums to the next: not 4 KB, or they collide
constexpr int OUTPUTS = REGISTERS > 16 ? 6 : 3;  // of a tile of weights
constexpr int TOKENS = 4;                        // of a tile of activations
constexpr int64_t CACHED = 40 << 10;    // bytes of a strip's part that tiles pass over
constexpr int AHEAD = 4096;             // bytes of codes that are prefetched

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
// length], scales [STRIP, chunks] vectors, sums [STRIP, SUMS] vectors, results [DECODED, STRIP].
struct Strip {
    float *weights, *scales, *sums, *out;

    Strip(float* own, int64_t length, int64_t chunks)
        : weights(own),
          scales(weights + STRIP * length),
          sums(scales + STRIP * chunks * LANES),
          out(sums + STRIP * SUMS * LANES) {}
    float* sum_of(int output, int row) const { return sums + (output * SUMS + row) * LANES; }
};

// Chunks of a strip of floats. A chunk's products are summed, scaled, and added.
template <int VECS, bool SCALED>
struct ChunkTile {
    const Strip& s;
    int64_t chunks;

    template <int O, int M>
    void run(int output, int row, const float* const* x, int64_t first, int64_t last) const {
        const float* weights = s.weights + output * chunks * VECS * LANES;
        const float* scales = s.scales + output * chunks * LANES;
        for (int64_t c = first; c < last; c++) {
            Vec products[O][M];
            for (int i = 0; i < VECS; i++) {
                Vec w[O];
                for (int o = 0; o < O; o++) {
                    w[o] = load(weights + (o * chunks + c) * VECS * LANES + i * LANES);
                }
                for (int r = 0; r < M; r++) {
                    const Vec a = load(x[r] + c * VECS * LANES + i * LANES);
                    for (int o = 0; o < O; o++) {
                        products[o][r] = i == 0 ? mul(w[o], a) : fma(w[o], a, products[o][r]);
                    }
                }
            }
            for (int o = 0; o < O; o++) {
                const Vec scale = SCALED ? load(scales + (o * chunks + c) * LANES) : zero();
                for (int r = 0; r < M; r++) {
                    float* to = s.sum_of(output + o, row + r);
                    const Vec total = load(to);
                    store(to, SCALED ? fma(products[o][r], scale, total)
                                     : add(products[o][r], total));
                }
            }
        }
    }
};

// Weights as floats.
template <class F>
struct Floats {
    using Row = F;

    const Matrix& m;
    const Rows& rows;
    int64_t whole, left, chunks;
    Strip s;

    Floats(const Matrix& matrix, const Rows& packed, float* own)
        : m(matrix),
          rows(packed),
          whole(m.inputs / F::CHUNK),
          left(m.inputs % F::CHUNK),
          chunks(chunks_of<F>(m.inputs)),
          s(own, chunks * F::CHUNK, chunks) {}

    void few(int64_t output, int count) const {
        for (int o = 0; o < count; o++) {
            if (rows.count == 1) {
                few_rows<1>(output + o, s.out + o);
            } else {
                few_rows<2>(output + o, s.out + o);
            }
        }
    }

    void widen(int64_t output, int count) const {
        for (int o = 0; o < count; o++) {
            const F row(m, output + o);
            Vec w[F::VECS];
            for (int64_t c = 0; c < whole; c++) {
                const uint8_t* p = row.codes + c * F::BYTES;
                for (int line = 0; line < F::BYTES; line += 64) prefetch(p + AHEAD + line);
                row.expand(p, w);
                put(o, c, w, row.scale(c));
            }
            if (left > 0) {
                expand_last(row, whole, left, w);
                put(o, whole, w, row.last_scale(whole, left));
            }
        }
    }

    void multiply(int count, const float* const* x, int some) const {
        constexpr int64_t EACH = STRIP * F::CHUNK * 4;
        const ChunkTile<F::VECS, F::SCALED> tile{s, chunks};
        sweep(tile, chunks, CACHED / EACH > 0 ? CACHED / EACH : 1, count, x, some);
    }

    // The part of a product that biases make: the sum of bias times the group's sum.
    float biased(const F& row, const float* x) const {
        float total = 0.0f;
        if constexpr (F::BIASED) {
            const float* sums = x + rows.padded;
            for (int64_t g = 0; g < m.inputs / m.group; g++) total += row.bias(g) * sums[g];
        }
        return total;
    }

private:
    // One output for R rows: weights go from memory to registers.
    template <int R>
    void few_rows(int64_t output, float* out) const {
        const F row(m, output);
        const float* x[R];
        Vec total[R], w[F::VECS];
        for (int r = 0; r < R; r++) {
            x[r] = rows.row(r);
            total[r] = zero();
        }
        for (int64_t c = 0; c < whole; c++) {
            const uint8_t* p = row.codes + c * F::BYTES;
            for (int line = 0; line < F::BYTES; line += 64) prefetch(p + AHEAD + line);
            row.expand(p, w);
            add_chunk<R>(w, row.scale(c), x, c * F::CHUNK, total);
        }
        if (left > 0) {
            expand_last(row, whole, left, w);
            add_chunk<R>(w, row.last_scale(whole, left), x, whole * F::CHUNK, total);
        }
        for (int r = 0; r < R; r++) out[r * STRIP] = sum(total[r]) + biased(row, x[r]);
    }

    // A chunk's products with R rows, added to their totals.
    template <int R>
    GPTOSS_INLINED static void add_chunk(
        const Vec w[F::VECS], Vec scale, const float* const x[R], int64_t at, Vec total[R]) {
        for (int r = 0; r < R; r++) {
            Vec products = mul(w[0], load(x[r] + at));
            for (int i = 1; i < F::VECS; i++) {
                products = fma(w[i], load(x[r] + at + i * LANES), products);
            }
            total[r] = F::SCALED ? fma(products, scale, total[r]) : add(products, total[r]);
        }
    }

    // A widened chunk into the strip.
    GPTOSS_INLINED void put(int o, int64_t chunk, const Vec w[F::VECS], Vec scale) const {
        float* to = s.weights + (o * chunks + chunk) * F::CHUNK;
        for (int i = 0; i < F::VECS; i++) store(to + i * LANES, w[i]);
        if (F::SCALED) store(s.scales + (o * chunks + chunk) * LANES, scale);
    }
};

// Outputs `begin` to `end` for all rows. use(output, count, row, rows, out, stride) takes the results
// of `count` outputs and `rows` rows from those numbers on: out [rows, stride].
template <class Scheme, class Use>
static void product(
    const Matrix& m, int64_t begin, int64_t end, const Rows& rows, float* own, Use& use) {
    const Scheme scheme(m, rows, own);
    const Strip& s = scheme.s;
    for (int64_t output = begin; output < end; output += STRIP) {
        const int count = end - output < STRIP ? int(end - output) : STRIP;
        if (rows.count <= FEW) {
            scheme.few(output, count);
            use(output, count, 0, int(rows.count), s.out, STRIP);
            continue;
        }
        scheme.widen(output, count);
        for (int64_t first = 0; first < rows.count; first += DECODED) {
            const int some = rows.count - first < DECODED ? int(rows.count - first) : DECODED;
            const float* x[DECODED];
            for (int r = 0; r < some; r++) x[r] = rows.row(first + r);
            for (int o = 0; o < count; o++) {
                for (int r = 0; r < some; r++) store(s.sum_of(o, r), zero());
            }
            scheme.multiply(count, x, some);
            for (int o = 0; o < count; o++) {
                const typename Scheme::Row row(m, output + o);
                for (int r = 0; r < some; r++) {
                    s.out[r * STRIP + o] = sum(load(s.sum_of(o, r))) + scheme.biased(row, x[r]);
                }
            }
            use(output, count, first, some, s.out, STRIP);
        }
    }
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
