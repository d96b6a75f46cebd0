// First half of an expert for a few tokens: gate and up, bias, clamped SwiGLU.
//
// A threadgroup computes ROWS / 2 activations of one expert for one token: first ROWS rows of the
// product, of which even ones are gates and odd ones ups, then the activations, one a thread.

#include "rows.metal"
#include "swiglu.metal"

// kernel
//
// x [tokens, K] T, blocks [slots, N, K / 8] u32, scales [slots, N, K / 32] u8, bias [experts, N] T,
// slots and experts [tokens, ACTIVE] u32, limit f32 -> out [tokens, ACTIVE, N / 2] T
// grid: (ceil(N / ROWS), tokens * ACTIVE) threadgroups of THREADS

const int pair = threadgroup_position_in_grid.y;
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
    sums[i] = 0.0f;
}
add_product<T, K>(
    x + pair / ACTIVE * K,
    (const device uint4*)blocks,
    scales,
    int(slots[pair]) * N + row,
    count,
    1.0f,
    space,
    sums,
    place);
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int i = place.thread_index; i < count / 2; i += place.threads) {
    const device T* b = bias + int(experts[pair]) * N + row + 2 * i;
    out[(pair * N + row) / 2 + i] =
        T(swiglu(sums[2 * i] + float(b[0]), sums[2 * i + 1] + float(b[1]), limit));
}
