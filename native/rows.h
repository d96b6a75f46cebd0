// Activations as a product reads them: rows packed in the order of the weights' format.
#pragma once

#include "formats.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

// Tokens of a step that are multiplied one by one in the same way, whatever their number; more are
// a prompt.
constexpr int DECODED = 32;

// Rows of packed activations. Row r begins at x + index[r] * stride; without an index, at r. Behind
// `padded` values lie the sums of groups, if the format has biases. prompt: whether they may be
// added in another order than a single row.
struct Rows {
    const float* x;
    int64_t stride, padded, count;
    const int32_t* index;
    bool prompt;

    const float* row(int64_t r) const { return x + (index ? index[r] : r) * stride; }

    // At most `most` rows, from number `first` on.
    Rows part(int64_t first, int64_t most) const {
        const int64_t some = count - first < most ? count - first : most;
        if (index) return {x, stride, padded, some, index + first, prompt};
        return {x + first * stride, stride, padded, some, nullptr, prompt};
    }
};

template <class F>
GPTOSS_INLINE int64_t padded(int64_t inputs) {
    return chunks_of<F>(inputs) * F::CHUNK;
}

template <class F>
GPTOSS_INLINE int64_t stride_of(const Matrix& m) {
    return padded<F>(m.inputs) + (F::BIASED ? (m.inputs / m.group + 15) / 16 * 16 : 0);
}

// Pack x [inputs], times norm and `factor` if there is a norm, into a row.
template <class F>
static void pack(const Matrix& m, const float* x, const float* norm, float factor, float* out) {
    const int64_t chunks = chunks_of<F>(m.inputs);
    for (int64_t c = 0; c < chunks; c++) {
        for (int i = 0; i < F::CHUNK; i++) {
            const int64_t at = c * F::CHUNK + F::order(i);
            const float value = at < m.inputs ? x[at] : 0.0f;
            out[c * F::CHUNK + i] = norm && at < m.inputs ? value * factor * norm[at] : value;
        }
    }
    if constexpr (F::BIASED) {
        float* sums = out + chunks * F::CHUNK;
        for (int64_t g = 0; g * m.group < m.inputs; g++) {
            float sum = 0.0f;
            for (int64_t at = g * m.group; at < (g + 1) * m.group; at++) {
                sum += norm ? x[at] * factor * norm[at] : x[at];
            }
            sums[g] = sum;
        }
        const int64_t groups = m.inputs / m.group;
        for (int64_t g = groups; g < (groups + 15) / 16 * 16; g++) sums[g] = 0.0f;
    }
}

// 1 / sqrt(mean of squares + eps). Zhang and Sennrich, "Root Mean Square Layer Normalization".
static float norm_factor(const float* x, int64_t width, float eps) {
    Vec squares = zero();
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Vec a = load(x + i);
        squares = fma(a, a, squares);
    }
    float total = sum(squares);
    for (; i < width; i++) total += x[i] * x[i];
    return 1.0f / __builtin_sqrtf(total / float(width) + eps);
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
