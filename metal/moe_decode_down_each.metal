// Second half of an expert for a few tokens, before the sum: down for each of a token's experts.
//
// A threadgroup computes ROWS elements of one expert's products for two tokens at a time.

#include "rows.metal"
#include "visitors.metal"

// kernel
//
// x [tokens, ACTIVE, K] T, blocks [slots, N, K / 8] u32, scales [slots, N, K / 32] u8,
// slots [tokens, ACTIVE] u32 -> products [tokens, ACTIVE, N] f32
// grid: (ceil(N / ROWS), tokens * ACTIVE) threadgroups of THREADS

const int pairs = threadgroups_per_grid.y, leader = threadgroup_position_in_grid.y;
const uint slot = slots[leader];
if (next_visitor(slots, slot, 0, pairs) < leader) {
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
threadgroup float4 space[2 * tile_size(K)];
threadgroup float sums[2 * ROWS];

for (int pair = leader; pair < pairs;) {
    const int other = next_visitor(slots, slot, pair + 1, pairs);
    for (int i = place.thread_index; i < 2 * ROWS; i += place.threads) {
        sums[i] = 0.0f;
    }
    Vectors<T, 2> visiting;
    visiting.of[0] = x + pair * K;
    visiting.of[1] = x + (other < pairs ? other : pair) * K;
    add_product<T, K, 2>(
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
    for (int i = place.thread_index; i < count; i += place.threads) {
        products[pair * N + row + i] = sums[i];
        if (other < pairs) {
            products[other * N + row + i] = sums[ROWS + i];
        }
    }
    pair = other < pairs ? next_visitor(slots, slot, other + 1, pairs) : pairs;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the sums have been read
}
