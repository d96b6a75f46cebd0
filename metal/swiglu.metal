// The clamped SwiGLU: OpenAI, gpt-oss/torch/model.py, `swiglu`.

#include <metal_stdlib>

using namespace metal;

inline float swiglu(float gate, float up, float limit) {
    gate = min(gate, limit);
    up = clamp(up, -limit, limit);
    return gate / (1.0f + precise::exp(-1.702f * gate)) * (up + 1.0f);
}
