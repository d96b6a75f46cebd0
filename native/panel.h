// The product of a part of a matrix's outputs and a prompt's rows, of any number.
//
// PANEL outputs are widened, scaled and turned at a time: a panel [inputs, outputs], of PANEL_DEPTH
// inputs, which stays in the first cache. Each activation is multiplied by vectors of outputs, so
// nothing is added across lanes. Goto and van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication", 2008.
#pragma once

#include "product.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

constexpr int COLUMNS = 2;  // vectors of outputs
constexpr int PANEL = COLUMNS * LANES;
constexpr int PANEL_DEPTH = 256;  // inputs, whole chunks of every format
constexpr int PANEL_ROWS = REGISTERS > 16 ? 12 : 6;  // multiplied at a time
constexpr int PANEL_BLOCK = 512;                     // rows whose sums are held at a time

// sums [M, PANEL] += x [M, depth] times a panel.
template <int M>
static void multiply_panel(
    const float* panel, const float* const* x, int64_t at, int64_t depth, float* sums) {
    Vec total[M][COLUMNS];
    const float* row[M];
    for (int r = 0; r < M; r++) {
        row[r] = x[r] + at;
        for (int c = 0; c < COLUMNS; c++) total[r][c] = load(sums + r * PANEL + c * LANES);
    }
    for (int64_t i = 0; i < depth; i++, panel += PANEL) {
        Vec w[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) w[c] = load(panel + c * LANES);
        for (int r = 0; r < M; r++) {
            const Vec a = fill(row[r][i]);
            for (int c = 0; c < COLUMNS; c++) total[r][c] = fma(w[c], a, total[r][c]);
        }
    }
    for (int r = 0; r < M; r++) {
        for (int c = 0; c < COLUMNS; c++) store(sums + r * PANEL + c * LANES, total[r][c]);
    }
}

// The same of `rows` rows.
static void multiply_rows(
    const float* panel, const float* const* x, int rows, int64_t at, int64_t depth, float* sums) {
    int r = 0;
    for (; r + PANEL_ROWS <= rows; r += PANEL_ROWS) {
        multiply_panel<PANEL_ROWS>(panel, x + r, at, depth, sums + r * PANEL);
    }
    for (; r + 4 <= rows; r += 4) multiply_panel<4>(panel, x + r, at, depth, sums + r * PANEL);
    for (; r < rows; r++) multiply_panel<1>(panel, x + r, at, depth, sums + r * PANEL);
}

// A panel of chunks from `first` on; outputs beyond `count` are 0.
template <class F>
static void widen_panel(
    const Matrix& m, int64_t output, int count, int64_t first, int64_t chunks, float* panel) {
    for (int c = 0; c < COLUMNS; c++) {
        for (int64_t chunk = first; chunk < first + chunks; chunk++) {
            Vec wide[F::VECS][LANES];
            for (int o = 0; o < LANES; o++) {
                Vec w[F::VECS];
                Vec scale = zero();
                const int64_t number = c * LANES + o, left = m.inputs - chunk * F::CHUNK;
                if (number >= count) {
                    for (int i = 0; i < F::VECS; i++) wide[i][o] = zero();
                    continue;
                }
                const F row(m, output + number);
                if (left >= F::CHUNK) {
                    const uint8_t* p = row.codes + chunk * F::BYTES;
                    for (int line = 0; line < F::BYTES; line += 64) prefetch(p + AHEAD + line);
                    row.expand(p, w);
                    scale = row.scale(chunk);
                } else {
                    expand_last(row, chunk, left, w);
                    scale = row.last_scale(chunk, left, false);
                }
                for (int i = 0; i < F::VECS; i++) {
                    wide[i][o] = F::SCALED ? mul(w[i], scale) : w[i];
                }
            }
            float* to = panel + (chunk - first) * F::CHUNK * PANEL + c * LANES;
            for (int i = 0; i < F::VECS; i++) {
                transpose(wide[i]);
                for (int k = 0; k < LANES; k++) store(to + (i * LANES + k) * PANEL, wide[i][k]);
            }
        }
    }
}

// A panel of the groups' biases, which are multiplied by the sums of groups.
template <class F>
static void bias_panel(
    const Matrix& m, int64_t output, int count, int64_t first, int64_t groups, float* panel) {
    for (int o = 0; o < PANEL; o++) {
        for (int64_t g = 0; g < groups; g++) {
            panel[g * PANEL + o] = o < count ? F(m, output + o).bias(first + g) : 0.0f;
        }
    }
}

// Outputs `begin` to `end` for all rows; `use` as in product.h.
template <class F, class Use>
static void panel_product(
    const Matrix& m, int64_t begin, int64_t end, const Rows& rows, float* own, Use& use) {
    constexpr int64_t AT_ONCE = PANEL_DEPTH / F::CHUNK;
    float *panel = own, *sums = panel + PANEL_DEPTH * PANEL;
    const float** x = (const float**)(sums + PANEL_BLOCK * PANEL);
    const int64_t chunks = chunks_of<F>(m.inputs);
    for (int64_t block = 0; block < rows.count; block += PANEL_BLOCK) {
        const int64_t left = rows.count - block;
        const int some = left < PANEL_BLOCK ? int(left) : PANEL_BLOCK;
        for (int r = 0; r < some; r++) x[r] = rows.row(block + r);
        for (int64_t output = begin; output < end; output += PANEL) {
            const int count = end - output < PANEL ? int(end - output) : PANEL;
            for (int64_t i = 0; i < int64_t(some) * PANEL; i += LANES) store(sums + i, zero());
            for (int64_t first = 0; first < chunks; first += AT_ONCE) {
                const int64_t n = chunks - first < AT_ONCE ? chunks - first : AT_ONCE;
                widen_panel<F>(m, output, count, first, n, panel);
                multiply_rows(panel, x, some, first * F::CHUNK, n * F::CHUNK, sums);
            }
            if constexpr (F::BIASED) {
                const int64_t groups = m.inputs / m.group;
                for (int64_t first = 0; first < groups; first += PANEL_DEPTH) {
                    const int64_t n = groups - first < PANEL_DEPTH ? groups - first : PANEL_DEPTH;
                    bias_panel<F>(m, output, count, first, n, panel);
                    multiply_rows(panel, x, some, rows.padded + first, n, sums);
                }
            }
            use(output, count, block, some, sums, PANEL);
        }
    }
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
