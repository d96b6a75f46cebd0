#include <cmath>
#include <cstring>

#include "../gptoss.h"
#if defined(__aarch64__)
#include "../simd/neon.h"

#include "../kernels.h"
#endif
