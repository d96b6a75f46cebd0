// A projection: y = norm(x) W^T + bias + residual; W may be several matrices, one after another.
#pragma once

#include "panel.h"
#if defined(GPTOSS_TILES)
#include "tiles.h"
#endif

namespace gptoss {
namespace GPTOSS_VARIANT {

// Outputs that a thread takes at a time: whole strips, whole panels.
constexpr int64_t GRAIN = 4 * STRIP, PROMPT_GRAIN = 128;

struct LinearUse {
    const LinearCall& call;
    const float* bias;
    int64_t column, width;

    void operator()(
        int64_t output, int count, int64_t row, int rows, const float* out, int stride) const {
        for (int r = 0; r < rows; r++) {
            const int64_t at = (row + r) * width + column + output;
            for (int o = 0; o < count; o++) {
                float y = out[r * stride + o];
                if (bias) y += bias[output + o];
                if (call.residual) y += call.residual[at + o];
                call.y[at + o] = y;
            }
        }
    }
};

struct PackRows {
    const Matrix& m;
    const float *x, *norm;
    float eps;
    int64_t rows;
    float* out;
    Worker& worker;
    int64_t stride = 0, width = 0;

    template <class F>
    void run() {
        stride = stride_of<F>(m);
        width = padded<F>(m.inputs);
        int64_t begin, end;
        worker.part(rows, &begin, &end);
        for (int64_t r = begin; r < end; r++) {
            const float* from = x + r * m.inputs;
            const float factor = norm ? norm_factor(from, m.inputs, eps) : 1.0f;
            pack<F>(m, from, norm, factor, out + r * stride);
        }
    }
};

struct LinearPartWork {
    const LinearCall& call;
    const LinearPart& part;
    int64_t column, width;
    const Rows& rows;
    Worker& worker;
    int phase;

    template <class F>
    void run() {
        LinearUse use{call, part.bias, column, width};
        const Matrix& m = part.matrix;
        Items items(worker, phase, rows.prompt ? PROMPT_GRAIN : GRAIN, m.outputs);
        while (items.take()) {
            if (rows.prompt) {
                panel_product<F>(m, items.begin, items.end, rows, worker.own, use);
            } else {
                const Then then{items.next() < 0 ? nullptr : &m, items.next()};
                product<F>(m, items.begin, items.end, rows, worker.own, use, then);
            }
        }
    }
};

#if defined(GPTOSS_TILES)
// The rows as tiles, in the shared workspace. packed: they are there already.
template <class F, class Block>
static Tiles<Block> pack_all(
    const LinearCall& call, const Matrix& m, Worker& worker, bool packed) {
    using Packed = typename Tiled<F>::Packed;
    const Linear& all = *call.linear;
    const int64_t stride = stride_of<Packed>(m), width = padded<Packed>(m.inputs);
    const int64_t depth = width / DEPTH, extra = stride - width;
    uint8_t* to = (uint8_t*)worker.shared;
    Tiles<Block> tiles = {to, depth, call.rows, nullptr, extra};
    float* sums = (float*)(to + tiles.blocks() * depth * Block::X_BYTES);
    tiles.sums = sums;
    if (packed) return tiles;
    int64_t begin, end;
    worker.part(tiles.blocks(), &begin, &end);
    for (int64_t b = begin; b < end; b++) {
        const float* x[Block::ROWS];
        const int some = tiles.rows_of(b);
        for (int r = 0; r < some; r++) {
            const int64_t number = b * Block::ROWS + r;
            const float* from = call.x + number * m.inputs;
            float* row = worker.own + r * stride;
            const float factor = all.norm ? norm_factor(from, m.inputs, all.eps) : 1.0f;
            pack<Packed>(m, from, all.norm, factor, row);
            std::memcpy(sums + number * extra, row + width, size_t(extra) * sizeof(float));
            x[r] = row;
        }
        pack_tiles<F, Block>(x, some, width, to + b * depth * Block::X_BYTES);
    }
    return tiles;
}

// A part's outputs. packed: whether the part before has packed the rows in the same way.
struct TilesPartWork {
    const LinearCall& call;
    const LinearPart& part;
    int64_t column, width;
    Worker& worker;
    int phase;
    bool packed;

    template <class F>
    void run() {
        if constexpr (Tiled<F>::ALWAYS) {
            if (call.rows <= DECODED) return all<F, Narrow>();
        }
        all<F, Wide>();
    }

    template <class F, class Block>
    void all() {
        if (!packed && phase > 0) worker.barrier();  // the others may still read what was packed
        Tiles<Block> tiles = pack_all<F, Block>(call, part.matrix, worker, packed);
        if (!packed) worker.barrier();
        LinearUse use{call, part.bias, column, width};
        const int64_t outputs = part.matrix.outputs;
        const int64_t grain = tile_grain(outputs, 1, worker.threads);
        int64_t begin, end;
        while (worker.take(phase, grain, outputs, &begin, &end)) {
            for (int64_t b = 0; b < tiles.blocks(); b += Block::PASS) {
                const Tiles<Block> pass = tiles.from(b);
                tile_product<F>(
                    part.matrix, begin, end, pass, b * Block::ROWS, worker.own, use);
            }
        }
    }
};

// Whether rows of a format are multiplied in tiles.
struct InTiles {
    int64_t rows;
    bool answer = false;

    template <class F>
    void run() {
        answer = rows > DECODED || Tiled<F>::ALWAYS;
    }
};
#endif

static bool packed_alike(const Matrix& a, const Matrix& b) {
    return a.format == b.format && a.bits == b.bits && a.group == b.group;
}

static void linear(const LinearCall& call, Worker& worker) {
    const Linear& all = *call.linear;
    int64_t width = 0, column = 0;
    for (int64_t i = 0; i < all.count; i++) width += all.parts[i].matrix.outputs;
    Rows rows{worker.shared, 0, 0, call.rows, nullptr, call.rows > DECODED};
#if defined(GPTOSS_TILES)
    open_tiles();
#endif
    for (int64_t i = 0; i < all.count; i++) {
        const Matrix& m = all.parts[i].matrix;
#if defined(GPTOSS_TILES)
        InTiles in_tiles{call.rows};
        with_format(m, in_tiles);
        if (in_tiles.answer) {
            const bool packed = i > 0 && packed_alike(m, all.parts[i - 1].matrix);
            TilesPartWork work{call, all.parts[i], column, width, worker, int(i), packed};
            with_format(m, work);
            column += m.outputs;
            continue;
        }
#endif
        if (i == 0 || !packed_alike(m, all.parts[i - 1].matrix)) {
            if (i > 0) worker.barrier();  // the others may still read what was packed
            PackRows packing{m, call.x, all.norm, all.eps, call.rows, worker.shared, worker};
            with_format(m, packing);
            rows.stride = packing.stride;
            rows.padded = packing.width;
            worker.barrier();
        }
        LinearPartWork work{call, all.parts[i], column, width, rows, worker, int(i)};
        with_format(m, work);
        column += m.outputs;
    }
#if defined(GPTOSS_TILES)
    close_tiles();
#endif
}

// Rows of a matrix, one for each id.
struct RowsWork {
    const RowsCall& call;
    Worker& worker;

    template <class F>
    void run() {
        const Matrix& m = call.matrix;
        int64_t begin, end;
        worker.part(call.rows, &begin, &end);
        for (int64_t r = begin; r < end; r++) {
            const F row(m, call.ids[r]);
            float* out = call.out + r * m.inputs;
            for (int64_t c = 0; c < chunks_of<F>(m.inputs); c++) {
                Vec w[F::VECS];
                alignas(64) float values[F::CHUNK], scales[LANES];
                const int64_t left = m.inputs - c * F::CHUNK;
                if (left >= F::CHUNK) {
                    row.expand(row.codes + c * F::BYTES, w);
                    store(scales, row.scale(c));
                } else {
                    expand_last(row, c, left, w);
                    store(scales, row.last_scale(c, left, false));
                }
                for (int i = 0; i < F::VECS; i++) store(values + i * LANES, w[i]);
                for (int i = 0; i < F::CHUNK; i++) {
                    const int64_t at = c * F::CHUNK + F::order(i);
                    if (at >= m.inputs) continue;
                    out[at] = F::SCALED ? values[i] * scales[i % LANES] : values[i];
                    if constexpr (F::BIASED) out[at] += row.bias(at / m.group);
                }
            }
        }
    }
};

static void rows(const RowsCall& call, Worker& worker) {
    RowsWork work{call, worker};
    with_format(call.matrix, work);
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
