#include <cmath>
#include <cstring>

// What few processors run need not be compiled for long.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O2")
#endif

#include "../gptoss.h"
#include "../simd/portable.h"

#include "../kernels.h"
