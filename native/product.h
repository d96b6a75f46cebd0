// The product of a part of a matrix's outputs and packed activations, of any number of rows.
//
// One or two rows: a chunk of weights is widened into registers and multiplied at once; memory is
// the limit. More rows: STRIP outputs are widened into the thread's workspace, where they stay in
// the cache while tiles of OUTPUTS x TOKENS pass over them. Both add in the same order. A prompt's
// rows are multiplied with scaled weights, which is faster, and rounded differently.
#pragma once

#include "formats.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

constexpr int FEW = 2;                 // rows that are multiplied without a strip
constexpr int STRIP = 12;              // outputs widened at a time
constexpr int BLOCK = 128;             // rows whose sums are held at a time
constexpr int SUMS = BLOCK + 2;        // from an output's sums to the next: not 4 KB, or they collide
constexpr int OUTPUTS = 3, TOKENS = 4;  // of a tile: 12 sums, 3 weights and an activation
constexpr int64_t CACHED = 40 << 10;   // bytes of a strip's part that tiles pass over
constexpr int AHEAD = 4096;            // bytes of codes that are prefetched

// Tokens of a step that are multiplied one by one in the same way, whatever their number; more are
// a prompt.
constexpr int DECODED = 32;

// Rows of packed activations. Row r begins at x + index[r] * stride; without an index, at r. Behind
// `padded` values lie the sums of groups, if the format has biases. prompt: whether they may be
// added in another order than a single row.
struct Rows {
    const float* x;
    int64_t stride, padded, count;
    const int32_t* index;
    bool prompt;

    const float* row(int64_t r) const { return x + (index ? index[r] : r) * stride; }
};

template <class F>
GPTOSS_INLINE int64_t padded(int64_t inputs) {
    return chunks_of<F>(inputs) * F::CHUNK;
}

template <class F>
GPTOSS_INLINE int64_t stride_of(const Matrix& m) {
    return padded<F>(m.inputs) + (F::BIASED ? (m.inputs / m.group + 15) / 16 * 16 : 0);
}

// Pack x [inputs], times norm and `factor` if there is a norm, into a row.
template <class F>
static void pack(const Matrix& m, const float* x, const float* norm, float factor, float* out) {
    const int64_t chunks = chunks_of<F>(m.inputs);
    for (int64_t c = 0; c < chunks; c++) {
        for (int i = 0; i < F::CHUNK; i++) {
            const int64_t at = c * F::CHUNK + F::order(i);
            const float value = at < m.inputs ? x[at] : 0.0f;
            out[c * F::CHUNK + i] = norm && at < m.inputs ? value * factor * norm[at] : value;
        }
    }
    if constexpr (F::BIASED) {
        float* sums = out + chunks * F::CHUNK;
        for (int64_t g = 0; g * m.group < m.inputs; g++) {
            float sum = 0.0f;
            for (int64_t at = g * m.group; at < (g + 1) * m.group; at++) {
                sum += norm ? x[at] * factor * norm[at] : x[at];
            }
            sums[g] = sum;
        }
    }
}

// 1 / sqrt(mean of squares + eps). Zhang and Sennrich, "Root Mean Square Layer Normalization".
static float norm_factor(const float* x, int64_t width, float eps) {
    Vec squares = zero();
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Vec a = load(x + i);
        squares = fma(a, a, squares);
    }
    float total = sum(squares);
    for (; i < width; i++) total += x[i] * x[i];
    return 1.0f / __builtin_sqrtf(total / float(width) + eps);
}

// The part of a product that biases make: the sum of bias times the group's sum.
template <class F>
GPTOSS_INLINE float biased(const F& row, const Matrix& m, const float* sums) {
    if constexpr (F::BIASED) {
        float total = 0.0f;
        for (int64_t g = 0; g < m.inputs / m.group; g++) total += row.bias(g) * sums[g];
        return total;
    }
    return 0.0f;
}

// A chunk's products with R packed rows, added to their totals.
template <class F, int R>
GPTOSS_INLINE void add_chunk(
    const Vec w[F::VECS], Vec scale, const float* const x[R], int64_t at, Vec total[R]) {
    for (int r = 0; r < R; r++) {
        Vec products = mul(w[0], load(x[r] + at));
        for (int i = 1; i < F::VECS; i++) {
            products = fma(w[i], load(x[r] + at + i * LANES), products);
        }
        total[r] = F::SCALED ? fma(products, scale, total[r]) : add(products, total[r]);
    }
}

// One output for R rows: weights go from memory to registers.
template <class F, int R>
static void few(const Matrix& m, int64_t output, const Rows& rows, float* out) {
    const F row(m, output);
    const float* x[R];
    Vec total[R], w[F::VECS];
    for (int r = 0; r < R; r++) {
        x[r] = rows.row(r);
        total[r] = zero();
    }
    const int64_t whole = m.inputs / F::CHUNK, left = m.inputs % F::CHUNK;
    for (int64_t c = 0; c < whole; c++) {
        const uint8_t* p = row.codes + c * F::BYTES;
        for (int line = 0; line < F::BYTES; line += 64) prefetch(p + AHEAD + line);
        row.expand(p, w);
        add_chunk<F, R>(w, row.scale(c), x, c * F::CHUNK, total);
    }
    if (left > 0) {
        expand_last(row, whole, left, w);
        add_chunk<F, R>(w, row.last_scale(whole, left), x, whole * F::CHUNK, total);
    }
    for (int r = 0; r < R; r++) {
        out[r * STRIP] = sum(total[r]) + biased(row, m, x[r] + rows.padded);
    }
}

// A strip of outputs as floats, in the thread's workspace. The workspace holds, one after another:
// weights [STRIP, padded], scales [STRIP, chunks] vectors, sums [STRIP, SUMS] vectors, results
// [BLOCK, STRIP].
struct Strip {
    float *weights, *scales, *sums, *out;
};

template <class F>
GPTOSS_INLINE Strip strip_in(float* own, int64_t inputs) {
    const int64_t chunks = chunks_of<F>(inputs);
    Strip s;
    s.weights = own;
    s.scales = s.weights + STRIP * chunks * F::CHUNK;
    s.sums = s.scales + STRIP * chunks * LANES;
    s.out = s.sums + STRIP * SUMS * LANES;
    return s;
}

template <class F>
static void widen(const Matrix& m, int64_t output, int count, const Strip& s) {
    const int64_t whole = m.inputs / F::CHUNK, left = m.inputs % F::CHUNK;
    const int64_t chunks = chunks_of<F>(m.inputs);
    for (int o = 0; o < count; o++) {
        const F row(m, output + o);
        float *weights = s.weights + o * chunks * F::CHUNK, *scales = s.scales + o * chunks * LANES;
        Vec w[F::VECS];
        for (int64_t c = 0; c < whole; c++) {
            const uint8_t* p = row.codes + c * F::BYTES;
            for (int line = 0; line < F::BYTES; line += 64) prefetch(p + AHEAD + line);
            row.expand(p, w);
            for (int i = 0; i < F::VECS; i++) store(weights + c * F::CHUNK + i * LANES, w[i]);
            if (F::SCALED) store(scales + c * LANES, row.scale(c));
        }
        if (left > 0) {
            expand_last(row, whole, left, w);
            for (int i = 0; i < F::VECS; i++) store(weights + whole * F::CHUNK + i * LANES, w[i]);
            if (F::SCALED) store(scales + whole * LANES, row.last_scale(whole, left));
        }
    }
}

// Add the products of O outputs and M rows, chunks `first` to `last` of VECS vectors, to their sums.
template <int VECS, bool SCALED, int O, int M>
static void tile(
    const float* weights, const float* scales, int64_t chunks, const float* const* x,
    int64_t first, int64_t last, float* sums) {
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
                float* to = sums + (o * SUMS + r) * LANES;
                const Vec total = load(to);
                store(to, SCALED ? fma(products[o][r], scale, total)
                                    : add(products[o][r], total));
            }
        }
    }
}

template <int VECS, bool SCALED, int O>
GPTOSS_INLINE void tiles(
    const Strip& s, int from, int64_t chunks, const float* const* x, int rows, int64_t first,
    int64_t last) {
    const float* weights = s.weights + from * chunks * VECS * LANES;
    const float* scales = s.scales + from * chunks * LANES;
    float* sums = s.sums + from * SUMS * LANES;
    int r = 0;
    for (; r + TOKENS <= rows; r += TOKENS) {
        tile<VECS, SCALED, O, TOKENS>(weights, scales, chunks, x + r, first, last, sums + r * LANES);
    }
    for (; r < rows; r++) {
        tile<VECS, SCALED, O, 1>(weights, scales, chunks, x + r, first, last, sums + r * LANES);
    }
}

// Add up each sum's lanes, and what biases make.
template <class F>
static void finish(
    const Matrix& m, int64_t output, int count, const float* const* x, int rows, const Rows& all,
    const Strip& s) {
    for (int o = 0; o < count; o++) {
        const F row(m, output + o);
        for (int r = 0; r < rows; r++) {
            s.out[r * STRIP + o] = sum(load(s.sums + (o * SUMS + r) * LANES)) +
                                   biased(row, m, x[r] + all.padded);
        }
    }
}

// Sums of the products of a strip that is widened and rows x, at most BLOCK.
template <int VECS, bool SCALED>
static void many(int64_t chunks, int count, const float* const* x, int rows, const Strip& s) {
    constexpr int64_t EACH = STRIP * VECS * LANES * 4;
    constexpr int64_t AT_ONCE = CACHED / EACH > 0 ? CACHED / EACH : 1;
    for (int64_t first = 0; first < chunks; first += AT_ONCE) {
        const int64_t last = first + AT_ONCE < chunks ? first + AT_ONCE : chunks;
        for (int begin = 0; begin < rows; begin += TOKENS) {
            const int some = rows - begin < TOKENS ? rows - begin : TOKENS;
            const Strip part = {s.weights, s.scales, s.sums + begin * LANES, s.out};
            int o = 0;
            for (; o + OUTPUTS <= count; o += OUTPUTS) {
                tiles<VECS, SCALED, OUTPUTS>(part, o, chunks, x + begin, some, first, last);
            }
            for (; o < count; o++) {
                tiles<VECS, SCALED, 1>(part, o, chunks, x + begin, some, first, last);
            }
        }
    }
}

// The products of O outputs and M rows, values `first` to `last`, added to their sums. The weights
// have been multiplied by their scales, so that nothing but multiplying and adding is left.
template <int O, int M>
static void prompt_tile(
    const float* weights, int64_t width, const float* const* x, int64_t first, int64_t last,
    float* sums) {
    Vec total[O][M];
    for (int o = 0; o < O; o++) {
        for (int r = 0; r < M; r++) total[o][r] = load(sums + (o * SUMS + r) * LANES);
    }
    for (int64_t at = first; at < last; at += LANES) {
        Vec w[O];
        for (int o = 0; o < O; o++) w[o] = load(weights + o * width + at);
        for (int r = 0; r < M; r++) {
            const Vec a = load(x[r] + at);
            for (int o = 0; o < O; o++) total[o][r] = fma(w[o], a, total[o][r]);
        }
    }
    for (int o = 0; o < O; o++) {
        for (int r = 0; r < M; r++) store(sums + (o * SUMS + r) * LANES, total[o][r]);
    }
}

template <int O>
GPTOSS_INLINE void prompt_tiles(
    const float* weights, int64_t width, const float* const* x, int rows, int64_t first,
    int64_t last, float* sums) {
    int r = 0;
    for (; r + TOKENS <= rows; r += TOKENS) {
        prompt_tile<O, TOKENS>(weights, width, x + r, first, last, sums + r * LANES);
    }
    for (; r < rows; r++) {
        prompt_tile<O, 1>(weights, width, x + r, first, last, sums + r * LANES);
    }
}

// Multiply a strip's weights by their scales.
template <class F>
static void scale_strip(int64_t chunks, int count, const Strip& s) {
    for (int64_t c = 0; F::SCALED && c < count * chunks; c++) {
        const Vec scale = load(s.scales + c * LANES);
        float* weights = s.weights + c * F::CHUNK;
        for (int i = 0; i < F::VECS; i++) {
            store(weights + i * LANES, mul(load(weights + i * LANES), scale));
        }
    }
}

// As `many`, of a strip that `scale_strip` has scaled. width: values of a row, padded.
static void prompt(int64_t width, int count, const float* const* x, int rows, const Strip& s) {
    constexpr int64_t AT_ONCE = CACHED / (STRIP * 4) / LANES * LANES;
    for (int64_t first = 0; first < width; first += AT_ONCE) {
        const int64_t last = first + AT_ONCE < width ? first + AT_ONCE : width;
        for (int begin = 0; begin < rows; begin += TOKENS) {
            const int some = rows - begin < TOKENS ? rows - begin : TOKENS;
            float* sums = s.sums + begin * LANES;
            int o = 0;
            for (; o + OUTPUTS <= count; o += OUTPUTS) {
                prompt_tiles<OUTPUTS>(
                    s.weights + o * width, width, x + begin, some, first, last,
                    sums + o * SUMS * LANES);
            }
            for (; o < count; o++) {
                prompt_tiles<1>(
                    s.weights + o * width, width, x + begin, some, first, last,
                    sums + o * SUMS * LANES);
            }
        }
    }
}

// Outputs `begin` to `end` for all rows. use(output, count, row, rows, out) takes the results of
// `count` outputs and `rows` rows from those numbers on: out [rows, STRIP].
template <class F, class Use>
static void product(
    const Matrix& m, int64_t begin, int64_t end, const Rows& rows, float* own, Use& use) {
    const Strip s = strip_in<F>(own, m.inputs);
    for (int64_t output = begin; output < end; output += STRIP) {
        const int count = end - output < STRIP ? int(end - output) : STRIP;
        if (rows.count <= FEW) {
            for (int o = 0; o < count; o++) {
                if (rows.count == 1) {
                    few<F, 1>(m, output + o, rows, s.out + o);
                } else {
                    few<F, 2>(m, output + o, rows, s.out + o);
                }
            }
            use(output, count, 0, int(rows.count), s.out);
            continue;
        }
        widen<F>(m, output, count, s);
        if (rows.prompt) scale_strip<F>(chunks_of<F>(m.inputs), count, s);
        for (int64_t first = 0; first < rows.count; first += BLOCK) {
            const int some = rows.count - first < BLOCK ? int(rows.count - first) : BLOCK;
            const float* x[BLOCK];
            for (int r = 0; r < some; r++) x[r] = rows.row(first + r);
            for (int o = 0; o < count; o++) {
                for (int r = 0; r < some; r++) store(s.sums + (o * SUMS + r) * LANES, zero());
            }
            if (rows.prompt) {
                prompt(chunks_of<F>(m.inputs) * F::CHUNK, count, x, some, s);
            } else {
                many<F::VECS, F::SCALED>(chunks_of<F>(m.inputs), count, x, some, s);
            }
            finish<F>(m, output, count, x, some, rows, s);
            use(output, count, first, some, s.out);
        }
    }
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
