"""Second half of an expert: down, bias, routing weight and the sum over the chosen experts."""

import mlx.core as mx

from gptoss_mlx.kernels.mxfp4 import gathered_matmul


def moe_down(
    x: mx.array,
    blocks: mx.array,
    scales: mx.array,
    bias: mx.array,
    slots: mx.array,
    experts: mx.array,
    weights: mx.array,
    grouped: bool = False,
) -> mx.array:
    """The experts' outputs, weighted and summed.

    x       [tokens, k, intermediate]
    blocks  [slots, hidden, intermediate / 8] uint32, MXFP4
    scales  [slots, hidden, intermediate / 32] uint8
    bias    [experts, hidden]
    slots, experts, weights  [tokens, k]; grouped: slots ascend
    returns [tokens, hidden]
    """
    y = (
        gathered_matmul(x[:, :, None, :], blocks, scales, slots, grouped)[:, :, 0, :]
        + bias[experts]
    )
    return (y * weights[:, :, None]).sum(axis=1)
