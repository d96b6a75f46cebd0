// The mixture of experts: each expert's weights are read once for all tokens that visit it.
//
// gate_up: h = swiglu(W norm(x) + b). down: out = (W h + b) * weight, for each pair of a token and
// an expert; it packs h in place. sum: the pairs of each token, in the order of its choice, and the
// residual.
#pragma once

#include "exponential.h"
#include "linear.h"
#if defined(GPTOSS_PLANES)
#include "planes.h"
#endif

namespace gptoss {
namespace GPTOSS_VARIANT {

// Outputs of an expert that a thread takes at a time: whole strips, whole panels.
constexpr int64_t EXPERT_GRAIN = 8 * STRIP;
static_assert(EXPERT_GRAIN % PANEL == 0, "whole panels");

// The clamped SwiGLU of outputs that alternate, gate, up, gate, up, ...: y [count / 2]. OpenAI,
// gpt-oss/torch/model.py, `swiglu`.
static void swiglu(const float* x, const float* bias, int count, float limit, float* y) {
    constexpr int MOST = 64;  // outputs, at least those of a strip
    alignas(64) float gates[MOST / 2], ups[MOST / 2], powers[MOST / 2] = {};
    const int pairs = count / 2;
    for (int i = 0; i < pairs; i++) {
        const float gate = x[2 * i] + bias[2 * i], up = x[2 * i + 1] + bias[2 * i + 1];
        gates[i] = gate > limit ? limit : gate;
        ups[i] = up > limit ? limit : up < -limit ? -limit : up;
        powers[i] = -1.702f * (gates[i] > 0.0f ? gates[i] : -gates[i]);
    }
    for (int i = 0; i < pairs; i += LANES) store(powers + i, exponential(load(powers + i)));
    // The logistic function of |z| is 1 / (1 + e^-|z|), that of -|z| is e^-|z| / (1 + e^-|z|).
    for (int i = 0; i < pairs; i++) {
        const float share = (gates[i] > 0.0f ? 1.0f : powers[i]) / (1.0f + powers[i]);
        y[i] = gates[i] * share * (ups[i] + 1.0f);
    }
}

// Pairs grouped by slot: group g is of slot[g], and has the pairs order[start[g]] up to
// order[start[g + 1] - 1], which read the rows index[start[g]] and so on.
struct Groups {
    int32_t *count, *slot, *start, *order, *index;
};

// Floats from a row of h to the next, in every variant alike: packed, a row is not longer.
GPTOSS_INLINE int64_t stride_of_h(const Bank& bank) { return (bank.down.inputs + 511) / 512 * 512; }

// Floats that a packed row takes.
GPTOSS_INLINE int64_t packed_width(int64_t inputs) {
#if defined(GPTOSS_PLANES)
    return padded<Mxfp4Planes>(inputs);
#else
    return padded<Mxfp4>(inputs);
#endif
}

// In the shared workspace, behind `packed` floats.
GPTOSS_INLINE Groups groups_in(float* shared, int64_t packed, const VisitsCall& call) {
    int32_t* p = (int32_t*)(shared + packed);
    Groups g;
    g.count = p;
    g.slot = g.count + 1;
    g.start = g.slot + call.slots;
    g.order = g.start + call.slots + 1;
    g.index = g.order + call.pairs;
    return g;
}

// row: of each pair.
static void make_groups(const VisitsCall& call, const int32_t* row, const Groups& g) {
    int32_t* next = g.start;
    for (int64_t s = 0; s <= call.slots; s++) next[s] = 0;
    for (int64_t i = 0; i < call.pairs; i++) next[call.slot[i] + 1]++;
    for (int64_t s = 0; s < call.slots; s++) next[s + 1] += next[s];
    for (int64_t i = 0; i < call.pairs; i++) {
        const int32_t at = next[call.slot[i]]++;
        g.order[at] = int32_t(i);
        g.index[at] = row[i];
    }
    int32_t count = 0;
    for (int64_t i = 0; i < call.pairs; i++) {
        const int32_t slot = call.slot[g.order[i]];
        if (i == 0 || slot != g.slot[count - 1]) {
            g.slot[count] = slot;
            g.start[count++] = int32_t(i);
        }
    }
    g.start[count] = int32_t(call.pairs);
    *g.count = count;
}

// The matrix of a slot.
GPTOSS_INLINE Matrix matrix_in(const Matrix& first, int64_t slot) {
    Matrix m = first;
    m.weight += slot * m.outputs * (m.inputs / 2);
    m.scales += slot * m.outputs * (m.inputs / Mxfp4::GROUP);
    return m;
}

struct GateUpUse {
    const VisitsCall& call;
    const int32_t* order;

    void operator()(
        int64_t output, int count, int64_t row, int rows, const float* out, int stride) const {
        const Bank& bank = *call.bank;
        for (int r = 0; r < rows; r++) {
            const int32_t pair = order[row + r];
            const float* bias = bank.gate_up_bias + call.expert[pair] * bank.gate_up.outputs + output;
            float* h = call.h + call.place[pair] * stride_of_h(bank) + output / 2;
            swiglu(out + r * stride, bias, count, bank.limit, h);
        }
    }
};

struct DownUse {
    const VisitsCall& call;
    const int32_t* order;

    void operator()(
        int64_t output, int count, int64_t row, int rows, const float* out, int stride) const {
        const Bank& bank = *call.bank;
        const int64_t width = bank.down.outputs;
        for (int r = 0; r < rows; r++) {
            const int32_t pair = order[row + r];
            const float* bias = bank.down_bias + call.expert[pair] * width + output;
            float* to = call.out + call.place[pair] * width + output;
            for (int o = 0; o < count; o++) {
                to[o] = (out[r * stride + o] + bias[o]) * call.weight[pair];
            }
        }
    }
};

[[maybe_unused]] static void normalize(
    const float* x, int64_t width, const float* norm, float eps, float* out) {
    if (!norm) return void(std::memmove(out, x, size_t(width) * sizeof(float)));
    const float factor = norm_factor(x, width, eps);
    for (int64_t i = 0; i < width; i++) out[i] = x[i] * factor * norm[i];
}

// Packs a row of activations in place of `out`, which may be x; a few tokens' as planes, where the
// variant has them, and not at all where tiles are packed later. own: room for a row.
static void pack_row(
    const Matrix& m, const float* x, const float* norm, float eps, [[maybe_unused]] bool prompt,
    [[maybe_unused]] float* own, float* out) {
#if defined(GPTOSS_TILES)
    normalize(x, m.inputs, norm, eps, out);
#else
#if defined(GPTOSS_PLANES)
    if (!prompt) {
        normalize(x, m.inputs, norm, eps, own);
        return Mxfp4Planes::pack(own, m.inputs, out);
    }
#endif
    pack<Mxfp4>(m, x, norm, norm ? norm_factor(x, m.inputs, eps) : 1.0f, own);
    std::memcpy(out, own, size_t(padded<Mxfp4>(m.inputs)) * sizeof(float));
#endif
}

#if defined(GPTOSS_TILES)
// The products of all groups in tiles: each item packs its group's rows for itself.
template <class Block, class Use>
static void visit_blocks(
    const Matrix& first, const Groups& groups, Rows rows, Worker& worker, Use use) {
    constexpr int64_t most = Block::PASS * Block::ROWS;
    const int64_t grain = tile_grain(first.outputs, *groups.count, worker.threads);
    const int64_t parts = (first.outputs + grain - 1) / grain, depth = depth_of(first.inputs);
    uint8_t* to = TileRoom(worker.own).tiles;
    int64_t item, next;
    while (worker.take(0, 1, *groups.count * parts, &item, &next)) {
        const int64_t g = item / parts, begin = item % parts * grain;
        const int64_t end = begin + grain < first.outputs ? begin + grain : first.outputs;
        const Matrix matrix = matrix_in(first, groups.slot[g]);
        const int64_t count = groups.start[g + 1] - groups.start[g];
        rows.index = groups.index + groups.start[g];
        use.order = groups.order + groups.start[g];
        for (int64_t row = 0; row < count; row += most) {
            const int64_t some = count - row < most ? count - row : most;
            const Tiles<Block> tiles{to, depth, some, nullptr, 0};
            for (int64_t b = 0; b < tiles.blocks(); b++) {
                const float* x[Block::ROWS];
                for (int r = 0; r < tiles.rows_of(b); r++) {
                    x[r] = rows.row(row + b * Block::ROWS + r);
                }
                pack_tiles<Mxfp4, Block>(
                    x, tiles.rows_of(b), first.inputs, to + b * depth * Block::X_BYTES);
            }
            tile_product<Mxfp4>(matrix, begin, end, tiles, row, worker.own, use);
        }
    }
}

template <class Use>
static void visit(
    const Matrix& first, const Groups& groups, const Rows& rows, Worker& worker, Use use) {
    open_tiles();
    if (rows.prompt) {
        visit_blocks<Wide>(first, groups, rows, worker, use);
    } else {
        visit_blocks<Narrow>(first, groups, rows, worker, use);
    }
    close_tiles();
}
#else
// Of a few tokens, packed as `pack_row` has; or of FEW of a prompt's.
template <class Use>
static void few_product(
    const Matrix& m, int64_t begin, int64_t end, const Rows& rows, float* own, Use& use,
    const Then& then) {
#if defined(GPTOSS_PLANES)
    if (!rows.prompt) return product<Mxfp4Planes>(m, begin, end, rows, own, use, then);
#endif
    product<Mxfp4>(m, begin, end, rows, own, use, then);
}

// The products of all groups, in items of EXPERT_GRAIN outputs.
template <class Use>
static void visit(
    const Matrix& first, const Groups& groups, Rows rows, Worker& worker, Use use) {
    const int64_t parts = (first.outputs + EXPERT_GRAIN - 1) / EXPERT_GRAIN;
    Items items(worker, 0, 1, *groups.count * parts);
    while (items.take()) {
        const int64_t g = items.begin / parts, begin = items.begin % parts * EXPERT_GRAIN;
        const int64_t end =
            begin + EXPERT_GRAIN < first.outputs ? begin + EXPERT_GRAIN : first.outputs;
        rows.count = groups.start[g + 1] - groups.start[g];
        rows.index = groups.index + groups.start[g];
        use.order = groups.order + groups.start[g];
        const Matrix matrix = matrix_in(first, groups.slot[g]);
        if (rows.prompt && rows.count > FEW) {
            panel_product<Mxfp4>(matrix, begin, end, rows, worker.own, use);
        } else {
            const bool more = items.next() >= 0;
            const Matrix next = matrix_in(first, groups.slot[more ? items.next() / parts : g]);
            const Then then{more ? &next : nullptr, items.next() % parts * EXPERT_GRAIN};
            few_product(matrix, begin, end, rows, worker.own, use, then);
        }
    }
}
#endif

static void moe_gate_up(const VisitsCall& call, Worker& worker) {
    const Bank& bank = *call.bank;
    const bool prompt = call.rows > DECODED;
    const int64_t width = packed_width(bank.gate_up.inputs);
    int64_t begin, end;
    worker.part(call.rows, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        pack_row(
            bank.gate_up, call.x + r * bank.gate_up.inputs, bank.norm, bank.eps, prompt,
            worker.own, worker.shared + r * width);
    }
    const Groups groups = groups_in(worker.shared, call.rows * width, call);
    if (worker.index == worker.threads - 1) make_groups(call, call.row, groups);
    worker.barrier();
    const Rows rows{worker.shared, width, width, 0, nullptr, prompt};
    visit(bank.gate_up, groups, rows, worker, GateUpUse{call, nullptr});
}

static void moe_down(const VisitsCall& call, Worker& worker) {
    const Matrix& down = call.bank->down;
    const bool prompt = call.rows > DECODED;
    const int64_t stride = stride_of_h(*call.bank);
    int64_t begin, end;
    worker.part(call.pairs, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        float* h = call.h + call.place[i] * stride;
        pack_row(down, h, nullptr, 0.0f, prompt, worker.own, h);
    }
    const Groups groups = groups_in(worker.shared, 0, call);
    if (worker.index == worker.threads - 1) make_groups(call, call.place, groups);
    worker.barrier();
    const Rows rows{call.h, stride, packed_width(down.inputs), 0, nullptr, prompt};
    visit(down, groups, rows, worker, DownUse{call, nullptr});
}

static void sum_pairs(const SumCall& call, Worker& worker) {
    int64_t begin, end;
    worker.part(call.rows * call.width, &begin, &end);
    for (int64_t at = begin; at < end; at++) {
        const int64_t row = at / call.width, column = at % call.width;
        float y = 0.0f;
        for (int64_t i = 0; i < call.k; i++) {
            y += call.x[(row * call.k + i) * call.width + column];
        }
        call.y[at] = call.residual ? call.residual[at] + y : y;
    }
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
