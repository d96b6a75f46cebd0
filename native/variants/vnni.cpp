#include <cmath>
#include <cstring>

#include "../gptoss.h"
#if defined(__x86_64__)
#include "../simd/vnni.h"

#include "../moe.h"

namespace gptoss {
namespace avx512 {
extern const Kernels KERNELS;
}
namespace vnni {

extern const Kernels KERNELS;
// AVX-512's, but for the experts.
const Kernels KERNELS = {
    "vnni",
    supported,
    avx512::KERNELS.rows,
    avx512::KERNELS.linear,
    avx512::KERNELS.store,
    avx512::KERNELS.attention,
    avx512::KERNELS.router_topk,
    moe_gate_up,
    moe_down,
    avx512::KERNELS.sum};

}  // namespace vnni
}  // namespace gptoss
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
