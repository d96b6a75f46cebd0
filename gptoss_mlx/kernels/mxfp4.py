"""MXFP4 as MLX knows it: 32 four-bit floats to one power-of-two scale."""

import mlx.core as mx

GROUP = 32  # values to a scale


def gathered_matmul(
    x: mx.array, blocks: mx.array, scales: mx.array, slots: mx.array, grouped: bool
) -> mx.array:
    """x times the transpose of the matrices in the named slots of a bank.

    x [tokens, k or 1, 1, inputs], blocks [slots, outputs, inputs / 8] uint32,
    scales [slots, outputs, inputs / 32] uint8, slots [tokens, k], ascending if grouped
    -> [tokens, k, 1, outputs]
    """
    return mx.gather_qmm(
        x,
        blocks,
        scales,
        rhs_indices=slots,
        transpose=True,
        group_size=GROUP,
        bits=4,
        mode="mxfp4",
        sorted_indices=grouped,
    )
