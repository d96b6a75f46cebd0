// Products in matrix tiles of bfloat16 (AMX), as exact as float32.
//
// An activation is the sum of three numbers of bfloat16, its parts, which hold its 24 bits. A weight
// is one (bfloat16 and MXFP4, exactly), two or three (affine codes with scales in bfloat16 or
// float32, and float32). A tile of weights is 16 outputs by 32 inputs, one of activations 32 inputs
// by 16 columns. Of a few rows, the columns are the parts of five rows (Narrow), so one row takes a
// third of the time of 16. Of more, there is a tile for each part of 16 rows (Wide), and the
// processor adds their products. Either adds a row's products in one order, whatever is beside it.
//
// STEPS steps of a strip of SIDES tiles of outputs are widened at a time, and stay in the first
// cache while all blocks of rows pass over them.
#pragma once

#include "tile_formats.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

constexpr int PARTS = 3;                              // of an activation
constexpr int64_t SUMS_FLOATS = SIDES * TILE_FLOATS;  // of a strip and a block

// Outputs that a thread takes at a time, of `matrices` of so many outputs: enough for packed rows
// to be used often, and few enough for threads to finish together.
GPTOSS_INLINE int64_t tile_grain(int64_t outputs, int64_t matrices, int threads) {
    constexpr int64_t ITEMS = 16;  // of a thread, at least
    const int64_t grain = matrices * outputs / (ITEMS * threads) / TILED * TILED;
    return grain < TILED ? TILED : grain > outputs ? outputs : grain;
}

// `left` floats, at most LANES, and zeros.
GPTOSS_INLINE Vec load_some(const float* p, int64_t left) {
    if (left >= LANES) return load(p);
    return _mm512_maskz_loadu_ps(__mmask16(left > 0 ? (1u << left) - 1 : 0), p);
}

// Blocks of rows: ROWS rows, X_BYTES of a step, and PASS blocks that the second cache holds.
struct Narrow {
    static constexpr int ROWS = TILE / PARTS, PASS = 7;
    static constexpr int64_t X_BYTES = TILE_BYTES;
};
struct Wide {
    static constexpr int ROWS = TILE, PASS = 6;
    static constexpr int64_t X_BYTES = PARTS * TILE_BYTES;
};
static_assert(Narrow::ROWS * Narrow::PASS >= DECODED, "a step's rows in one pass");

// Activations in tiles: [block][step], of Wide [part], each [pairs of inputs][columns]. Column
// 3 * r + p of Narrow is part p of row r. sums: of the rows' groups, for formats with biases.
template <class Block>
struct Tiles {
    const uint8_t* tiles;
    int64_t depth, rows;  // steps; rows
    const float* sums;
    int64_t sums_stride;

    int64_t blocks() const { return (rows + Block::ROWS - 1) / Block::ROWS; }
    int rows_of(int64_t block) const {
        const int64_t left = rows - block * Block::ROWS;
        return left < Block::ROWS ? int(left) : Block::ROWS;
    }
    // The rows from a block on, at most those of a pass.
    Tiles from(int64_t block) const {
        constexpr int64_t most = Block::PASS * Block::ROWS;
        const int64_t first = block * Block::ROWS, left = rows - first;
        return {at(block, 0), depth, left < most ? left : most, sums + first * sums_stride,
                sums_stride};
    }
    const uint8_t* at(int64_t block, int64_t step) const {
        return tiles + (block * depth + step) * Block::X_BYTES;
    }
};

GPTOSS_INLINE int64_t depth_of(int64_t inputs) { return (inputs + DEPTH - 1) / DEPTH; }

// The tiles of up to Block::ROWS rows of `inputs` floats, in the order of a format's weights.
template <class F, class Block>
static void pack_tiles(const float* const* x, int count, int64_t inputs, uint8_t* out) {
    constexpr int EACH = Block::X_BYTES / TILE_BYTES;
    for (int64_t at = 0; at < inputs; at += DEPTH) {
        __m512i columns[EACH * TILE];
        columns[TILE - 1] = _mm512_setzero_si512();  // Narrow has 15
        for (int r = 0; r < Block::ROWS; r++) {
            Vec a = zero(), b = zero();
            if (r < count) {
                a = load_some(x[r] + at, inputs - at);
                b = load_some(x[r] + at + LANES, inputs - at - LANES);
            }
            for (int p = 0; p < PARTS; p++) {
                columns[EACH == 1 ? PARTS * r + p : p * TILE + r] = take_part(a, b);
            }
        }
        for (int i = 0; i < EACH; i++, out += TILE_BYTES) {
            transpose(columns + i * TILE);
            for (int j = 0; j < TILE; j++) {
                _mm512_store_si512((__m512i*)out + j, columns[i * TILE + Tiled<F>::pair(j)]);
            }
        }
    }
}

// From one row of a matrix to the next, as `widen` reads it: without biases.
template <class F>
struct RowBytes {
    int64_t codes, scales;

    explicit RowBytes(const Matrix& m) {
        const F first(m, 0), second(m, 1);
        codes = second.codes - first.codes;
        if constexpr (F::SCALED) scales = second.scales - first.scales;
    }
    GPTOSS_INLINED void skip(F& row) const {
        row.codes += codes;
        if constexpr (F::SCALED) row.scales += scales;
    }
};

// A strip's room in a thread's workspace.
struct TileRoom {
    uint8_t* weights;  // [planes, steps, SIDES, TILE_BYTES]
    float* sums;       // of a pass's blocks, [SIDES, outputs, columns] each
    float* out;        // [TILE, TILED]
    uint8_t* tiles;    // of a pass's activations

    static constexpr int64_t MOST = 12;  // planes times steps, at most
    static constexpr int PASS = Narrow::PASS > Wide::PASS ? Narrow::PASS : Wide::PASS;

    explicit TileRoom(float* own)
        : weights((uint8_t*)own),
          sums((float*)(weights + MOST * STEP_BYTES)),
          out(sums + PASS * SUMS_FLOATS),
          tiles((uint8_t*)(out + TILE * TILED)) {}
};

GPTOSS_INLINE void load_sums(const float* sums) {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + TILE_FLOATS, 64);
    _tile_loadd(2, sums + 2 * TILE_FLOATS, 64);
    _tile_loadd(3, sums + 3 * TILE_FLOATS, 64);
}
GPTOSS_INLINE void store_sums(float* sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE_FLOATS, 64);
    _tile_stored(2, sums + 2 * TILE_FLOATS, 64);
    _tile_stored(3, sums + 3 * TILE_FLOATS, 64);
}

// Add the products of one plane of a strip's step to tiles 0 to 3: with the first COUNT parts of
// the activations, in tiles 4 to 6. side, row: bytes from a tile of weights to the next, and from an
// output's to the next.
template <int COUNT>
GPTOSS_INLINE void multiply_plane(const uint8_t* weights, int64_t side, int64_t row) {
    _tile_loadd(7, weights, row);
    _tile_dpbf16ps(0, 7, 4);
    if (COUNT > 1) _tile_dpbf16ps(0, 7, 5);
    if (COUNT > 2) _tile_dpbf16ps(0, 7, 6);
    _tile_loadd(7, weights + side, row);
    _tile_dpbf16ps(1, 7, 4);
    if (COUNT > 1) _tile_dpbf16ps(1, 7, 5);
    if (COUNT > 2) _tile_dpbf16ps(1, 7, 6);
    _tile_loadd(7, weights + 2 * side, row);
    _tile_dpbf16ps(2, 7, 4);
    if (COUNT > 1) _tile_dpbf16ps(2, 7, 5);
    if (COUNT > 2) _tile_dpbf16ps(2, 7, 6);
    _tile_loadd(7, weights + 3 * side, row);
    _tile_dpbf16ps(3, 7, 4);
    if (COUNT > 1) _tile_dpbf16ps(3, 7, 5);
    if (COUNT > 2) _tile_dpbf16ps(3, 7, 6);
}

// The same of all planes and one step. Products of two lower parts are too small to count.
template <class F, class Block>
GPTOSS_INLINE void multiply_step(const uint8_t* weights, int planes, const uint8_t* x) {
    constexpr int64_t PLANE = Tiled<F>::STEPS * STEP_BYTES;
    _tile_loadd(4, x, 64);
    if constexpr (Block::ROWS < TILE) {
        multiply_plane<1>(weights, TILE_BYTES, 64);
    } else {
        _tile_loadd(5, x + TILE_BYTES, 64);
        _tile_loadd(6, x + 2 * TILE_BYTES, 64);
        multiply_plane<3>(weights, TILE_BYTES, 64);
        if constexpr (Tiled<F>::PLANES > 1) {
            if (planes > 1) multiply_plane<2>(weights + PLANE, TILE_BYTES, 64);
            if (planes > 2) multiply_plane<1>(weights + 2 * PLANE, TILE_BYTES, 64);
        }
    }
}

// The codes of a strip's STEPS steps, fetched row by row while others are widened or multiplied.
template <class F>
struct Ahead {
    const uint8_t* codes;
    int64_t skip, bytes;
    int row = 0;

    // first: the step; behind the last one, of the following strip.
    Ahead(const Matrix& m, int64_t output, int64_t first, int64_t depth)
        : skip(RowBytes<F>(m).codes) {
        const bool here = first < depth;
        const F begin(m, here ? output : output + TILED);
        bytes = begin.bytes(Tiled<F>::STEPS * DEPTH);
        codes = begin.codes + begin.bytes((here ? first : first - depth) * DEPTH);
    }
    GPTOSS_INLINED void fetch_rows(int end) {
        for (; row < end; row++, codes += skip) {
            for (int64_t line = 0; line < bytes; line += 64) prefetch(codes + line);
            prefetch(codes + bytes - 1);
        }
    }
};

// Widen steps of a strip from `first` on: COUNT, or `steps`.
template <class F, int COUNT>
static void widen_strip(
    const Matrix& m, int64_t output, int count, int planes, int64_t first, int steps,
    uint8_t* out, Ahead<F>* ahead) {
    constexpr int EACH = Tiled<F>::Packed::CHUNK / DEPTH;
    F row(m, output);
    const RowBytes<F> bytes(m);
    for (int o = 0; o < count; o++, out += 64) {
        if (ahead) ahead->fetch_rows(o + 1);
        if constexpr (COUNT > 0) {
            Tiled<F>::template widen<COUNT>(row, m.inputs, first, planes, out);
        } else {
            for (int i = 0; i < steps; i += EACH) {
                Tiled<F>::template widen<EACH>(
                    row, m.inputs, first + i, planes, out + i * STEP_BYTES);
            }
        }
        bytes.skip(row);
    }
}

// The sums of a strip of bfloat16, read where the matrix lies; for all blocks but the first it is
// in the second cache.
static void multiply_in_place(
    const Matrix& m, int64_t output, const Tiles<Narrow>& x, float* sums) {
    const int64_t row = m.inputs * 2;
    const uint8_t* weights = m.weight + output * row;
    for (int64_t b = 0; b < x.blocks(); b++, sums += SUMS_FLOATS) {
        load_sums(sums);
        for (int64_t step = 0; step < x.depth; step++) {
            _tile_loadd(4, x.at(b, step), 64);
            multiply_plane<1>(weights + step * 64, TILE * row, row);
        }
        store_sums(sums);
    }
}

// The sums of a strip, `count` outputs from `output` on, and all rows.
template <class F, class Block>
static void multiply_strip(
    const Matrix& m, int64_t output, int count, int planes, const Tiles<Block>& x,
    const TileRoom& room) {
    constexpr int STEPS = Tiled<F>::STEPS;
    constexpr bool FEW_ROWS = Block::ROWS < TILE;
    const int64_t blocks = x.blocks(), turns = blocks * STEPS;
    for (int64_t i = 0; i < blocks * SUMS_FLOATS; i += LANES) store(room.sums + i, zero());
    if constexpr (FEW_ROWS && Tiled<F>::AS_THEY_LIE) {
        if (count == TILED && m.inputs % DEPTH == 0) {
            return multiply_in_place(m, output, x, room.sums);
        }
    }
    for (int64_t first = 0; first < x.depth; first += STEPS) {
        const int steps = x.depth - first < STEPS ? int(x.depth - first) : STEPS;
        Ahead<F> ahead(m, output, first + STEPS, x.depth);
        Ahead<F>* meanwhile = FEW_ROWS ? &ahead : nullptr;
        if (steps == STEPS) {
            widen_strip<F, STEPS>(m, output, count, planes, first, steps, room.weights, meanwhile);
        } else {
            widen_strip<F, 0>(m, output, count, planes, first, steps, room.weights, meanwhile);
        }
        int64_t turn = 0;
        for (int64_t b = 0; b < blocks; b++) {
            float* sums = room.sums + b * SUMS_FLOATS;
            load_sums(sums);
            for (int i = 0; i < steps; i++) {
                if (!FEW_ROWS) ahead.fetch_rows(int(TILED * ++turn / turns));
                const uint8_t* step = x.at(b, first + i);
                multiply_step<F, Block>(room.weights + i * STEP_BYTES, planes, step);
            }
            store_sums(sums);
        }
    }
}

// Results of a block [ROWS, TILED] from its sums, [SIDES] of [outputs, columns].
template <class Block>
static void turn_sums(const float* sums, float* out) {
    for (int side = 0; side < SIDES; side++) {
        __m512i columns[TILE];
        for (int i = 0; i < TILE; i++) {
            columns[i] = _mm512_load_si512(sums + side * TILE_FLOATS + i * TILE);
        }
        transpose(columns);
        for (int r = 0; r < Block::ROWS; r++) {
            Vec row = _mm512_castsi512_ps(columns[r]);
            if constexpr (Block::ROWS < TILE) {
                const Vec* part = (const Vec*)columns + PARTS * r;
                row = add(part[0], add(part[1], part[2]));
            }
            store(out + r * TILED + side * TILE, row);
        }
    }
}

// The part of a block's results that biases make.
template <class F, class Block>
static void add_biases(
    const Matrix& m, int64_t output, int count, const Tiles<Block>& x, int64_t block, float* out) {
    const int rows = x.rows_of(block);
    for (int o = 0; o < count; o++) {
        const F weights(m, output + o);
        for (int r = 0; r < rows; r++) {
            const float* sums = x.sums + (block * Block::ROWS + r) * x.sums_stride;
            float total = 0.0f;
            for (int64_t g = 0; g < m.inputs / m.group; g++) total += weights.bias(g) * sums[g];
            out[r * TILED + o] += total;
        }
    }
}

// Outputs `begin` to `end` for rows in tiles, of one pass; `use` as in product.h. x begins at row
// number `row`.
template <class F, class Block, class Use>
static void tile_product(
    const Matrix& m, int64_t begin, int64_t end, const Tiles<Block>& x, int64_t row, float* own,
    Use& use) {
    static_assert(Tiled<F>::PLANES * Tiled<F>::STEPS <= TileRoom::MOST, "a strip's room");
    const TileRoom room(own);
    // A code times a scale of bfloat16 has 16 bits.
    const int planes = F::BIASED && !m.wide ? 2 : Tiled<F>::PLANES;
    for (int64_t output = begin; output < end; output += TILED) {
        const int count = end - output < TILED ? int(end - output) : TILED;
        multiply_strip<F>(m, output, count, planes, x, room);
        for (int64_t b = 0; b < x.blocks(); b++) {
            turn_sums<Block>(room.sums + b * SUMS_FLOATS, room.out);
            if constexpr (F::BIASED) add_biases<F>(m, output, count, x, b, room.out);
            use(output, count, row + b * Block::ROWS, x.rows_of(b), room.out, TILED);
        }
    }
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
