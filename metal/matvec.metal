// Matrix-vector products: rows of a matrix times up to eight vectors, the tokens.
//
// The vectors lie in threadgroup memory, as much of them at a time as fits, so that a threadgroup
// reads them once for many rows, and each weight is read once for all tokens. A simdgroup takes
// four rows together, a lane one unit of each at a time. The four rows begin at the same offset in
// a 128-byte line, and the lanes' units form a window that begins with a line. So every load is of
// whole lines, although a row of 2880 weights does not fill whole lines.
//
// An RMS norm before the product costs one more multiplication an element and one an output: the
// vectors are multiplied by the norm's weight, the products by the inverse root mean square.

#include "place.metal"
#include "weights.metal"

constant constexpr int HELD = 5632;  // elements of the vectors in threadgroup memory: 25 KB

// The largest power of two that divides both a and line, itself one.
constexpr int common(int a, int line) {
    while (a % line != 0) {
        line /= 2;
    }
    return line;
}

// The scales and biases of one quantization group in each of four rows.
template <int FORMAT>
struct Factors {
    float4 scales, biases;

    // What another lane holds; all lanes of the simdgroup take part.
    Factors of_lane(ushort lane) const {
        Factors other = {0.0f, 0.0f};
        if (FORMAT != DENSE) {
            other.scales = simd_shuffle(scales, lane);
        }
        if (FORMAT == AFFINE) {
            other.biases = simd_shuffle(biases, lane);
        }
        return other;
    }
};

// y = W norm(x) for up to `TOKENS` vectors: `run` gives W (x * gain), and `norm` the factor that
// its caller multiplies it by.
//
// x [tokens, K], more vectors up to TOKENS count as zeros; gain [K] the norm's weight; W [.., K].
// Threadgroup memory: held[SPACE], unit_sums[SUMS], squares[TOKENS * simdgroups] and
// sums[TOKENS * ROWS].
template <
    typename T,
    typename S,
    int FORMAT,
    int BITS,
    int GROUP,
    int K,
    int TOKENS,
    int ROWS,
    bool NORM>
struct Product {
    // Elements of a unit; quads of a unit, four elements each; units of a row.
    static constant constexpr int SIZE = unit_size(FORMAT, BITS);
    static constant constexpr int QUADS = SIZE / 4;
    static constant constexpr int UNITS = K / SIZE;
    // LINE: units of a 128-byte line, or 1 if they do not divide it. STEP: rows to the next one
    // that begins at the same offset in a line. LAST: the largest of these offsets, in units.
    static constant constexpr int LINE =
        LINE_BYTES % unit_bytes(FORMAT, BITS) == 0 ? LINE_BYTES / unit_bytes(FORMAT, BITS) : 1;
    static constant constexpr int STEP = LINE / common(UNITS, LINE);
    static constant constexpr int LAST = LINE - LINE / STEP;
    // The vectors are held in parts, one after the other. FIT: units of a token that fit. WINDOW:
    // units of a part, besides the LAST that it shares with the part before. PART: all its units.
    static constant constexpr int FIT = HELD / TOKENS / SIZE;
    static constant constexpr int WINDOW = UNITS <= FIT ? UNITS + LAST
        : FIT - LAST >= 32                              ? (FIT - LAST) / 32 * 32
                                                        : 16;
    static constant constexpr int PARTS = (UNITS + LAST + WINDOW - 1) / WINDOW;
    static constant constexpr int PART = PARTS == 1 ? UNITS : WINDOW + LAST;
    // Lanes that take the units of a quantization group, one each.
    static constant constexpr int LANES = GROUP / SIZE;
    // float4s from token to token; one in nine is unused, which avoids bank conflicts.
    static constant constexpr int STRIDE = (PART * QUADS + 7) / 8 * 9;
    static constant constexpr int SPACE = TOKENS * STRIDE;
    static constant constexpr int SUMS = FORMAT == AFFINE ? TOKENS * PART : 1;

    const device T* x;
    int tokens;
    const device T* gain;
    Matrix<S> matrix;
    Place place;
    threadgroup float4* held;
    threadgroup float* unit_sums;
    threadgroup float* squares;
    threadgroup float* sums;

    // sums[token][i] = W[row + i] . (x * gain) for i < count; all threads take part.
    void run(int row, int count) const {
        const int sets = (count + 4 * STEP - 1) / (4 * STEP) * STEP;
        float square[TOKENS] = {};
        for (int first = 0; first < sets; first += place.simdgroups) {
            const int set = first + place.simdgroup;
            const int begin = set / STEP * 4 * STEP + set % STEP;
            const int present = set < sets ? min(4, (count - begin + STEP - 1) / STEP) : 0;
            float4 products[TOKENS] = {};
            for (int part = 0; part < PARTS; part++) {
                if (PARTS > 1 || first == 0) {
                    threadgroup_barrier(mem_flags::mem_threadgroup);
                    load(part, first == 0, square);
                    threadgroup_barrier(mem_flags::mem_threadgroup);
                }
                if (present > 0) {
                    add_four_rows(row + begin, present, part, products);
                }
            }
            if (present > 0) {
                store(begin, present, products);
            }
        }
        if (NORM) {
#pragma unroll
            for (int token = 0; token < TOKENS; token++) {
                const float total = simd_sum(square[token]);
                if (place.lane == 0) {
                    squares[token * place.simdgroups + place.simdgroup] = total;
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

    // The norm's factor for a token, 1 / its root mean square; to be called after `run`.
    float norm(int token, float eps) const {
        if (!NORM) {
            return 1.0f;
        }
        float total = 0.0f;
        for (int i = 0; i < place.simdgroups; i++) {
            total += squares[token * place.simdgroups + i];
        }
        return precise::rsqrt(total / K + eps);
    }

    // First unit of a part, and the one after its last.
    int part_begin(int part) const {
        return max(0, part * WINDOW - LAST);
    }
    int part_end(int part) const {
        return min(UNITS, (part + 1) * WINDOW);
    }

    // Holds a part of x * gain; square[token] += squares of x's elements that no earlier part had.
    void load(int part, bool count_squares, thread float* square) const {
        const int begin = part_begin(part), quads = (part_end(part) - begin) * QUADS;
        const device vec<T, 4>* weights = (const device vec<T, 4>*)gain + begin * QUADS;
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            const device vec<T, 4>* from =
                (const device vec<T, 4>*)(x + token * K) + begin * QUADS;
            for (int first = 0; first < quads; first += place.threads) {
                const int i = first + place.thread_index;
                float4 v = 0.0f;
                if (i < quads) {
                    v = token < tokens ? float4(from[i]) : v;
                    if (NORM) {
                        const bool fresh = begin * QUADS + i >= part * WINDOW * QUADS;
                        square[token] += count_squares && fresh ? dot(v, v) : 0.0f;
                        v *= float4(weights[i]);
                    }
                    hold(token, i, v);
                }
                if (FORMAT == AFFINE) {
                    float sum = v.x + v.y + v.z + v.w;
#pragma unroll
                    for (int other = 1; other < QUADS; other *= 2) {
                        sum += simd_shuffle_xor(sum, ushort(other));
                    }
                    if (i < quads && i % QUADS == 0) {
                        unit_sums[token * PART + i / QUADS] = sum;
                    }
                }
            }
        }
    }

    void hold(int token, int i, float4 v) const {
        const int place_in_unit = i % QUADS * 4;
        float4 factor;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            factor[j] = element_scale<FORMAT, BITS>(place_in_unit + j);
        }
        held[token * STRIDE + i + i / 8] = v * factor;
    }

    // Adds the lane's share of the products of rows row, row + STEP, .. and a part of x; only the
    // first `present` rows exist.
    //
    // Each lane reads the scales of one of 32 groups. In LANES rounds the lanes take the units of
    // these groups, each with the scales from the lane that has read them.
    void add_four_rows(int row, int present, int part, thread float4* products) const {
        const int begin = part * WINDOW - row * UNITS % LINE, end = min(begin + WINDOW, UNITS);
        for (int first = begin; first < end; first += 32 * LANES) {
            const int own = first + place.lane * LANES;
            const Factors<FORMAT> mine = read_factors(row, present, own, end);
            for (int round = 0; round < LANES && first + 32 * round < end; round++) {
                const int unit = first + 32 * round + place.lane;
                const Factors<FORMAT> factors = mine.of_lane((32 * round + place.lane) / LANES);
                if (unit < 0 || unit >= end) {
                    continue;
                }
                Unit<FORMAT, BITS> weights[4];
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    weights[r].read(matrix.words, row_at(row, r, present) * UNITS + unit);
                }
                const uint at = unit - part_begin(part), quad = at * QUADS + at * QUADS / 8;
#pragma unroll
                for (int token = 0; token < TOKENS; token++) {
                    float4 v[QUADS];
#pragma unroll
                    for (int q = 0; q < QUADS; q++) {
                        v[q] = held[token * STRIDE + quad + q];
                    }
                    const float sum = FORMAT == AFFINE ? unit_sums[token * PART + at] : 0.0f;
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        products[token][r] = weights[r].add(
                            v, sum, factors.scales[r], factors.biases[r], products[token][r]);
                    }
                }
            }
        }
    }

    int row_at(int row, int r, int present) const {
        return row + (r < present ? r * STEP : 0);
    }

    // Four rows' scales and biases of the group that begins at `unit`; zeros beyond `end`.
    Factors<FORMAT> read_factors(int row, int present, int unit, int end) const {
        Factors<FORMAT> factors = {0.0f, 0.0f};
        if (FORMAT != DENSE && unit >= 0 && unit < end) {
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const uint group = row_at(row, r, present) * (K / GROUP) + uint(unit) / LANES;
                factors.scales[r] = scale_value(matrix.scales[group]);
                if (FORMAT == AFFINE) {
                    factors.biases[r] = scale_value(matrix.biases[group]);
                }
            }
        }
        return factors;
    }

    void store(int begin, int present, const thread float4* products) const {
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            const float4 p = products[token];
            const float4 total =
                float4(simd_sum(p.x), simd_sum(p.y), simd_sum(p.z), simd_sum(p.w));
            if (place.lane < present) {
                sums[token * ROWS + begin + place.lane * STEP] = total[place.lane];
            }
        }
    }
};
