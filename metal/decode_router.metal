// The router's logits for a few tokens, and the normalized vectors that the experts read.
//
// A threadgroup computes ROWS logits of every token; the first also writes the vectors.

#include "matvec.metal"

// kernel
//
// x [tokens, K] T, up to TOKENS of them, gain [K] T, weight, scales, biases of [N, K] as in
// quantized_matvec.metal, bias [N] T, eps f32 -> logits [tokens, N] f32, h [tokens, K] T
// grid: ceil(N / ROWS) threadgroups of THREADS

typedef Product<T, S, FORMAT, BITS, GROUP, K, TOKENS, ROWS, true> P;
threadgroup float4 held[P::SPACE];
threadgroup float unit_sums[P::SUMS];
threadgroup float squares[TOKENS * 32];
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
    const float y = product.norm(token, eps) * sums[token * ROWS + i % count];
    logits[token * N + n] = y + float(bias[n]);
}
if (row == 0) {
    for (int token = 0; token < tokens; token++) {
        const float norm = product.norm(token, eps);
        for (int i = place.thread_index; i < K; i += place.threads) {
            h[token * K + i] = T(float(x[token * K + i]) * norm * float(gain[i]));
        }
    }
}
