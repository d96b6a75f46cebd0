// A projection for a few tokens: norm, product, bias, residual; all but the product optional.
//
// A threadgroup computes ROWS outputs of every token.

#include "matvec.metal"

// kernel
//
// x [TOKENS, K] T, gain [K] T, weight [N, ..] (u32 codes, or T), scales and biases
// [N, K / GROUP] S, bias [N] T, residual [TOKENS, N] T, eps f32 -> out [TOKENS, N] T
// An input that FORMAT, NORM, BIAS or RESIDUAL leaves out may be anything.
// grid: ceil(N / ROWS) threadgroups of any number of simdgroups

typedef Product<T, S, FORMAT, BITS, GROUP, K, TOKENS, ROWS, NORM> P;
threadgroup float4 held[P::SPACE];
threadgroup float unit_sums[P::SUMS];
threadgroup float squares[NORM ? TOKENS * 32 : 1];
threadgroup float sums[TOKENS * ROWS];

const Place place = {
    int(thread_index_in_threadgroup),
    int(threads_per_threadgroup.x),
    int(simdgroup_index_in_threadgroup),
    int(simdgroups_per_threadgroup),
    int(thread_index_in_simdgroup)};
const int row = threadgroup_position_in_grid.x * ROWS;
const int count = min(ROWS, N - row);
const Matrix<S> matrix = {(const device uint*)weight, scales, biases};
const P product = {x, gain, matrix, place, held, unit_sums, squares, sums};

product.run(row, count);
for (int i = place.thread_index; i < TOKENS * count; i += place.threads) {
    const int token = i / count, n = row + i % count;
    float y = product.norm(token, eps) * sums[token * ROWS + i % count];
    if (BIAS) {
        y += float(bias[n]);
    }
    if (RESIDUAL) {
        y += float(residual[token * N + n]);
    }
    out[token * N + n] = T(y);
}
