// The sum over the experts of a few tokens: products, bias, routing weights, residual.
//
// A thread computes one element of one token's result, and adds in the order of
// moe_decode_down.metal, so that both give the same bits.

#include <metal_stdlib>

using namespace metal;

// kernel
//
// products [tokens, ACTIVE, N] f32 as moe_decode_down_each.metal writes them, bias [experts, N] T,
// experts [tokens, ACTIVE] u32, weights [tokens, ACTIVE], residual [tokens, N] T, if RESIDUAL, or
// anything -> out [tokens, N] T
// grid: (ceil(N / THREADS), tokens) threadgroups of THREADS

const int token = threadgroup_position_in_grid.y;
const int i = threadgroup_position_in_grid.x * THREADS + thread_index_in_threadgroup;
if (i >= N) {
    return;
}
float sum = RESIDUAL ? float(residual[token * N + i]) : 0.0f;
for (int pair = token * ACTIVE; pair < (token + 1) * ACTIVE; pair++) {
    sum = fma(float(weights[pair]), float(bias[int(experts[pair]) * N + i]), sum);
}
for (int pair = token * ACTIVE; pair < (token + 1) * ACTIVE; pair++) {
    sum = fma(float(weights[pair]), products[pair * N + i], sum);
}
out[token * N + i] = T(sum);
