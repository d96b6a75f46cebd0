// Second half of an expert for many tokens: down, bias, routing weight.
//
// A threadgroup computes 32 outputs for each simdgroup and each of a tile's tokens.

#include "moe_prefill.metal"

// kernel
//
// x [tokens, 1, K] T, blocks [slots, N, K / 8] u32, scales [slots, N, K / 32] u8,
// bias [experts, N] T, slots [tokens, 1] u32, ascending, experts [tokens, 1] u32, one to a slot,
// weights [tokens, 1] T -> out [tokens, N] T
// grid: (TILES * outputs in portions of 32 a simdgroup, tiles / TILES) threadgroups of THREADS

const int number = threadgroup_position_in_grid.y * TILES + threadgroup_position_in_grid.x % TILES;
const int portion = threadgroup_position_in_grid.x / TILES;
threadgroup float2 space[SPACE / 2];
const Tile tile = find_tile(slots, slots_shape[0], number, thread_index_in_simdgroup);
if (tile.count <= 0) {
    return;
}
const Position position(
    thread_index_in_threadgroup, THREADS, thread_index_in_simdgroup);
const int begin = (portion * (THREADS / 32) + simdgroup_index_in_threadgroup) * 32;
Sums sums = {};
add_product<T, K, N>(x, blocks, scales, tile, begin, (threadgroup float*)space, sums, position);

const int row = begin + OUTPUTS * position.row;
if (row >= N) {
    return;
}
float biases[OUTPUTS];
for (int j = 0; j < OUTPUTS; j++) {
    biases[j] = float(bias[int(experts[tile.first]) * N + min(row + j, N - 1)]);
}
for (int m = 0; m < FRAGMENTS; m++) {
    for (int i = 0; i < 2; i++) {
        const int token = 8 * m + 2 * position.pair + i;
        if (token < tile.count) {
            const int at = tile.first + token;
            vec<T, OUTPUTS> values;
            for (int j = 0; j < OUTPUTS; j++) {
                const float sum = sums.of[j][m][i] * EIGHT_SCALE + biases[j];
                values[j] = T(sum * float(weights[at]));
            }
            write<T, OUTPUTS, N>(out + at * N + row, values, N - row);
        }
    }
}
