// A projection for a few tokens: norm, product, bias, residual; all but the product are optional.
//
// A threadgroup computes ROWS outputs of every token.

#include "matvec.metal"

// kernel
//
// x [tokens, K] T, up to TOKENS of them, gain [K] T, weight [N, ..] (u32 codes, or T), scales and
// biases [N, K / GROUP] S, bias [N] T, residual [tokens, N] T, eps f32 -> out [tokens, N] Y
// An input that FORMAT, NORM, BIAS or RESIDUAL leaves out may be anything.
// grid: ceil(N / ROWS) threadgroups of THREADS

typedef Product<T, S, FORMAT, BITS, GROUP, K, TOKENS, ROWS, NORM> P;
threadgroup float4 held[P::SPACE];
threadgroup float unit_sums[P::SUMS];
threadgroup float squares[NORM ? TOKENS * 32 : 1];
threadgroup float sums[TOKENS * ROWS];

const Place place = {
    int(thread_index_in_threadgroup),
    THREADS,
    int(simdgroup_index_in_threadgroup),
    THREADS / 32,
    int(thread_index_in_simdgroup)};
const int row = threadgroup_position_in_grid.x * ROWS;
const int count = min(ROWS, N - row);
const Matrix<S> matrix = {(const device uint*)weight, scales, biases};
const int tokens = x_shape[0];
const P product = {x, tokens, gain, matrix, place, held, unit_sums, squares, sums};

product.run(row, count);
for (int i = place.thread_index; i < tokens * count; i += place.threads) {
    const int token = i / count, n = row + i % count;
    float y = product.norm(token, eps) * sums[token * ROWS + i % count];
    if (BIAS) {
        y += float(bias[n]);
    }
    if (RESIDUAL) {
        y += float(residual[token * N + n]);
    }
    out[token * N + n] = Y(y);
}
