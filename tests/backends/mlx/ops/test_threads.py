"""Every kernel with threadgroups of every size that it may be given, run by the emulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import mlx.core as mx
import pytest

from gptoss_mlx.backends.mlx.ops import decode_attention
from gptoss_mlx.backends.mlx.ops.choice import MODULES, Kernels, choose_kernels, implementations
from gptoss_mlx.backends.mlx.ops.metal import Pipeline, padded
from gptoss_mlx.backends.mlx.ops.place import Spot, places
from gptoss_mlx.backends.mlx.ops.trial import disagreement
from gptoss_mlx.backends.mlx.ops.verdicts import Verdicts
from tests.support.metal_emulator import Emulator, available

pytestmark = pytest.mark.skipif(available() is not None, reason=available() or "")

SIZES = (1024, 768, 512, 256)
EXACT = 3e-6  # relative L2 in float32


def small_heads() -> list[Any]:
    """Of attention, whose heads of 64 leave room for 256 threads: two to a key head.

    In one range, and in several.
    """
    q, sinks = mx.random.normal((4, 1, 48), key=mx.random.key(1)), mx.arange(4.0)
    arena, page = (mx.random.normal((2, 2, n, 48), key=mx.random.key(n)) for n in (1200, 64))
    (one,) = places([40], [[Spot(40, 3, 4)]])
    (many,) = places([1190], [[Spot(1190, 9, 10)]])
    return [(q, [arena], page[None], place, sinks, 0.2) for place in (one, many)]


def example(name: str, which: int) -> Any:
    return next(islice(MODULES[name].examples(mx.float32), which, None))


CALLS: dict[str, tuple[str, Callable[[], Any]]] = {
    "quantized_matvec, affine": ("quantized_matvec", lambda: example("quantized_matvec", 3)),
    "quantized_matvec, dense": ("quantized_matvec", lambda: example("quantized_matvec", 5)),
    "quantized_matvec, MXFP4": ("quantized_matvec", lambda: example("quantized_matvec", 4)),
    "decode_qkv, a page": ("decode_qkv", lambda: example("decode_qkv", 0)),
    "decode_qkv, pages": ("decode_qkv", lambda: example("decode_qkv", 1)),
    "decode_qkv": ("decode_qkv", lambda: example("decode_qkv", 2)),
    "decode_router": ("decode_router", lambda: example("decode_router", 0)),
    "moe_decode_gate_up": ("moe_gate_up", lambda: example("moe_gate_up", 0)),
    "moe_prefill_gate_up": ("moe_gate_up", lambda: example("moe_gate_up", 1)),
    "moe_decode_down": ("moe_down", lambda: example("moe_down", 1)),
    "moe_prefill_down": ("moe_down", lambda: example("moe_down", 2)),
    "decode_attention": ("decode_attention", lambda: small_heads()[0]),
    "decode_attention_merge": ("decode_attention", lambda: small_heads()[1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("threads", SIZES)
@pytest.mark.parametrize("call", CALLS)
def test_a_threadgroup_of(threads: int, call: str) -> None:
    name, arguments = CALLS[call]
    emulator = Emulator(order="random")
    kernel = MODULES[name].metal(emulator.metal_kernel, lambda pipeline, sizes: threads)
    given = arguments()
    found, expected = (_flat(run(*given)) for run in (kernel, getattr(MODULES[name], name)))
    assert disagreement(found, expected) <= EXACT
    assert {launch.name for launch in emulator.launches} >= {call.split(",")[0]}
    assert {launch.threadgroup for launch in emulator.launches} == {(threads, 1, 1)}


def test_what_gpt_oss_has_leaves_room_for_the_threads_that_its_attention_may_have() -> None:
    simdgroups = max(decode_attention.SIZES) // 32
    assert simdgroups * 8 * (64 + 2) * 4 <= 32 << 10  # bytes: values, maximum and sum of a head


@pytest.mark.parametrize("name", ["quantized_matvec", "decode_qkv", "decode_router"])
def test_any_number_of_tokens_takes_one_of_four_pipelines(name: str) -> None:
    """Those that fill one up are zeros to the kernel: what is given for them is not read."""
    asked: set[Pipeline] = set()

    def threads(pipeline: Pipeline, sizes: Sequence[int]) -> int:
        asked.add(pipeline)
        return sizes[0]

    kernel = MODULES[name].metal(Emulator(check=True).metal_kernel, threads)
    which = {"decode_qkv": 2}.get(name, 1)
    x, *others = example(name, which)
    if name == "quantized_matvec":
        others = others[:1]
    many = mx.random.normal((8, x.shape[1]), key=mx.random.key(7))
    for tokens in range(1, 9):
        found = _flat(kernel(many[:tokens], *others))
        expected = _flat(getattr(MODULES[name], name)(many[:tokens], *others))
        assert disagreement(found, expected) <= EXACT
    assert len(asked) == 4
    assert {padded(n) for n in range(1, 9)} == {1, 2, 4, 8}


def _flat(outputs: Any) -> Sequence[mx.array]:
    return [outputs] if isinstance(outputs, mx.array) else list(outputs)


@pytest.mark.parametrize("name", ["moe_gate_up", "moe_down"])
def test_a_gpu_that_refuses_large_threadgroups_gets_smaller_ones(name: str) -> None:
    """As an M1 or M2 does where a kernel takes many registers."""
    emulator = Emulator()

    def factory(**named: Any) -> Any:
        kernel = emulator.metal_kernel(**named)

        def run(**call: Any) -> list[mx.array]:
            if call["threadgroup"][0] > 448:
                raise ValueError("Thread group size is greater than the maximum allowed")
            return kernel(**call)

        return run

    kernels = choose_kernels(policy="metal", factory=factory, verdicts=Verdicts({}, None))
    for arguments in MODULES[name].examples(mx.float32):
        found, expected = (_flat(getattr(k, name)(*arguments)) for k in (kernels, Kernels()))
        assert disagreement(found, expected) <= EXACT
    assert implementations(kernels)[name] == "metal"
    sizes = {one.threadgroup[0] for one in emulator.launches if "decode" in one.name}
    assert sizes == {256 if name == "moe_gate_up" else 384}
