// Attention of one token over keys and values kept in two parts, an arena and a page.
//
// A threadgroup serves all query heads of one key head for a range of the tokens, so that these are
// read once. Sixteen lanes take a token, a lane four of every 64 elements of its key, so that every
// load is of whole lines, and so that a lane holds no more than 64 numbers of queries and sums: a
// GPU's registers are 128 a lane, and fewer threads run where a kernel takes many. A simdgroup
// meets a block of tokens before it changes any maximum. The sixteen lanes exchange their products
// such that two of them hold the scores of one head in eight: they keep that head's maximum and
// sum. Maxima begin at the head's sink, so that none is infinite.

#include "place.metal"
#include "places.metal"

constant constexpr int LANES = 16;                  // of a token
constant constexpr int STEPS = 4;                   // tokens of a lane in a block
constant constexpr int BLOCK = 32 / LANES * STEPS;  // tokens of a simdgroup in a block
constant constexpr int OWNERS = 8;                  // heads, of which every lane keeps one

// Four bfloats.
inline float4 two_words(uint2 w) {
    return as_type<float4>(uint4(w.x << 16, w.x & 0xFFFF0000u, w.y << 16, w.y & 0xFFFF0000u));
}

inline float4 four(const device float* values, int quad) {
    return ((const device float4*)values)[quad];
}
inline float4 four(const device bfloat* values, int quad) {
    return two_words(((const device uint2*)values)[quad]);
}

// What one of sixteen lanes holds of a head's values: four in every 64.
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

    // The sum of the simdgroup's shares of the same part; all its lanes take part.
    void gather() {
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            quads[i] += simd_shuffle_xor(quads[i], ushort(LANES));
        }
    }
};

// Of eight sums over sixteen lanes, the one that bears the lane's number in eight; all lanes take
// part.
inline float own_sum(thread float* values, int lane) {
#pragma unroll
    for (int half_way = OWNERS / 2; half_way > 0; half_way /= 2) {
        const bool upper = lane & half_way;
#pragma unroll
        for (int i = 0; i < half_way; i++) {
            const float kept = upper ? values[i + half_way] : values[i];
            const float given = upper ? values[i] : values[i + half_way];
            values[i] = kept + simd_shuffle_xor(given, ushort(half_way));
        }
    }
    return values[0] + simd_shuffle_xor(values[0], ushort(OWNERS));
}

// kernel
//
// q [HEADS, 1, HEAD_DIM] T, arena and page [2, KV_HEADS, any, HEAD_DIM] T, places [layers, 4] i32
// of which row `layer` (i32) says how many tokens of the arena and of the page count,
// sinks [HEADS] T, scale f32
// -> y: if !SPLIT [HEADS * HEAD_DIM] T; else [ranges, HEADS, HEAD_DIM + 2] f32: of each range of
// tokens the sum of values, weighted by exp(score - maximum), the maximum, the sum of weights.
// grid: KV_HEADS x ranges threadgroups of THREADS

constexpr int RATIO = HEADS / KV_HEADS, SIMDS = THREADS / 32;
typedef Share<HEAD_DIM> Values;
threadgroup float weighted[SIMDS * RATIO * HEAD_DIM];
threadgroup float maxima[SIMDS * RATIO];
threadgroup float sums[SIMDS * RATIO];

const int simdgroup = simdgroup_index_in_threadgroup, lane = thread_index_in_simdgroup;
const int part = lane % LANES, group = lane / LANES, own = lane % OWNERS;
const int head = threadgroup_position_in_grid.x, range = threadgroup_position_in_grid.y;
const int ranges = threadgroups_per_grid.y;
const int in_arena = places[layer * COLUMNS + IN_ARENA];
const int total = in_arena + places[layer * COLUMNS + SEEN];
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
float highest = float(sinks[head * RATIO + min(own, RATIO - 1)]), weight = 0.0f;

for (int block = range * share + simdgroup; block < last; block += SIMDS) {
    const device T* keys[STEPS];
    size_t values_at[STEPS];
    float scores[STEPS];
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
        float products[OWNERS];
#pragma unroll
        for (int h = 0; h < OWNERS; h++) {
            products[h] = h < RATIO ? queries[min(h, RATIO - 1)].product(key) : 0.0f;
        }
        const float score = own_sum(products, lane);
        scores[s] = keys[s] ? score : -INFINITY;
    }
    float next = highest;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        next = max(next, scores[s]);
    }
    const float factor = precise::exp(highest - next);
    weight *= factor;
    highest = next;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        scores[s] = precise::exp(scores[s] - next);
        weight += scores[s];
    }
#pragma unroll
    for (int h = 0; h < RATIO; h++) {
        mine[h].scale(simd_shuffle(factor, ushort(group * LANES + h)));
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
            mine[h].add(simd_shuffle(scores[s], ushort(group * LANES + h)), value);
        }
    }
}

const float most = max(highest, simd_shuffle_xor(highest, ushort(LANES)));
const float factor = precise::exp(highest - most);
const float rescaled = weight * factor;
const float sum = rescaled + simd_shuffle_xor(rescaled, ushort(LANES));
if (lane < RATIO) {
    maxima[simdgroup * RATIO + lane] = most;
    sums[simdgroup * RATIO + lane] = sum;
}
#pragma unroll
for (int h = 0; h < RATIO; h++) {
    mine[h].scale(simd_shuffle(factor, ushort(group * LANES + h)));
    mine[h].gather();
#pragma unroll
    for (int i = 0; i < Values::QUADS; i++) {
        const int quad = i * LANES + part;
        if (group == 0 && quad < Values::ALL) {
            threadgroup float* to = weighted + (simdgroup * RATIO + h) * HEAD_DIM + 4 * quad;
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
