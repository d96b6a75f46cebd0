// First half of an expert for a few tokens: gate and up, bias, clamped SwiGLU.
//
// A threadgroup computes ROWS / 2 activations of one expert for up to COUNT tokens at a time: first
// ROWS rows of the product, of which even ones are gates and odd ones ups, then the activations, one
// a thread.

#include "rows.metal"
#include "swiglu.metal"
#include "visitors.metal"

// kernel
//
// x [tokens, K] T, blocks [slots, N, K / 8] u32, scales [slots, N, K / 32] u8, bias [experts, N] T,
// slots and experts [tokens, ACTIVE] u32, limit f32 -> out [tokens, ACTIVE, N / 2] T
// grid: (ceil(N / ROWS), tokens * ACTIVE) threadgroups of THREADS; COUNT is 1 or 2

const int pairs = threadgroups_per_grid.y, leader = threadgroup_position_in_grid.y;
const uint slot = slots[leader];
if (COUNT > 1 && next_visitor(slots, slot, 0, pairs) < leader) {
    return;
}
const int row = threadgroup_position_in_grid.x * ROWS;
const int count = min(ROWS, N - row);
const Place place = {
    int(thread_index_in_threadgroup),
    THREADS,
    int(simdgroup_index_in_threadgroup),
    THREADS / 32,
    int(thread_index_in_simdgroup)};
threadgroup float4 space[COUNT * tile_size(K)];
threadgroup float sums[COUNT * ROWS];

for (int pair = leader; pair < pairs;) {
    const int other = COUNT > 1 ? next_visitor(slots, slot, pair + 1, pairs) : pairs;
    for (int i = place.thread_index; i < COUNT * ROWS; i += place.threads) {
        sums[i] = 0.0f;
    }
    Vectors<T, COUNT> visiting;
    visiting.of[0] = x + pair / ACTIVE * K;
    if (COUNT > 1) {
        visiting.of[COUNT - 1] = x + (other < pairs ? other : pair) / ACTIVE * K;
    }
    add_product<T, K, COUNT>(
        visiting,
        (const device uint4*)blocks,
        scales,
        int(slot) * N + row,
        count,
        1.0f,
        space,
        sums,
        ROWS,
        place);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const device T* biases = bias + int(experts[pair]) * N + row;
    for (int i = place.thread_index; i < count / 2; i += place.threads) {
        const float gate = float(biases[2 * i]), up = float(biases[2 * i + 1]);
        out[(pair * N + row) / 2 + i] = T(swiglu(sums[2 * i] + gate, sums[2 * i + 1] + up, limit));
        if (COUNT > 1 && other < pairs) {
            threadgroup float* second = sums + (COUNT - 1) * ROWS;
            out[(other * N + row) / 2 + i] =
                T(swiglu(second[2 * i] + gate, second[2 * i + 1] + up, limit));
        }
    }
    pair = COUNT > 1 && other < pairs ? next_visitor(slots, slot, other + 1, pairs) : pairs;
    if (COUNT > 1) {
        threadgroup_barrier(mem_flags::mem_threadgroup);  // the sums have been read
    }
}
