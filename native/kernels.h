// The table of a variant's functions. A variant includes its vectors (simd/) and then this.
#pragma once

#include "attention.h"
#include "linear.h"
#include "moe.h"
#include "router_topk.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

struct PaddedWork {
    const Matrix& m;
    int64_t width = 0;

    template <class F>
    void run() {
        width = stride_of<F>(m);
    }
};

static int64_t padded_width(int32_t format, int32_t bits, int32_t group, int64_t inputs) {
    const Matrix m{format, bits, group, 0, 0, inputs, nullptr, nullptr, nullptr};
    PaddedWork work{m};
    with_format(m, work);
    return work.width;
}

#define GPTOSS_STRING(name) #name
#define GPTOSS_NAME(name) GPTOSS_STRING(name)

extern const Kernels KERNELS;
const Kernels KERNELS = {
    GPTOSS_NAME(GPTOSS_VARIANT), supported, padded_width, rows,     linear, store_call,
    attention,                   router_topk, moe_gate_up, moe_down, sum_pairs};

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
