// e^x of a vector.
#pragma once

#include "gptoss.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

// e^x for x <= 0; below -87 it is e^-87. Cody and Waite's reduction and the polynomial of Cephes'
// expf, 2 units in the last place.
GPTOSS_INLINE Vec exponential(Vec x) {
    x = max(x, fill(-87.0f));
    const Vec n = nearest(mul(x, fill(1.44269504f)));
    Vec r = fma(n, fill(-0.693359375f), x);
    r = fma(n, fill(2.12194440e-4f), r);
    Vec p = fill(1.9875691500e-4f);
    p = fma(p, r, fill(1.3981999507e-3f));
    p = fma(p, r, fill(8.3334519073e-3f));
    p = fma(p, r, fill(4.1665795894e-2f));
    p = fma(p, r, fill(1.6666665459e-1f));
    p = fma(p, r, fill(5.0000001201e-1f));
    p = fma(p, mul(r, r), add(r, fill(1.0f)));
    return mul(p, power_of_two(n));
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
