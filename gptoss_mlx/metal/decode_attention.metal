// Attention of one token over keys and values kept in two parts, an arena and a page.
//
// A threadgroup serves all query heads of one key head for a range of the tokens, so that these are
// read once. Eight lanes take a token, a lane 16 bytes of each line of its key, so that every load
// is of whole lines; a simdgroup meets a block of tokens before it changes any maximum. The eight
// lanes exchange their products such that each holds the scores of one head in eight: it alone
// keeps that head's maximum and sum. Maxima begin at the head's sink, so that none is infinite.

#include "place.metal"

constant constexpr int LANES = 8;                   // of a token
constant constexpr int STEPS = 4;                   // tokens of a lane in a block
constant constexpr int BLOCK = 32 / LANES * STEPS;  // tokens of a simdgroup in a block

// Four bfloats.
inline float4 two_words(uint2 w) {
    return as_type<float4>(uint4(w.x << 16, w.x & 0xFFFF0000u, w.y << 16, w.y & 0xFFFF0000u));
}

// What one of eight lanes holds of a head's values: 16 bytes in every 128.
template <typename T, int HEAD_DIM>
struct Share {
    static constant constexpr int EACH = 16 / sizeof(T);    // values in 16 bytes
    static constant constexpr int PIECES = HEAD_DIM / EACH;  // of all lanes
    static constant constexpr int COUNT = (PIECES + LANES - 1) / LANES;
    static constant constexpr int QUADS = COUNT * EACH / 4;

    float4 quads[QUADS];

    // The place of a quad among the head's values, HEAD_DIM or more if it is none of them.
    static int element(int quad, int part) {
        return (quad * 4 / EACH * LANES + part) * EACH + quad * 4 % EACH;
    }

    void clear() {
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            quads[i] = 0.0f;
        }
    }

    void read(const device T* values, int part) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int piece = i * LANES + part;
            const uint4 words = piece < PIECES ? ((const device uint4*)values)[piece] : uint4(0);
            if (EACH == 4) {
                quads[i] = as_type<float4>(words);
            } else {
                quads[i * (EACH / 4)] = two_words(words.xy);
                quads[(i + 1) * (EACH / 4) - 1] = two_words(words.zw);
            }
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

    // The sum of the simdgroup's shares of the same part; all its lanes take part.
    void gather() {
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            quads[i] += simd_shuffle_xor(quads[i], ushort(LANES));
            quads[i] += simd_shuffle_xor(quads[i], ushort(2 * LANES));
        }
    }
};

// Of eight sums over eight lanes, the one that bears the lane's number; all lanes take part.
inline float own_sum(thread float* values, int lane) {
#pragma unroll
    for (int half_way = LANES / 2; half_way > 0; half_way /= 2) {
        const bool upper = lane & half_way;
#pragma unroll
        for (int i = 0; i < half_way; i++) {
            const float kept = upper ? values[i + half_way] : values[i];
            const float given = upper ? values[i] : values[i + half_way];
            values[i] = kept + simd_shuffle_xor(given, ushort(half_way));
        }
    }
    return values[0];
}

inline float largest_of_groups(float value) {
    value = max(value, simd_shuffle_xor(value, ushort(LANES)));
    return max(value, simd_shuffle_xor(value, ushort(2 * LANES)));
}

inline float sum_of_groups(float value) {
    value += simd_shuffle_xor(value, ushort(LANES));
    return value + simd_shuffle_xor(value, ushort(2 * LANES));
}

// kernel
//
// q [HEADS, 1, HEAD_DIM] T, arena [2, KV_HEADS, any, HEAD_DIM] T of which `held` i32 tokens count,
// page [2, KV_HEADS, any, HEAD_DIM] T of which `count` i32 count, sinks [HEADS] T, scale f32
// -> y: if !SPLIT [HEADS * HEAD_DIM] T; else [ranges, HEADS, HEAD_DIM + 2] f32: of each range of
// tokens the sum of values, weighted by exp(score - maximum), the maximum, the sum of weights.
// grid: KV_HEADS x ranges threadgroups of SIMDS simdgroups

constexpr int RATIO = HEADS / KV_HEADS, OWNED = (RATIO + LANES - 1) / LANES;
typedef Share<T, HEAD_DIM> Values;
threadgroup float weighted[SIMDS * RATIO * HEAD_DIM];
threadgroup float maxima[SIMDS * RATIO];
threadgroup float sums[SIMDS * RATIO];

const int simdgroup = simdgroup_index_in_threadgroup, lane = thread_index_in_simdgroup;
const int part = lane % LANES, group = lane / LANES;
const int head = threadgroup_position_in_grid.x, range = threadgroup_position_in_grid.y;
const int ranges = threadgroups_per_grid.y;
const int in_arena = held, total = in_arena + count;
const int blocks = (total + BLOCK - 1) / BLOCK, share = (blocks + ranges - 1) / ranges;
const int last = min(blocks, (range + 1) * share);
const int arena_room = arena_shape[2], page_room = page_shape[2];

Values queries[RATIO], mine[RATIO];
#pragma unroll
for (int h = 0; h < RATIO; h++) {
    queries[h].read(q + (head * RATIO + h) * HEAD_DIM, part);
    queries[h].scale(scale);
    mine[h].clear();
}
float highest[OWNED], weight[OWNED];
#pragma unroll
for (int i = 0; i < OWNED; i++) {
    highest[i] = float(sinks[head * RATIO + min(i * LANES + part, RATIO - 1)]);
    weight[i] = 0.0f;
}

for (int block = range * share + simdgroup; block < last; block += SIMDS) {
    const device T* keys[STEPS];
    size_t values_at[STEPS];
    float scores[OWNED][STEPS];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const int token = block * BLOCK + s * (32 / LANES) + group;
        const bool held_there = token < in_arena;
        const int room = held_there ? arena_room : page_room;
        const int at = held_there ? token : token - in_arena;
        const device T* all = held_there ? arena : page;
        keys[s] = token < total ? all + (size_t(head) * room + at) * HEAD_DIM : nullptr;
        values_at[s] = size_t(KV_HEADS) * room * HEAD_DIM;
    }
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        Values key;
        key.clear();
        if (keys[s]) {
            key.read(keys[s], part);
        }
#pragma unroll
        for (int i = 0; i < OWNED; i++) {
            float products[LANES];
#pragma unroll
            for (int j = 0; j < LANES; j++) {
                const int h = i * LANES + j;
                products[j] = h < RATIO ? queries[min(h, RATIO - 1)].product(key) : 0.0f;
            }
            const float score = own_sum(products, lane);
            scores[i][s] = keys[s] ? score : -INFINITY;
        }
    }
#pragma unroll
    for (int i = 0; i < OWNED; i++) {
        float next = highest[i];
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            next = max(next, scores[i][s]);
        }
        const float factor = precise::exp(highest[i] - next);
        weight[i] *= factor;
        highest[i] = next;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            scores[i][s] = precise::exp(scores[i][s] - next);
            weight[i] += scores[i][s];
        }
#pragma unroll
        for (int h = 0; h < LANES && i * LANES + h < RATIO; h++) {
            mine[i * LANES + h].scale(simd_shuffle(factor, ushort(group * LANES + h)));
        }
    }
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        Values value;
        value.clear();
        if (keys[s]) {
            value.read(keys[s] + values_at[s], part);
        }
#pragma unroll
        for (int h = 0; h < RATIO; h++) {
            const ushort owner = group * LANES + h % LANES;
            mine[h].add(simd_shuffle(scores[h / LANES][s], owner), value);
        }
    }
}

#pragma unroll
for (int i = 0; i < OWNED; i++) {
    const float most = largest_of_groups(highest[i]);
    const float factor = precise::exp(highest[i] - most);
    const float sum = sum_of_groups(weight[i] * factor);
    const int h = i * LANES + part;
    if (group == 0 && h < RATIO) {
        maxima[simdgroup * RATIO + h] = most;
        sums[simdgroup * RATIO + h] = sum;
    }
#pragma unroll
    for (int j = 0; j < LANES && i * LANES + j < RATIO; j++) {
        mine[i * LANES + j].scale(simd_shuffle(factor, ushort(group * LANES + j)));
    }
}
#pragma unroll
for (int h = 0; h < RATIO; h++) {
    mine[h].gather();
#pragma unroll
    for (int i = 0; i < Values::QUADS; i++) {
        const int element = Values::element(i, part);
        if (group == 0 && element < HEAD_DIM) {
            threadgroup float* to = weighted + (simdgroup * RATIO + h) * HEAD_DIM + element;
            to[0] = mine[h].quads[i].x;
            to[1] = mine[h].quads[i].y;
            to[2] = mine[h].quads[i].z;
            to[3] = mine[h].quads[i].w;
        }
    }
}
threadgroup_barrier(mem_flags::mem_threadgroup);

for (int i = simdgroup * 32 + lane; i < RATIO * HEAD_DIM; i += SIMDS * 32) {
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
        y[query * HEAD_DIM + i % HEAD_DIM] = Y(value / (sum + precise::exp(sink - most)));
        continue;
    }
    const int at = (range * HEADS + query) * (HEAD_DIM + 2);
    y[at + i % HEAD_DIM] = Y(value);
    if (i % HEAD_DIM == 0) {
        y[at + HEAD_DIM] = Y(most);
        y[at + HEAD_DIM + 1] = Y(sum);
    }
}
