// The merge of split-KV attention: joins what decode_attention.metal found in ranges of the tokens.
//
// A thread computes one element of a head's result.

#include "place.metal"
#include "places.metal"

// kernel
//
// parts [sequences, any, HEADS, HEAD_DIM + 2] f32 as decode_attention.metal writes them,
// sinks [HEADS] T, places and layer as there -> y [sequences, HEADS * HEAD_DIM] T
// grid: HEADS x sequences threadgroups of THREADS

const int head = threadgroup_position_in_grid.x, sequence = threadgroup_position_in_grid.y;
const int ranges = places[(sequence * places_shape[1] + layer) * COLUMNS + RANGES];
const float sink = float(sinks[head]);
const device float* part =
    parts + (size_t(sequence) * parts_shape[1] * HEADS + head) * (HEAD_DIM + 2);
constexpr int NEXT = HEADS * (HEAD_DIM + 2);
float most = sink;
for (int range = 0; range < ranges; range++) {
    most = max(most, part[range * NEXT + HEAD_DIM]);
}
for (int i = thread_index_in_threadgroup; i < HEAD_DIM; i += THREADS) {
    float sum = precise::exp(sink - most), value = 0.0f;
    for (int range = 0; range < ranges; range++) {
        const device float* from = part + range * NEXT;
        const float factor = precise::exp(from[HEAD_DIM] - most);
        sum = fma(factor, from[HEAD_DIM + 1], sum);
        value = fma(factor, from[i], value);
    }
    y[(sequence * HEADS + head) * HEAD_DIM + i] = T(value / sum);
}
