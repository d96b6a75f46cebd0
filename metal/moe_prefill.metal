// The grouped product of many tokens, sorted by slot, and the MXFP4 matrices of their slots.
//
// A tile is up to TILE_ROWS tokens of one slot. A threadgroup multiplies a tile by 32 outputs for
// each of its simdgroups. x goes through threadgroup memory, 128 elements of K at a time; weights
// go from device memory into the registers that the 8x8 products take them from. Weights are the
// left operand, of which a lane holds two elements of one row: of a word of eight the pairs (0, 4),
// (1, 5), (2, 6), (3, 7), as `Eight` gives them. The four lanes of a row load 64 bytes of it, a
// group each. x lies in threadgroup memory in the order of K that follows from that.
//
// Operations to dequantize: 12 on bits and 8 multiplications for a word's eight weights, 2.5 a
// weight, which a full tile divides by 32 tokens: 0.08 a multiply-accumulate. There is one load of
// x from threadgroup memory, without bank conflicts, for four products of 8x8, and two barriers for
// 128 elements of K.
//
// Device bytes requested for 2048 tokens of 2880 bfloat16, 64 for each of 32 slots, 5760 outputs in
// threadgroups of 256: weights twice (a slot has two tiles) 564 MB, x 23 times 271 MB, biases and
// results 15 MB; 2.8 times the 306 MB of everything once. With 16 tokens for each of 128 slots it
// is 1.2 times 1.15 GB. Threadgroups with tiles of one slot and the same outputs are neighbours in
// the grid, so that a cache has what the second one reads. A load of eight rows touches eight to
// twelve lines of 128 bytes, of which the next load takes the other half.

#include "mxfp4.metal"

constant constexpr int GROUP = 32;                 // values to a scale; four words
constant constexpr int TILE_ROWS = 32;             // tokens
constant constexpr int FRAGMENTS = TILE_ROWS / 8;  // of tokens, eight each
constant constexpr int OUTPUTS = 4;                // of a lane: adjacent ones
constant constexpr int PART = 4;                   // groups of K held at a time

// Floats from one element of K to the next, and from one of a lane's words to the next. So loads of
// fragments are spread evenly over the banks, and of stores at most two fall into one bank.
constant constexpr int STRIDE = TILE_ROWS + 4;
constant constexpr int WORD = GROUP * STRIDE + 2;
constant constexpr int SPACE = PART * WORD;

// The tokens first .. first + count of one slot; none if count is not positive.
struct Tile {
    int slot, first, count;
};

// The first row at which slot + row / step, which ascends, is at least `value`. All lanes search.
template <typename Slots>
int search(Slots slots, int rows, int step, int value, int lane) {
    int begin = 0, end = rows;
    while (begin < end) {
        const int stride = (end - begin + 31) / 32;
        const int row = begin + lane * stride;
        const bool below = row < end && int(slots[row]) + row / step < value;
        const int passed = simd_sum(int(below));
        end = min(end, begin + passed * stride);
        begin += passed == 0 ? 0 : (passed - 1) * stride + 1;
    }
    return begin;
}

// The tile with a given number. A tile's number is its slot + its first token / TILE_ROWS:
// different for all tiles, below slots + tokens / TILE_ROWS, and found without counting the tiles
// before.
template <typename Slots>
Tile find_tile(Slots slots, int rows, int number, int lane) {
    const int past = search(slots, rows, TILE_ROWS, number + 1, lane);
    if (past == 0) {
        return Tile{0, 0, 0};
    }
    const int slot = slots[past - 1];
    const int begin = search(slots, rows, rows, slot, lane);
    const int end = search(slots, rows, rows, slot + 1, lane);
    const int first = begin + (number - slot - begin / TILE_ROWS) * TILE_ROWS;
    return Tile{slot, first, min(TILE_ROWS, end - first)};
}

// A thread's place in its threadgroup, and the elements of an 8x8 matrix that its lane holds: row
// `row`, columns 2 * pair and 2 * pair + 1.
struct Position {
    int thread_index, threads, row, pair;

    Position(int thread_index, int threads, int lane)
        : thread_index(thread_index),
          threads(threads),
          row((lane / 4 & 4) + lane / 2 % 4),
          pair((lane / 4 & 2) + lane % 2) {}
};

// A lane's part of the products of a simdgroup: output 4 * row + i of 32, two tokens of fragment m.
struct Sums {
    float2 of[OUTPUTS][FRAGMENTS];
};

// A lane's part of two fragments of weights, for each of its outputs.
struct Weights {
    float2 of[OUTPUTS][2];
};

// sum + a * b, of 8x8 matrices of which a lane holds two elements each.
inline float2 multiply(float2 a, float2 b, float2 sum) {
    simdgroup_float8x8 left, right, result;
    left.thread_elements()[0] = a.x;
    left.thread_elements()[1] = a.y;
    right.thread_elements()[0] = b.x;
    right.thread_elements()[1] = b.y;
    result.thread_elements()[0] = sum.x;
    result.thread_elements()[1] = sum.y;
    simdgroup_multiply_accumulate(result, left, right, result);
    return float2(result.thread_elements()[0], result.thread_elements()[1]);
}

// Copies GROUPS groups of `count` rows of x; all threads of the threadgroup take part.
template <typename T, int K, int GROUPS>
void stage(const device T* x, int count, threadgroup float* space, Position position) {
    constexpr int CHUNKS = GROUPS * GROUP / 4;
    const device vec<T, 4>* from = (const device vec<T, 4>*)x;
    for (int i = position.thread_index; i < (count + 7) / 8 * 8 * CHUNKS; i += position.threads) {
        const int row = i / CHUNKS, chunk = i % CHUNKS, word = chunk / 2;
        const float4 values = row < count ? float4(from[row * (K / 4) + chunk]) : float4(0.0f);
        threadgroup float* to = space + word % GROUPS * WORD
            + (word / GROUPS * 2 + chunk % 2) * STRIDE + row;
#pragma unroll
        for (int q = 0; q < 4; q++) {
            to[q * 8 * STRIDE] = values[q];
        }
    }
}

// A lane's part of GROUPS groups of a row: GROUPS words, and the scale of each.
template <int GROUPS>
struct Words {
    uint4 words;
    float4 scales;

    Words() = default;

    Words(const device uint* blocks, const device uchar* exponents, int group, int pair) {
        const device uint* from = blocks + group * 4 + pair * GROUPS;
        if (GROUPS == 4) {
            words = *(const device uint4*)from;
            scales = mxfp4_scale(exponents[group + pair]);
            return;
        }
#pragma unroll
        for (int w = 0; w < GROUPS; w++) {
            words[w] = from[w];
            scales[w] = mxfp4_scale(exponents[group + (pair * GROUPS + w) / 4]);
        }
    }
};

// Adds the products of each output's two fragments of weights and the x of fragment m's tokens.
// PRECISE: the 16 products are summed first, so that few are added to a large sum.
template <bool PRECISE>
void add_fragments(
    const thread Weights& weights, const threadgroup float* from, thread Sums& sums, int m) {
    float2 products[OUTPUTS];
#pragma unroll
    for (int i = 0; i < OUTPUTS; i++) {
        products[i] = PRECISE ? float2(0.0f) : sums.of[i][m];
    }
#pragma unroll
    for (int q = 0; q < 2; q++) {
        const float2 x = *(const threadgroup float2*)(from + q * 16 * STRIDE);
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++) {
            products[i] = multiply(weights.of[i][q], x, products[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < OUTPUTS; i++) {
        sums.of[i][m] = PRECISE ? sums.of[i][m] + products[i] : products[i];
    }
}

// Adds the products over GROUPS groups of K, from group `first` on, but EIGHT_SCALE times too
// small. groups: where each of the lane's rows begins, in groups.
template <typename T, int K, int GROUPS>
void add_part(
    const device T* x,
    int count,
    const device uint* blocks,
    const device uchar* scales,
    thread const int* groups,
    int first,
    bool present,
    threadgroup float* space,
    thread Sums& sums,
    Position position) {
    Words<GROUPS> words[OUTPUTS];
    if (present) {
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++) {
            words[i] = Words<GROUPS>(blocks, scales, groups[i] + first, position.pair);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    stage<T, K, GROUPS>(x + first * GROUP, count, space, position);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (!present) {
        return;
    }
#pragma unroll
    for (int part = 0; part < 2 * GROUPS; part++) {  // the even or the odd elements of a word
        const int w = part / 2, odd = part % 2;
        Weights weights;
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++) {
            const Eight eight(words[i].words[w]);
            const float scale = words[i].scales[w];
            weights.of[i][0] = float2(odd ? eight.v15 : eight.v04) * scale;
            weights.of[i][1] = float2(odd ? eight.v37 : eight.v26) * scale;
        }
        const threadgroup float* from =
            space + w * WORD + (odd * 8 + position.row) * STRIDE + 2 * position.pair;
#pragma unroll
        for (int m = 0; m < FRAGMENTS; m++) {
            if (8 * m < count) {
                add_fragments<sizeof(T) == sizeof(float)>(weights, from + 8 * m, sums, m);
            }
        }
    }
}

// Adds the products of a tile and the outputs output .. output + 32, but EIGHT_SCALE times too
// small; of the outputs only those below N exist. All threads of the threadgroup take part.
template <typename T, int K, int N>
void add_product(
    const device T* x,
    const device uint* blocks,
    const device uchar* scales,
    Tile tile,
    int output,
    threadgroup float* space,
    thread Sums& sums,
    Position position) {
    constexpr int G = K / GROUP;
    int groups[OUTPUTS];
    for (int i = 0; i < OUTPUTS; i++) {
        groups[i] = (tile.slot * N + min(output + OUTPUTS * position.row + i, N - 1)) * G;
    }
    const bool present = output < N;
    x += tile.first * K;
    for (int first = 0; first < G / PART * PART; first += PART) {
        add_part<T, K, PART>(
            x, tile.count, blocks, scales, groups, first, present, space, sums, position);
    }
    if (G % PART != 0) {
        add_part<T, K, G % PART == 0 ? 1 : G % PART>(
            x, tile.count, blocks, scales, groups, G / PART * PART, present, space, sums, position);
    }
}

// Writes a lane's adjacent elements of a row of N, of which only the first `present` exist.
template <typename T, int COUNT, int N>
void write(device T* to, vec<T, COUNT> values, int present) {
    if (N % COUNT == 0) {
        *(device vec<T, COUNT>*)to = values;
        return;
    }
    for (int i = 0; i < min(COUNT, present); i++) {
        to[i] = values[i];
    }
}
