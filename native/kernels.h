// The table of a variant's functions. A variant includes its vectors (simd/) and then this.
#pragma once

#include "attention.h"
#include "linear.h"
#include "moe.h"
#include "router_topk.h"
#include "store.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

#define GPTOSS_STRING(name) #name
#define GPTOSS_NAME(name) GPTOSS_STRING(name)

extern const Kernels KERNELS;
const Kernels KERNELS = {
    GPTOSS_NAME(GPTOSS_VARIANT), supported, rows,     linear,  store_pages, attention,
    router_topk,                 moe_gate_up, moe_down, sum_pairs};

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
