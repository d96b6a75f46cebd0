#include <cmath>
#include <cstring>

#include "../gptoss.h"
#if defined(__x86_64__)
#include "../simd/vnni.h"

#include "../kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
