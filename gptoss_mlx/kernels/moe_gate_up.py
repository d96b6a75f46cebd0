"""First half of an expert: gate and up in one product, then the clamped SwiGLU."""

import mlx.core as mx

from gptoss_mlx.kernels.mxfp4 import gathered_matmul

ALPHA = 1.702


def swiglu(gate: mx.array, up: mx.array, limit: float) -> mx.array:
    """min(gate, limit) * sigmoid(1.702 * gate) * (clip(up, -limit, limit) + 1).

    OpenAI, gpt-oss/torch/model.py, `swiglu`.
    """
    gate = mx.minimum(gate, limit)
    up = mx.clip(up, -limit, limit)
    return gate * mx.sigmoid(ALPHA * gate) * (up + 1)


def moe_gate_up(
    x: mx.array,
    blocks: mx.array,
    scales: mx.array,
    bias: mx.array,
    slots: mx.array,
    experts: mx.array,
    limit: float,
    grouped: bool = False,
) -> mx.array:
    """The activations of the chosen experts.

    x       [tokens, hidden]
    blocks  [slots, 2 * intermediate, hidden / 8] uint32, MXFP4; rows 2i are gate, 2i + 1 up
    scales  [slots, 2 * intermediate, hidden / 32] uint8
    bias    [experts, 2 * intermediate]
    slots, experts  [tokens, k]: where each chosen expert lies in the bank, and which it is;
                    grouped: slots ascend
    returns [tokens, k, intermediate]
    """
    y = (
        gathered_matmul(x[:, None, None, :], blocks, scales, slots, grouped)[:, :, 0, :]
        + bias[experts]
    )
    activation = swiglu if mx.default_device() == mx.Device(mx.cpu) else _FUSED
    return activation(y[..., ::2], y[..., 1::2], limit)


# One kernel instead of nine. On a CPU, MLX would run a C++ compiler first.
_FUSED = mx.compile(swiglu, shapeless=True)
