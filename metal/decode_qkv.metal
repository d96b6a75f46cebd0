// Attention's queries, keys and values for a few tokens: norm, product, bias, RoPE.
//
// A threadgroup computes ROWS / HEAD_DIM heads of every token: first their rows of the product,
// then each thread rotates a pair of elements (i, i + HEAD_DIM / 2). Keys and values are written to
// their slots of a new page; the slots of other tokens are copied from the old one.

#include "matvec.metal"
#include "places.metal"

// position / period modulo 2 pi, for positions up to 2^24, to within 3e-7.
//
// The remainder of the division is added at the end. A multiple of 2 pi is subtracted in three
// parts, the first so short that its product is exact (Cody and Waite, "Software Manual for the
// Elementary Functions", 1980).
inline float angle(float position, float period) {
    const float turn = position / period;
    const float rest = fma(-turn, period, position) / period;
    const float turns = rint(turn * 0.15915494309f);
    float left = fma(-turns, 6.28125f, turn);
    left = fma(-turns, 0.0019353072f, left);
    return fma(-turns, 1.0253376e-11f, left) + rest;
}

// kernel
//
// x [tokens, K] T, up to TOKENS of them, gain [K] T, weight, scales, biases of [N, K] as in
// quantized_matvec.metal, bias [N] T, periods [HEAD_DIM / 2] f32, eps f32,
// places [sequences, layers, COLUMNS] i32: a sequence for each token, or one for all, of whose
// tokens it has the first; layer i32,
// pages [tokens, 2, KV_HEADS, PAGE, HEAD_DIM] T, never read if PAGE is 0
// -> q [HEADS, tokens, HEAD_DIM] T, kv as pages, with each token in its page; if PAGE is 0
// [2, KV_HEADS, tokens, HEAD_DIM] T, the tokens alone.
// N = (HEADS + 2 * KV_HEADS) * HEAD_DIM: queries, keys, values; values are not rotated.
// grid: ceil(N / ROWS) threadgroups of THREADS

typedef Product<T, S, FORMAT, BITS, GROUP, K, TOKENS, ROWS, true> P;
threadgroup float4 held[P::SPACE];
threadgroup float unit_sums[P::SUMS];
threadgroup float squares[TOKENS * 32];
threadgroup float sums[TOKENS * ROWS];

const Place place = {
    int(thread_index_in_threadgroup),
    THREADS,
    int(simdgroup_index_in_threadgroup),
    THREADS / 32,
    int(thread_index_in_simdgroup)};
const int row = threadgroup_position_in_grid.x * ROWS;
const int count = min(ROWS, N - row);
const Matrix<S> matrix = {(const device uint*)weight, scales, biases};
const int tokens = x_shape[0];
const P product = {x, tokens, gain, matrix, place, held, unit_sums, squares, sums};

const int sequences = places_shape[0], layers = places_shape[1];
if (PAGE > 0) {
    constexpr int QUADS = HEAD_DIM / 4, ALL = 2 * KV_HEADS * PAGE * QUADS;
    const int begin = (max(row / HEAD_DIM, HEADS) - HEADS) * PAGE * QUADS;
    const int end = ((row + count) / HEAD_DIM - HEADS) * PAGE * QUADS;
    for (int token = 0; token < tokens; token++) {
        const int slot = places[(token * layers + layer) * COLUMNS + SLOT];
        const device vec<T, 4>* from = (const device vec<T, 4>*)pages + token * ALL;
        device vec<T, 4>* to = (device vec<T, 4>*)kv + token * ALL;
        for (int i = begin + place.thread_index; i < end; i += place.threads) {
            if (i / QUADS % (PAGE > 0 ? PAGE : 1) != slot) {
                to[i] = from[i];
            }
        }
    }
}
product.run(row, count);
constexpr int HALF = HEAD_DIM / 2;
for (int i = place.thread_index; i < tokens * count / 2; i += place.threads) {
    const int token = i / (count / 2), pair = i % (count / 2);
    const int first = pair / HALF * HEAD_DIM + pair % HALF, second = first + HALF;
    const int head = (row + first) / HEAD_DIM, element = first % HEAD_DIM;
    const int sequence = sequences > 1 ? token : 0;
    const int mapped = (sequence * layers + layer) * COLUMNS;
    const float norm = product.norm(token, eps);
    const float a = norm * sums[token * ROWS + first] + float(bias[row + first]);
    const float b = norm * sums[token * ROWS + second] + float(bias[row + second]);
    float cosine = 1.0f, sine = 0.0f;
    if (head < HEADS + KV_HEADS) {
        const float turned = angle(float(places[mapped + POSITION] + token - sequence), periods[element]);
        cosine = precise::cos(turned);
        sine = precise::sin(turned);
    }
    const int kv_head = head - HEADS;
    const int at = PAGE > 0 ? (token * 2 * KV_HEADS + kv_head) * PAGE + places[mapped + SLOT]
                            : kv_head * tokens + token;
    device T* out =
        head < HEADS ? q + (head * tokens + token) * HEAD_DIM : kv + at * HEAD_DIM;
    out[element] = T(a * cosine - b * sine);
    out[element + HALF] = T(a * sine + b * cosine);
}
