// The router's choice: the k largest logits of a token, and the softmax over just those.
#pragma once

#include <cmath>

#include "gptoss.h"

namespace gptoss {
namespace GPTOSS_VARIANT {

// NaN is the smallest of all, so that the order is total.
GPTOSS_INLINE bool above(float a, float b) { return a > b || (b != b && a == a); }

static void router_topk(const RouterCall& call, Worker& worker) {
    int64_t begin, end;
    worker.part(call.rows, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const float* logits = call.logits + r * call.experts;
        int32_t* ids = call.ids + r * call.k;
        float* weights = call.weights + r * call.k;
        for (int64_t n = 0; n < call.k; n++) {
            int64_t best = -1;
            for (int64_t e = 0; e < call.experts; e++) {
                bool taken = false;
                for (int64_t i = 0; i < n; i++) taken |= ids[i] == e;
                if (!taken && (best < 0 || above(logits[e], logits[best]))) best = e;
            }
            ids[n] = int32_t(best);
        }
        float total = 0.0f;
        for (int64_t n = 0; n < call.k; n++) {
            weights[n] = std::exp(logits[ids[n]] - logits[ids[0]]);
            total += weights[n];
        }
        for (int64_t n = 0; n < call.k; n++) weights[n] /= total;
    }
}

}  // namespace GPTOSS_VARIANT
}  // namespace gptoss
