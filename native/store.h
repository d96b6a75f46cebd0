// RoPE on a step's queries and keys; its keys and values are written into the pages.
#pragma once

#include <cstring>

#include "page.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

// Rotates halves of a head. Su et al., "RoFormer"; pairs (i, i + head_dim / 2), as gpt-oss has them.
GPTOSS_INLINE void rotate(float* x, const float* cosines, const float* sines, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cosines[i] - b * sines[i];
        x[half + i] = b * cosines[i] + a * sines[i];
    }
}

GPTOSS_INLINE void put(float* to, float x) { *to = x; }
GPTOSS_INLINE void put(uint16_t* to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    // To the nearest, ties to even; NaN stays NaN.
    *to = x != x ? 0x7FC0 : uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Writes a head's vector, whose values lie `step` apart.
template <class T>
GPTOSS_INLINE void put_head(T* to, int64_t step, const float* x, int64_t dim, float*, float*) {
    for (int64_t i = 0; i < dim; i++) put(to + i * step, x[i]);
}
// In 8 bits: codes from 0 to 255 between the least and the largest value.
GPTOSS_INLINE void put_head(
    uint8_t* to, int64_t step, const float* x, int64_t dim, float* scale, float* bias) {
    float least = x[0], most = x[0];
    for (int64_t i = 1; i < dim; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
    }
    *bias = least;
    *scale = (most - least) / 255.0f;
    const float inverse = *scale > 0.0f ? 1.0f / *scale : 0.0f;
    for (int64_t i = 0; i < dim; i++) {
        const float code = (x[i] - least) * inverse + 0.5f;
        to[i * step] = uint8_t(code < 255.0f ? code : 255.0f);
    }
}

template <class T>
static void store_tokens(const StoreCall& call, Worker& worker) {
    const Shape& shape = call.shape;
    const int64_t dim = shape.head_dim, half = dim / 2, heads = shape.heads + shape.kv_heads;
    const int64_t width = aligned(dim, ALIGNED), row = (heads + shape.kv_heads) * dim;
    int64_t token = 0, begin, end, all = 0;
    for (int64_t s = 0; s < call.spans; s++) all += call.span[s].tokens;
    worker.part(all, &begin, &end);
    for (int64_t s = 0; s < call.spans; s++) {
        const Span& span = call.span[s];
        for (int64_t i = 0; i < span.tokens; i++, token++) {
            if (token < begin || token >= end) continue;
            float* x = call.qkv + token * row;
            for (int64_t h = 0; h < heads; h++) {
                rotate(x + h * dim, call.cosines + token * half, call.sines + token * half, half);
            }
            const int64_t place = call.writes[s] + i, column = place % shape.places;
            for (int64_t h = 0; h < shape.kv_heads; h++) {
                const Page<T> page(shape, span.pages[place / shape.places], h);
                put_head(
                    (T*)page.keys + column, shape.places, x + (shape.heads + h) * dim, dim,
                    (float*)page.key_scales + column, (float*)page.key_biases + column);
                put_head(
                    (T*)page.values + column * width, 1, x + (heads + h) * dim, dim,
                    (float*)page.value_scales + column, (float*)page.value_biases + column);
            }
        }
    }
}

static void store_pages(const StoreCall& call, Worker& worker) {
    switch (call.shape.type) {
        case K_F32: return store_tokens<float>(call, worker);
        case K_BF16: return store_tokens<uint16_t>(call, worker);
        default: return store_tokens<uint8_t>(call, worker);
    }
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
