"""MXFP4 as MLX has it: 32 four-bit floats share one power-of-two scale."""

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


def random_bank(slots: int, outputs: int, inputs: int) -> tuple[mx.array, mx.array]:
    """Blocks and scales, always the same, with every code and scales of 2^-7 to 2^-2."""
    codes, exponents = mx.random.split(mx.random.key(0))
    blocks = mx.random.randint(0, 256, (slots, outputs, inputs // 2), mx.uint8, key=codes)
    scales = mx.random.randint(120, 126, (slots, outputs, inputs // GROUP), mx.uint8, key=exponents)
    return blocks.view(mx.uint32), scales
