#include <cmath>
#include <cstring>

#include "../gptoss.h"
#if defined(GPTOSS_AMX)
#include "../simd/amx.h"

#include "../kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
