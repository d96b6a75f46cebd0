// Decode attention: one token of each of several sequences over keys and values in two buffers of
// the sequence, an arena and a page.
//
// A threadgroup serves all query heads of one key head for a range of a sequence's tokens
// (split-KV), so that keys and values are read once. A simdgroup takes one token at a time: each half of its lanes
// serves half of the heads, and a lane takes four of every 64 elements of the key, so that every
// load is of whole cache lines. A lane holds only 32 numbers of queries and sums: it has 128
// registers, and fewer threads run where a kernel takes many.
//
// The softmax is computed online: a simdgroup scores a block of tokens before it changes any
// maximum. The lanes of a half exchange their products such that every fourth lane holds the scores
// of one head and keeps that head's maximum and sum. Maxima begin at the head's sink, so that none
// is infinite.

#include "place.metal"
#include "places.metal"

constant constexpr int LANES = 16;  // of half a simdgroup
constant constexpr int BLOCK = 8;   // tokens of a simdgroup at a time
constant constexpr int OWNERS = 4;  // heads of a half; a lane keeps maximum and sum of one

// Four bfloats as floats.
inline float4 two_words(uint2 w) {
    return as_type<float4>(uint4(w.x << 16, w.x & 0xFFFF0000u, w.y << 16, w.y & 0xFFFF0000u));
}

inline float4 four(const device float* values, int quad) {
    return ((const device float4*)values)[quad];
}
inline float4 four(const device bfloat* values, int quad) {
    return two_words(((const device uint2*)values)[quad]);
}

// A lane's part of a query, key, value or sum of values: four of every 64 elements.
template <int HEAD_DIM>
struct Share {
    static constant constexpr int ALL = HEAD_DIM / 4;  // quads of all lanes
    static constant constexpr int QUADS = (ALL + LANES - 1) / LANES;

    float4 quads[QUADS];

    void clear() {
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            quads[i] = 0.0f;
        }
    }

    template <typename T>
    void read(const device T* values, int part) {
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const int quad = i * LANES + part;
            quads[i] = quad < ALL ? four(values, quad) : float4(0.0f);
        }
    }

    float product(Share other) const {
        float4 sum = quads[0] * other.quads[0];
#pragma unroll
        for (int i = 1; i < QUADS; i++) {
            sum = fma(quads[i], other.quads[i], sum);
        }
        return (sum.x + sum.y) + (sum.z + sum.w);
    }

    void add(float factor, Share other) {
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            quads[i] = fma(factor, other.quads[i], quads[i]);
        }
    }

    void scale(float factor) {
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            quads[i] *= factor;
        }
    }
};

// Sums each of four numbers over the lanes of a half, and returns number `lane % 4` of the sums.
// All lanes take part.
inline float own_sum(float4 sums, int lane) {
    const bool high = lane & 2, odd = lane & 1;
    const float2 two = (high ? sums.zw : sums.xy) + simd_shuffle_xor(high ? sums.xy : sums.zw, 2);
    float one = (odd ? two.y : two.x) + simd_shuffle_xor(odd ? two.x : two.y, 1);
    one += simd_shuffle_xor(one, 4);
    return one + simd_shuffle_xor(one, 8);
}

// kernel
//
// q [HEADS, sequences, HEAD_DIM] T, arena0, arena1, ... [2, KV_HEADS, any, HEAD_DIM] T, one for
// each sequence, pages [sequences, 2, KV_HEADS, any, HEAD_DIM] T,
// places [sequences, layers, COLUMNS] i32, layer i32: how many tokens of the arena and of the page
// count, and into how many ranges they are divided, sinks [HEADS] T, scale f32
// -> y: if !SPLIT [sequences, HEADS * HEAD_DIM] T; else [sequences, ranges, HEADS, HEAD_DIM + 2]
// f32: of each range of tokens the sum of values, weighted by exp(score - maximum), the maximum,
// the sum of weights.
// grid: KV_HEADS x ranges x sequences threadgroups of THREADS
//
// ops/decode_attention.py writes the first lines: `arena` and `arena_room` of this `sequence`.

constexpr int RATIO = HEADS / KV_HEADS, EACH = (RATIO + 1) / 2, SIMDS = THREADS / 32;
typedef Share<HEAD_DIM> Values;
threadgroup float weighted[SIMDS * RATIO * HEAD_DIM];
threadgroup float maxima[SIMDS * RATIO];
threadgroup float sums[SIMDS * RATIO];

const int simdgroup = simdgroup_index_in_threadgroup, lane = thread_index_in_simdgroup;
const int part = lane % LANES, begin = lane / LANES * EACH;  // first head of the half
const ushort owners = lane / LANES * LANES;                  // lane that keeps its sum
const int head = threadgroup_position_in_grid.x, range = threadgroup_position_in_grid.y;
const int sequences = threadgroups_per_grid.z, room_for_ranges = threadgroups_per_grid.y;
const int mapped = (sequence * places_shape[1] + layer) * COLUMNS;
const int ranges = places[mapped + RANGES];
if (range >= ranges) {
    return;  // another sequence has more of them
}
const int in_arena = places[mapped + IN_ARENA];
const int total = in_arena + places[mapped + SEEN];
const int blocks = (total + BLOCK - 1) / BLOCK, share = (blocks + ranges - 1) / ranges;
const int last = min(blocks, (range + 1) * share);
const int page_room = pages_shape[3];
const device T* page = pages + size_t(sequence) * (2 * KV_HEADS * HEAD_DIM) * page_room;

Values queries[EACH], mine[EACH];
#pragma unroll
for (int h = 0; h < EACH; h++) {
    const int query = head * RATIO + min(begin + h, RATIO - 1);
    queries[h].read(q + (query * sequences + sequence) * HEAD_DIM, part);
    queries[h].scale(scale);
    mine[h].clear();
}
float highest = float(sinks[head * RATIO + min(begin + lane % OWNERS, RATIO - 1)]), weight = 0.0f;

for (int block = range * share + simdgroup; block < last; block += SIMDS) {
    float scores[BLOCK];
#pragma unroll
    for (int s = 0; s < BLOCK; s++) {
        const int token = min(block * BLOCK + s, total - 1);
        const bool held_there = token < in_arena;
        const int room = held_there ? arena_room : page_room;
        const int at = held_there ? token : token - in_arena;
        Values key;
        key.read((held_there ? arena : page) + (size_t(head) * room + at) * HEAD_DIM, part);
        float4 products = 0.0f;
#pragma unroll
        for (int h = 0; h < EACH; h++) {
            products[h] = queries[h].product(key);
        }
        const float score = own_sum(products, lane);
        scores[s] = block * BLOCK + s < total ? score : -INFINITY;
    }
    float next = highest;
#pragma unroll
    for (int s = 0; s < BLOCK; s++) {
        next = max(next, scores[s]);
    }
    const float factor = precise::exp(highest - next);
    weight *= factor;
    highest = next;
#pragma unroll
    for (int s = 0; s < BLOCK; s++) {
        scores[s] = precise::exp(scores[s] - next);
        weight += scores[s];
    }
#pragma unroll
    for (int h = 0; h < EACH; h++) {
        mine[h].scale(simd_shuffle(factor, ushort(owners + h)));
    }
#pragma unroll
    for (int s = 0; s < BLOCK; s++) {
        const int token = min(block * BLOCK + s, total - 1);
        const bool held_there = token < in_arena;
        const int room = held_there ? arena_room : page_room;
        const int at = held_there ? token : token - in_arena;
        Values value;
        value.read(
            (held_there ? arena : page) + (size_t(KV_HEADS + head) * room + at) * HEAD_DIM, part);
#pragma unroll
        for (int h = 0; h < EACH; h++) {
            mine[h].add(simd_shuffle(scores[s], ushort(owners + h)), value);
        }
    }
}

if (part < EACH && begin + part < RATIO) {
    maxima[simdgroup * RATIO + begin + part] = highest;
    sums[simdgroup * RATIO + begin + part] = weight;
}
#pragma unroll
for (int h = 0; h < EACH; h++) {
#pragma unroll
    for (int i = 0; i < Values::QUADS; i++) {
        const int quad = i * LANES + part;
        if (begin + h < RATIO && quad < Values::ALL) {
            threadgroup float* to =
                weighted + (simdgroup * RATIO + begin + h) * HEAD_DIM + 4 * quad;
            to[0] = mine[h].quads[i].x;
            to[1] = mine[h].quads[i].y;
            to[2] = mine[h].quads[i].z;
            to[3] = mine[h].quads[i].w;
        }
    }
}
threadgroup_barrier(mem_flags::mem_threadgroup);

for (int i = simdgroup * 32 + lane; i < RATIO * HEAD_DIM; i += THREADS) {
    const int h = i / HEAD_DIM, query = head * RATIO + h;
    const float sink = float(sinks[query]);
    float most = sink;
    for (int s = 0; s < SIMDS; s++) {
        most = max(most, maxima[s * RATIO + h]);
    }
    float sum = 0.0f, value = 0.0f;
    for (int s = 0; s < SIMDS; s++) {
        const float factor = precise::exp(maxima[s * RATIO + h] - most);
        sum = fma(factor, sums[s * RATIO + h], sum);
        value = fma(factor, weighted[s * RATIO * HEAD_DIM + i], value);
    }
    if (!SPLIT) {
        y[(sequence * HEADS + query) * HEAD_DIM + i % HEAD_DIM] =
            Y(value / (sum + precise::exp(sink - most)));
        continue;
    }
    const int at =
        ((sequence * room_for_ranges + range) * HEADS + query) * (HEAD_DIM + 2);
    y[at + i % HEAD_DIM] = Y(value);
    if (i % HEAD_DIM == 0) {
        y[at + HEAD_DIM] = Y(most);
        y[at + HEAD_DIM + 1] = Y(sum);
    }
}
