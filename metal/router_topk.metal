// The router's choice: the largest logits of a token, and the softmax over just those.
//
// A simdgroup chooses for one token. A lane holds every 32nd expert; each round finds the largest
// of the remaining logits, of equal ones the lowest expert. Logits are compared as integers in the
// same order, so that the order is total: -0 equals 0, and NaN is the smallest of all, chosen last.

#include <metal_stdlib>

using namespace metal;

// A logit's rank, an integer that rises with it from 1 on; 0 marks experts already chosen.
inline uint rank_of(float logit) {
    const uint bits = as_type<uint>(logit), magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) {
        return 1;
    }
    return magnitude == bits || magnitude == 0 ? magnitude | 0x80000000u : ~bits;
}

// kernel
//
// logits [tokens, EXPERTS] T -> ids [tokens, ACTIVE] u32, the largest logit's first,
// weights [tokens, ACTIVE] T
// grid: tokens threadgroups of one simdgroup

const int token = threadgroup_position_in_grid.x;
const int lane = thread_index_in_simdgroup;
constexpr int HELD = (EXPERTS + 31) / 32;
uint ranks[HELD];
#pragma unroll
for (int i = 0; i < HELD; i++) {
    const int expert = i * 32 + lane;
    ranks[i] = expert < EXPERTS ? rank_of(float(logits[token * EXPERTS + expert])) : 0;
}
float mine[(ACTIVE + 31) / 32];
float highest = 0.0f, total = 0.0f;
for (int round = 0; round < ACTIVE; round++) {
    uint best = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        best = max(best, ranks[i]);
    }
    best = simd_max(best);
    uint expert = EXPERTS;
#pragma unroll
    for (int i = HELD - 1; i >= 0; i--) {
        expert = ranks[i] == best ? uint(i * 32 + lane) : expert;
    }
    expert = simd_min(expert);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        ranks[i] = uint(i * 32 + lane) == expert ? 0 : ranks[i];
    }
    const float logit = float(logits[token * EXPERTS + expert]);
    highest = round == 0 ? logit : highest;
    const float share = precise::exp(logit - highest);
    total += share;
    if (lane == round % 32) {
        mine[round / 32] = share;
        ids[token * ACTIVE + round] = expert;
    }
}
for (int round = lane; round < ACTIVE; round += 32) {
    weights[token * ACTIVE + round] = T(mine[round / 32] / total);
}
