// Second half of an expert for one token: down, bias, weighted sum over the experts, residual.
//
// A threadgroup computes ROWS elements of one token's result: the products of the token's experts
// one after the other, in the router's order, all added to a row's sum by the same thread.

#include "rows.metal"

// kernel
//
// x [tokens, ACTIVE, K] T, blocks [slots, N, K / 8] u32, scales [slots, N, K / 32] u8,
// bias [experts, N] T, slots and experts [tokens, ACTIVE] u32, weights [tokens, ACTIVE],
// residual [tokens, N] T, if RESIDUAL, or anything -> out [tokens, N] T
// grid: (ceil(N / ROWS), tokens) threadgroups of THREADS

const int token = threadgroup_position_in_grid.y;
const int row = threadgroup_position_in_grid.x * ROWS;
const int count = min(ROWS, N - row);
const Place place = {
    int(thread_index_in_threadgroup),
    THREADS,
    int(simdgroup_index_in_threadgroup),
    THREADS / 32,
    int(thread_index_in_simdgroup)};
threadgroup float4 space[tile_size(K)];
threadgroup float sums[ROWS];

for (int i = place.thread_index; i < count; i += place.threads) {
    float sum = RESIDUAL ? float(residual[token * N + row + i]) : 0.0f;
    for (int pair = token * ACTIVE; pair < (token + 1) * ACTIVE; pair++) {
        sum = fma(float(weights[pair]), float(bias[int(experts[pair]) * N + row + i]), sum);
    }
    sums[i] = sum;
}
for (int pair = token * ACTIVE; pair < (token + 1) * ACTIVE; pair++) {
    Vectors<T, 1> visiting;
    visiting.of[0] = x + pair * K;
    add_product<T, K, 1>(
        visiting,
        (const device uint4*)blocks,
        scales,
        int(slots[pair]) * N + row,
        count,
        float(weights[pair]),
        space,
        sums,
        ROWS,
        place);
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int i = place.thread_index; i < count; i += place.threads) {
    out[token * N + row + i] = T(sums[i]);
}
