// Grouped-query attention over paged keys and values, with a sink logit a head and a window.
//
// An item is a few consecutive queries of all heads that share a key head, over the keys of a page
// at a time: scores by blocks of BLOCK_KEYS, a running maximum and sum (Milakov and Gimelshein,
// "Online normalizer calculation for softmax"). A single query's keys are split into parts of SPLIT,
// which several threads take; the parts are merged in order. How a sequence is split depends on
// its own length alone, and so does its result.
#pragma once

#include <cmath>
#include <cstring>

#include "exponential.h"
#include "page.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

constexpr int BLOCK_KEYS = 64;
constexpr int64_t SPLIT = 1024;   // keys of a part
constexpr int QUERIES = 32;       // rows of queries that an item is made of, where heads allow

GPTOSS_INLINE Vec load_any(const float* p) { return load(p); }
GPTOSS_INLINE Vec load_any(const uint16_t* p) { return load_bf16(p); }
GPTOSS_INLINE Vec load_any(const uint8_t* p) { return load_u8(p); }

// c [M, N vectors] (+)= a [M, k] b [k, N vectors], b and c at strides.
template <class T, int M, int N>
GPTOSS_INLINE void multiply_tile(
    const float* const* a, const T* b, int64_t b_stride, int k, float* c, int64_t c_stride,
    bool more) {
    Vec total[M][N];
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) {
            total[m][n] = more ? load(c + m * c_stride + n * LANES) : zero();
        }
    }
    for (int i = 0; i < k; i++) {
        Vec row[N];
        for (int n = 0; n < N; n++) row[n] = load_any(b + i * b_stride + n * LANES);
        for (int m = 0; m < M; m++) {
            const Vec x = fill(a[m][i]);
            for (int n = 0; n < N; n++) total[m][n] = fma(x, row[n], total[m][n]);
        }
    }
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) store(c + m * c_stride + n * LANES, total[m][n]);
    }
}

template <class T, int N>
GPTOSS_INLINE void multiply_columns(
    const float* const* a, int rows, const T* b, int64_t b_stride, int k, float* c,
    int64_t c_stride, bool more) {
    int m = 0;
    for (; m + 4 <= rows; m += 4) {
        multiply_tile<T, 4, N>(a + m, b, b_stride, k, c + m * c_stride, c_stride, more);
    }
    for (; m < rows; m++) {
        multiply_tile<T, 1, N>(a + m, b, b_stride, k, c + m * c_stride, c_stride, more);
    }
}

// columns: a multiple of LANES.
template <class T>
GPTOSS_INLINE void multiply(
    const float* const* a, int rows, const T* b, int64_t b_stride, int k, int columns, float* c,
    int64_t c_stride, bool more) {
    int n = 0;
    for (; n + 2 * LANES <= columns; n += 2 * LANES) {
        multiply_columns<T, 2>(a, rows, b + n, b_stride, k, c + n, c_stride, more);
    }
    if (n < columns) multiply_columns<T, 1>(a, rows, b + n, b_stride, k, c + n, c_stride, more);
}

// An item's rows, in the thread's workspace: query heads of consecutive tokens, the heads of a token
// one after another. A row's result so far is a part: the largest score, the sum of the shares
// relative to it, and the values in these shares.
struct Item {
    int rows, heads;
    int64_t width, first;     // of a head's values, padded; the first place
    const float** queries;    // [rows]
    float **shares, *scores;  // [rows], and what they point to, [rows, BLOCK_KEYS]
    float *parts, *sums;      // [rows, 2 + width]; [rows], of each query, for key biases

    Item(float* own, int rows_, int heads_, int64_t width_, int64_t first_)
        : rows(rows_), heads(heads_), width(width_), first(first_) {
        queries = (const float**)own;
        shares = (float**)(queries + rows);
        scores = (float*)(shares + rows);
        parts = scores + rows * BLOCK_KEYS;
        sums = parts + rows * (2 + width);
    }
    float* part(int row) const { return parts + row * (2 + width); }
};

// Scores, and then shares of a block of keys: [rows, n].
template <class T>
static void attend_block(
    const Item& it, const Shape& shape, const Page<T>& page, int64_t column, int n, int64_t place,
    const Span& span, int64_t query, float scale) {
    constexpr bool coded = sizeof(T) == 1;
    const int columns = int(aligned(n, LANES));
    multiply<T>(
        it.queries, it.rows, page.keys + column, shape.places, shape.head_dim, columns, it.scores,
        BLOCK_KEYS, false);
    for (int r = 0; r < it.rows; r++) {
        float* s = it.scores + r * BLOCK_KEYS;
        const int64_t end = span.seen + query + r / it.heads + 1;
        const int64_t begin = end > span.window ? end - span.window : 0;
        // A block may begin before the item does, so that its vectors are aligned.
        const int64_t from = begin > it.first ? begin : it.first;
        const int low = from > place ? int(from - place) : 0;
        const int high = end - place < n ? int(end - place) : n;
        if (low >= high) {
            for (int i = 0; i < columns; i++) s[i] = 0.0f;
            continue;
        }
        for (int i = 0; i < columns; i += LANES) {
            Vec v = load(s + i);
            if constexpr (coded) {
                v = fma(v, load(page.key_scales + column + i),
                        mul(fill(it.sums[r]), load(page.key_biases + column + i)));
            }
            store(s + i, mul(v, fill(scale)));
        }
        float *part = it.part(r), *out = part + 2, most = part[0];
        for (int i = low; i < high; i++) most = s[i] > most ? s[i] : most;
        if (most > part[0]) {
            // e^(-inf - most) is 0: nothing has been seen before.
            const float shrink = std::exp(part[0] - most);
            for (int i = 0; i < it.width; i += LANES) {
                store(out + i, mul(load(out + i), fill(shrink)));
            }
            part[0] = most;
            part[1] *= shrink;
        }
        for (int i = 0; i < columns; i += LANES) {
            store(s + i, exponential(sub(load(s + i), fill(most))));
        }
        for (int i = 0; i < low; i++) s[i] = 0.0f;
        for (int i = high; i < columns; i++) s[i] = 0.0f;
        Vec all = zero();
        for (int i = 0; i < columns; i += LANES) all = add(all, load(s + i));
        part[1] += sum(all);
        if constexpr (coded) {
            float shift = 0.0f;
            for (int i = low; i < high; i++) {
                shift += s[i] * page.value_biases[column + i];
                s[i] *= page.value_scales[column + i];
            }
            for (int i = 0; i < it.width; i += LANES) {
                store(out + i, add(load(out + i), fill(shift)));
            }
        }
    }
    multiply<T>(
        it.shares, it.rows, page.values + column * it.width, it.width, n, int(it.width),
        it.parts + 2, 2 + it.width, true);
}

// Queries from number `query` on, over the item's places before `last` as far as they see them.
template <class T>
static void attend(
    const Item& it, const Shape& shape, const Span& span, int64_t head, int64_t query, int64_t last,
    float scale) {
    for (int r = 0; r < it.rows; r++) {
        it.shares[r] = it.scores + r * BLOCK_KEYS;
        it.sums[r] = 0.0f;
        for (int i = 0; i < shape.head_dim; i++) it.sums[r] += it.queries[r][i];
        for (int64_t i = 0; i < 2 + it.width; i++) it.part(r)[i] = 0.0f;
        it.part(r)[0] = -INFINITY;
    }
    for (int64_t place = it.first; place < last;) {
        const int64_t column = place % shape.places;
        int64_t n = last - place < BLOCK_KEYS ? last - place : BLOCK_KEYS;
        // Blocks begin at multiples of BLOCK_KEYS in a page, so that vectors are aligned to it.
        const int64_t skip = column % BLOCK_KEYS;
        n = n < BLOCK_KEYS - skip ? n : BLOCK_KEYS - skip;
        n = n < shape.places - column ? n : shape.places - column;
        const int64_t back = column % LANES;
        const Page<T> page(shape, span.pages[place / shape.places], head);
        attend_block<T>(
            it, shape, page, column - back, int(n + back), place - back, span, query, scale);
        place += n;
    }
}

GPTOSS_INLINE int64_t queries_of(const Shape& shape) {
    const int64_t group = shape.heads / shape.kv_heads;
    return QUERIES / group > 0 ? QUERIES / group : 1;
}

// The places that query 0 of a span sees: begin to seen + 1. Parts of a single query's keys.
GPTOSS_INLINE int64_t begin_of(const Span& span) {
    return span.seen + 1 > span.window ? span.seen + 1 - span.window : 0;
}
GPTOSS_INLINE int64_t parts_of(const Span& span) {
    return span.tokens == 1 ? (span.seen + 1 - begin_of(span) + SPLIT - 1) / SPLIT : 1;
}

// Merge the parts of one head, [parts] of (most, total, out [head_dim]) at a stride, and the sink.
static void merge(
    const float* parts, int64_t count, int64_t stride, float sink, int width, float* y) {
    float most = sink;
    for (int64_t p = 0; p < count; p++) most = parts[p * stride] > most ? parts[p * stride] : most;
    float total = std::exp(sink - most);
    for (int i = 0; i < width; i++) y[i] = 0.0f;
    for (int64_t p = 0; p < count; p++) {
        const float* part = parts + p * stride;
        const float share = std::exp(part[0] - most);
        total += share * part[1];
        for (int i = 0; i < width; i++) y[i] += share * part[2 + i];
    }
    for (int i = 0; i < width; i++) y[i] /= total;
}

struct AttentionWork {
    const AttentionCall& call;
    Worker& worker;

    // One item: queries `query` on of a span that begins at token `token`; part of its keys.
    template <class T>
    void item(const Span& span, int64_t token, int64_t head, int64_t query, int64_t part,
              float* partials) {
        const Shape& shape = call.shape;
        const int64_t group = shape.heads / shape.kv_heads, dim = shape.head_dim;
        const int64_t size = queries_of(shape), left = span.tokens - query;
        const int64_t tokens = left < size ? left : size;
        const int64_t in = (shape.heads + 2 * shape.kv_heads) * dim, out = shape.heads * dim;
        const int64_t parts = parts_of(span), seen = span.seen + query;
        int64_t first = seen + 1 > span.window ? seen + 1 - span.window : 0, last = seen + tokens;
        if (parts > 1) {
            first += part * SPLIT;
            last = last < first + SPLIT ? last : first + SPLIT;
        }
        const Item it(
            worker.own, int(tokens * group), int(group), aligned(dim, ALIGNED), first);
        for (int r = 0; r < it.rows; r++) {
            const int64_t which = head * group + r % group;
            it.queries[r] = call.qkv + (token + query + r / group) * in + which * dim;
        }
        attend<T>(it, shape, span, head, query, last, call.scale);
        for (int r = 0; r < it.rows; r++) {
            const int64_t which = head * group + r % group;
            if (parts > 1) {
                float* to = partials + (which * parts + part) * (2 + dim);
                std::memcpy(to, it.part(r), size_t(2 + dim) * sizeof(float));
            } else {
                float* y = call.y + (token + query + r / group) * out + which * dim;
                merge(it.part(r), 1, 0, call.sinks[which], int(dim), y);
            }
        }
    }

    template <class T>
    void run() {
        const Shape& shape = call.shape;
        const int64_t size = queries_of(shape);
        int64_t items = 0;
        for (int64_t s = 0; s < call.spans; s++) items += items_of(call.span[s], size);
        int64_t at, next;
        while (worker.take(0, 1, items, &at, &next)) {
            int64_t token = 0;
            float* partials = call.partials;
            int64_t s = 0;
            for (; at >= items_of(call.span[s], size); s++) {
                at -= items_of(call.span[s], size);
                token += call.span[s].tokens;
                partials += parts_of(call.span[s]) * shape.heads * (shape.head_dim + 2);
            }
            const Span& span = call.span[s];
            const int64_t parts = parts_of(span), head = at % shape.kv_heads;
            const int64_t rest = at / shape.kv_heads;
            item<T>(span, token, head, rest / parts * size, rest % parts, partials);
        }
        worker.barrier();
        merge_all();
    }

    int64_t items_of(const Span& span, int64_t size) const {
        return (span.tokens + size - 1) / size * parts_of(span) * call.shape.kv_heads;
    }

    void merge_all() {
        const Shape& shape = call.shape;
        const int64_t dim = shape.head_dim;
        int64_t token = 0;
        const float* partials = call.partials;
        for (int64_t s = 0; s < call.spans; s++) {
            const int64_t parts = parts_of(call.span[s]);
            if (parts > 1) {
                int64_t begin, end;
                worker.part(shape.heads, &begin, &end);
                for (int64_t head = begin; head < end; head++) {
                    merge(
                        partials + head * parts * (dim + 2), parts, dim + 2, call.sinks[head],
                        int(dim), call.y + (token * shape.heads + head) * dim);
                }
            }
            partials += parts * shape.heads * (dim + 2);
            token += call.span[s].tokens;
        }
    }
};

static void attention(const AttentionCall& call, Worker& worker) {
    AttentionWork work{call, worker};
    switch (call.shape.type) {
        case K_F32: return work.run<float>();
        case K_BF16: return work.run<uint16_t>();
        default: return work.run<uint8_t>();
    }
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
