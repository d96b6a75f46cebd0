"""Router logits and the vectors of few tokens against float64, by MLX and by the Metal kernel."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from gptoss_mlx.backends.mlx.ops import decode_router as op
from gptoss_mlx.backends.mlx.ops.matrix import Norm
from gptoss_mlx.backends.mlx.ops.metal import Factory
from gptoss_mlx.spec.config import QuantizationSpec
from tests.backends.mlx.ops.matrices import affine, exact, normal, normed, random_case
from tests.support.comparison import worst_row
from tests.support.metal_emulator import Emulator, available

emulated = pytest.mark.skipif(available() is not None, reason=available() or "")

ORDERS = ["forward", "reverse", "random"]
EXACT = {mx.float32: 1e-6, mx.bfloat16: 4e-3}  # relative L2 of a token's vector
LOGITS = 1e-6  # in both dtypes: neither the normalized vector nor the logits are rounded to bf16
EPS = 1e-5


def errors(
    factory: Factory | None,
    experts: int,
    inputs: int,
    tokens: int,
    spec: QuantizationSpec | None,
    dtype: mx.Dtype,
) -> tuple[float, float]:
    """The worst token's relative L2 of the logits and of the vector; None: by MLX."""
    rng = np.random.default_rng(inputs + tokens)
    case = random_case(rng, experts, inputs, spec, dtype)
    x, gain, bias = (normal(rng, dtype, *s) for s in ((tokens, inputs), (inputs,), (experts,)))
    run = op.decode_router if factory is None else op.metal(factory)
    logits, h = run(x, case.matrix, bias, Norm(gain, EPS))
    assert (logits.shape, logits.dtype) == ((tokens, experts), mx.float32)
    assert (h.shape, h.dtype) == ((tokens, inputs), dtype)
    expected = normed(x, gain, EPS)
    y = expected @ case.values.T + exact(bias)
    return worst_row(exact(logits), y), worst_row(exact(h), expected)


def test_the_reference() -> None:
    assert max(errors(None, 32, 96, 3, affine(8, 32), mx.float32)) <= 1e-6


@pytest.mark.parametrize("spec", [affine(8, 32), None])
def test_the_references_logits_are_not_rounded_to_bfloat16(spec: QuantizationSpec | None) -> None:
    rng = np.random.default_rng(2)
    case = random_case(rng, 32, 96, spec, mx.bfloat16)
    x, gain, bias = (normal(rng, mx.bfloat16, *s) for s in ((3, 96), (96,), (32,)))
    logits, h = op.decode_router(x, case.matrix, bias, Norm(gain, EPS))
    assert (logits.dtype, h.dtype) == (mx.float32, mx.bfloat16)
    assert worst_row(exact(logits), exact(h) @ case.values.T + exact(bias)) <= LOGITS


@emulated
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("experts", "inputs", "spec"),
    [(7, 64, None), (128, 96, affine(8, 32)), (33, 2880, affine(8, 64)), (32, 4096, None)],
)
def test_the_kernel(
    experts: int, inputs: int, spec: QuantizationSpec | None, tokens: int, dtype: mx.Dtype
) -> None:
    for order in ORDERS:
        factory = Emulator(check=True, order=order).metal_kernel
        logits, h = errors(factory, experts, inputs, tokens, spec, dtype)
        assert logits <= LOGITS
        assert h <= EXACT[dtype]


@emulated
def test_the_examples_agree_with_the_reference() -> None:
    run = op.metal(Emulator(check=True).metal_kernel)
    for arguments in op.examples(mx.float32):
        for a, b in zip(run(*arguments), op.decode_router(*arguments), strict=True):
            assert worst_row(exact(a), exact(b)) <= 2e-6
