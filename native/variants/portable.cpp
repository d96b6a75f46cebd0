#include <cmath>
#include <cstring>

#include "../gptoss.h"
#include "../simd/portable.h"

#include "../kernels.h"
