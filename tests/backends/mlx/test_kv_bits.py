"""Keys and values in 8 bits: the arena bit for bit, the model beside the one that keeps them whole.

A key that differs in float32's last bit can fall to the next code: the same tokens in other chunks
agree to a few 1e-4, as the codes allow, and not to 1e-6. Given the same codes they do agree to 1e-5
(tests/backends/mlx/ops/test_attention_quantized.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import gptoss_mlx
from gptoss_mlx.backends.mlx.cache import GROWTH, Arena, QuantizedArena, State, kv_group
from gptoss_mlx.backends.mlx.model import Transformer
from gptoss_mlx.backends.mlx.ops.attention_quantized import Quantized
from gptoss_mlx.engine.events import FinishEvent
from gptoss_mlx.errors import ConfigError
from tests.support.checkpoints import Shape
from tests.support.comparison import argmax_agreement, fresh, opened, relative_l2, worst_row
from tests.support.numpy_gpt_oss import NumpyGptOss
from tests.support.shapes import CASES, tokens

KV_HEADS = 2
NARROW = Shape(3, 64, 64, 6, 2, 4, 2, 32, vocab=256, window=12)
WIDE = Shape(4, 128, 64, 4, 2, 8, 2, 64, vocab=256)

SLIM = Shape(2, 64, 32, 4, 2, 2, 1, 64, vocab=256)

QUANTIZED = 3e-3
"""Relative L2 of a token's logits from the unquantized model's; measured: 0.9e-3 to 1.3e-3.

That is the median token. In one of a hundred a near tie of the router goes to another expert.
"""

CHUNKED = 1e-3
"""Relative L2 of the worst token's logits in other chunks, or beside the oracle that quantizes;
measured: at most 3e-4."""


def _random(length: int, width: int, seed: int) -> mx.array:
    """[1, kv_heads, length, width]"""
    rng = np.random.default_rng(seed)
    return mx.array(rng.standard_normal((1, KV_HEADS, length, width), np.float32) * 3 + 1)


def _codes(x: mx.array) -> Quantized:
    return Quantized(*mx.quantize(x.astype(mx.float32), group_size=kv_group(x.shape[3]), bits=8))


def _assert_same(ours: Quantized, wanted: Quantized) -> None:
    for a, b in zip(ours, wanted, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))


CHUNKS = st.lists(st.one_of(st.just(1), st.integers(1, 9), st.integers(1, 300)), max_size=8)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([32, 64, 96]), st.data())
def test_the_arena_holds_what_quantizing_all_tokens_at_once_gives(
    width: int, data: st.DataObject
) -> None:
    arena, largest = QuantizedArena(8), 0
    keys, values = _random(0, width, 0), _random(0, width, 0)
    for seed, length in enumerate(data.draw(CHUNKS)):
        cut = data.draw(st.integers(0, keys.shape[2])) if data.draw(st.booleans()) else None
        k, v = _random(length, width, 2 * seed), _random(length, width, 2 * seed + 1)
        keys = mx.concatenate([keys[:, :, :cut], k], axis=2)
        values = mx.concatenate([values[:, :, :cut], v], axis=2)
        seen = arena.extend(mx.concatenate([k, v]), keys.shape[2] - length)
        _assert_same(seen.half(0), _codes(keys))
        _assert_same(seen.half(1), _codes(values))
        largest = max(largest, keys.shape[2])
        for buffer in arena.arrays():
            assert buffer.shape[2] == -(-largest // GROWTH) * GROWTH


@pytest.mark.parametrize("width", [32, 64, 128])
def test_a_value_is_off_by_at_most_a_step_of_its_group(width: int) -> None:
    group, x = kv_group(width), _random(50, width, 0)
    held = QuantizedArena(8).extend(mx.concatenate([x, x]), 0).half(0)
    kept = np.array(mx.dequantize(*held, group_size=group, bits=8)).reshape(-1, group)
    values = np.array(x).reshape(-1, group)
    step = (values.max(axis=-1) - values.min(axis=-1)) / 255
    assert (np.abs(kept - values).max(axis=-1) <= step).all()
    # Half a step is what rounding costs, evenly spread: a step / sqrt(12).
    assert np.sqrt(((kept - values) ** 2).mean()) < 1.1 * step.mean() / np.sqrt(12)


def _nbytes(arena: Arena | QuantizedArena, length: int, width: int, dtype: mx.Dtype) -> int:
    x = _random(length, width, 0).astype(dtype)
    arena.extend(mx.concatenate([x, x]), 0)
    return sum(a.nbytes for a in arena.arrays())


@pytest.mark.parametrize(("width", "ratio"), [(64, 72 / 256), (32, 40 / 128), (128, 72 / 256)])
def test_bytes_beside_the_arenas_of_float32_and_bfloat16(width: int, ratio: float) -> None:
    for length in (1, GROWTH, GROWTH + 1):
        for dtype, share in ((mx.float32, ratio), (mx.bfloat16, 2 * ratio)):
            ours = _nbytes(QuantizedArena(8), length, width, dtype)
            assert ours == share * _nbytes(Arena(), length, width, dtype)
    room = KV_HEADS * GROWTH * 2 * (64 + 4 + 4)
    assert _nbytes(QuantizedArena(8), 1, 64, mx.float32) == room


@pytest.mark.parametrize("width", [16, 48, 80])
def test_a_width_without_groups_is_refused(width: int) -> None:
    x = _random(1, width, 0)
    with pytest.raises(ValueError, match=f"head_dim is {width}; only multiples of 32"):
        QuantizedArena(8).extend(mx.concatenate([x, x]), 0)


def test_only_full_attention_is_quantized() -> None:
    state, whole = State([True, False, True], 8, kv_bits=8), State([True, False, True], 8)
    assert state.nbytes == 0
    for some in (state, whole):
        for layer in some.layers:
            layer.extend(mx.concatenate([_random(20, 64, 0), _random(20, 64, 1)]), 0)
        some.offset = 20
    rings = 2 * 2 * KV_HEADS * 8 * 64 * 4
    assert state.nbytes == rings + 2 * KV_HEADS * GROWTH * 72
    assert whole.nbytes == rings + 2 * KV_HEADS * GROWTH * 256
    assert state.snapshot().nbytes == whole.snapshot().nbytes == rings
    assert len(state.arrays()) == 2 + 3


@pytest.fixture(scope="session")
def model_of(checkpoint_of: Callable[..., Path]) -> Callable[..., Transformer]:
    """(shape, kv_bits=8, ...) -> model"""
    return cache(
        lambda shape, kv_bits=8, **options: opened(checkpoint_of(shape), kv_bits=kv_bits, **options)
    )


SHAPES = {
    "narrow": (NARROW, 80),
    "wide": (WIDE, 300),
    "one_kv_head": (CASES["one_kv_head"].shape, CASES["one_kv_head"].length),
}


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_close_to_those_of_the_unquantized_model(
    name: str, model_of: Callable[..., Transformer]
) -> None:
    shape, length = SHAPES[name]
    ids = tokens(shape.vocab, length)
    ours, whole = (fresh(model_of(shape, kv_bits=bits), ids) for bits in (8, None))
    median = np.median([relative_l2(a, b) for a, b in zip(ours, whole, strict=True)])
    assert 1e-4 < median < QUANTIZED
    assert argmax_agreement(ours, whole) > 0.97


def _kept(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is left of [tokens, kv_heads, head_dim] after 8 bits."""
    group = kv_group(values.shape[-1])
    codes, scales, biases = (np.array(a) for a in _codes(mx.array(values.astype(np.float32))[None]))
    scale, bias = (np.repeat(a[0].astype(np.float64), group, axis=-1) for a in (scales, biases))
    kept: NDArray[np.float64] = codes[0].view(np.uint8) * scale + bias
    return kept


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_forward_pass_by_hand_with_quantized_keys_and_values(
    name: str, checkpoint_of: Callable[..., Path], model_of: Callable[..., Transformer]
) -> None:
    shape, length = SHAPES[name]
    ids = tokens(shape.vocab, length)
    exact = NumpyGptOss(checkpoint_of(shape), _kept).logits(ids)
    assert worst_row(fresh(model_of(shape), ids), exact) < CHUNKED


@pytest.fixture(scope="session")
def one_pass(model_of: Callable[..., Transformer]) -> tuple[list[int], NDArray[np.float32]]:
    """300 tokens and their logits in one pass of SLIM."""
    ids = tokens(SLIM.vocab, 300)
    return ids, fresh(model_of(SLIM), ids)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.just(1), st.integers(1, 20), st.sampled_from([127, 128, 129]))))
def test_any_split_into_chunks_gives_one_pass(
    model_of: Callable[..., Transformer],
    one_pass: tuple[list[int], NDArray[np.float32]],
    splits: list[int],
) -> None:
    model, (ids, reference) = model_of(SLIM), one_pass
    state, parts = model.new_state(), []
    for count in [*splits, 300]:
        chunk = ids[state.offset : state.offset + count]
        if chunk:
            parts.append(model.evaluate(chunk, state))
    assert worst_row(np.concatenate(parts), reference) < CHUNKED


def _replay(model: Transformer, state: State, ids: list[int]) -> list[NDArray[np.float32]]:
    """Token by token, then the rest as a chunk."""
    rows = [np.array(model.decode([[token]], [state])[0]) for token in ids[:20]]
    return [*rows, *model.evaluate(ids[20:], state)]


@pytest.mark.parametrize("at", [1, 60, 128, 200])
def test_a_snapshot_replays_bit_for_bit_whatever_was_written_since(
    at: int, model_of: Callable[..., Transformer]
) -> None:
    model, ids = model_of(SLIM), tokens(SLIM.vocab, 300)
    state = model.new_state()
    model.prefill(ids[:at], state)
    snapshot = state.snapshot()
    first = _replay(model, state, ids[at : at + 60])
    for other in ([1], tokens(SLIM.vocab, 350, seed=1), tokens(SLIM.vocab, 3, seed=2)):
        snapshot.restore()
        model.prefill(other, state)
        snapshot.restore()
        again = _replay(model, state, ids[at : at + 60])
        np.testing.assert_array_equal(np.stack(again), np.stack(first))


@pytest.mark.parametrize("at", [1, 30, 64])
def test_a_trimmed_state_goes_on_bit_for_bit(at: int, model_of: Callable[..., Transformer]) -> None:
    model, ids = model_of(SLIM), tokens(SLIM.vocab, 124)
    state = model.new_state()
    model.prefill(ids[:at], state)
    first = _replay(model, state, ids[at : at + 60])
    state.trim(at)
    model.prefill(tokens(SLIM.vocab, 128 - at, seed=1), state)
    state.trim(at)
    again = _replay(model, state, ids[at : at + 60])
    np.testing.assert_array_equal(np.stack(again), np.stack(first))


def test_the_unquantized_path_is_the_default(model_of: Callable[..., Transformer]) -> None:
    state = model_of(NARROW, kv_bits=None).new_state()
    assert not any(isinstance(layer, QuantizedArena) for layer in state.layers)
    kinds = [type(layer) for layer in model_of(NARROW).new_state().layers]
    assert [kind is QuantizedArena for kind in kinds] == [False, True, False]


def test_bfloat16_runs(model_of: Callable[..., Transformer]) -> None:
    # As loose as without quantization: MLX's bfloat16 products on a CPU make most of it.
    ids = tokens(WIDE.vocab, 70)
    model = model_of(WIDE, dtype="bfloat16")
    state = model.new_state()
    ours = model.evaluate(ids, state)
    assert {str(a.dtype) for a in state.arrays()} == {
        "mlx.core.bfloat16",  # the rings
        "mlx.core.uint32",
        "mlx.core.float32",
    }
    assert relative_l2(ours, fresh(model_of(WIDE), ids)) < 0.15


def test_the_engine_counts_the_bytes(checkpoint_of: Callable[..., Path]) -> None:
    shape = Shape(2, 64, 32, 4, 2, 2, 1, 32, vocab=201088, window=16)
    engine = gptoss_mlx.load(str(checkpoint_of(shape)), kv_bits=8)
    events = engine.stream([5] * 40, raw=True, max_tokens=3, temperature=0.0)
    assert isinstance(list(events)[-1], FinishEvent)
    assert engine.stats()["kv_bytes"] == 2 * 16 * 32 * 4 + 2 * GROWTH * (32 + 4 + 4)


def test_other_bits_and_widths_are_refused(checkpoint_of: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"^kv_bits is 4, but must be 8$"):
        gptoss_mlx.load("tiny", kv_bits=4)
    folder = checkpoint_of(CASES["small"].shape)
    wanted = f"^{folder}/config.json: head_dim is 16; only multiples of 32 can be quantized$"
    with pytest.raises(ConfigError, match=wanted):
        opened(folder, kv_bits=8)


@pytest.mark.slow
def test_the_tiny_model_still_adds() -> None:
    engine: Any = gptoss_mlx.load("tiny", kv_bits=8)
    result = engine.generate("What is 27 + 58?", temperature=0.0, max_tokens=200)
    assert result.text == "27 + 58 = 85"
    assert "7+8=15" in result.reasoning
