// A page of keys and values of one layer: see gptoss.h for what lies in it.
#pragma once

#include "gptoss.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

constexpr int ALIGNED = 16;  // the values of a place are padded to a multiple of this many

GPTOSS_INLINE int64_t aligned(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A page's arrays for one key head.
template <class T>
struct Page {
    const T *keys, *values;
    const float *key_scales, *key_biases, *value_scales, *value_biases;  // of U8 alone

    Page(const Shape& shape, void* page, int64_t head) {
        const int64_t width = aligned(shape.head_dim, ALIGNED), places = shape.places;
        const T* first = (const T*)page;
        keys = first + head * shape.head_dim * places;
        values = first + shape.kv_heads * shape.head_dim * places + head * places * width;
        const int64_t all = shape.kv_heads * places * (shape.head_dim + width);
        const int64_t each = shape.kv_heads * places;
        const float* numbers = (const float*)((const uint8_t*)page + all * int64_t(sizeof(T)));
        key_scales = numbers + head * places;
        key_biases = key_scales + each;
        value_scales = key_biases + each;
        value_biases = value_scales + each;
    }
};

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
