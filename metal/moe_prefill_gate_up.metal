// First half of an expert for many tokens: gate and up, bias, clamped SwiGLU.
//
// A threadgroup computes the activations of a tile's tokens from 32 outputs for each simdgroup. A
// lane holds a gate and its up, two of each, so that the activation needs no other lane.

#include "moe_prefill.metal"
#include "swiglu.metal"

// kernel
//
// x [tokens, K] T, blocks [slots, N, K / 8] u32, scales [slots, N, K / 32] u8, bias [experts, N] T,
// slots [tokens, 1] u32, ascending, experts [tokens, 1] u32, one to a slot, limit f32
// -> out [tokens, 1, N / 2] T
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
            vec<T, OUTPUTS / 2> values;
            for (int j = 0; j < OUTPUTS; j += 2) {
                const float gate = sums.of[j][m][i] * EIGHT_SCALE + biases[j];
                const float up = sums.of[j + 1][m][i] * EIGHT_SCALE + biases[j + 1];
                values[j / 2] = T(swiglu(gate, up, limit));
            }
            device T* to = out + ((tile.first + token) * N + row) / 2;
            write<T, OUTPUTS / 2, N / 2>(to, values, (N - row) / 2);
        }
    }
}
