"""Launches of a traced step: what is traced, how it is counted, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from benchmarks.kernels import launches
from benchmarks.kernels.launch_table import Count, UnknownLaunches, check_compiled, count
from benchmarks.kernels.step_graph import Tracer


def counted(function: Callable[..., Sequence[mx.array]], *inputs: mx.array) -> Count:
    tracer = Tracer()
    with tracer.open():
        return count(tracer.trace(function, *inputs))


def of(function: Callable[..., Sequence[mx.array]], *inputs: mx.array) -> dict[str, int]:
    return dict(counted(function, *inputs).launches)


def zeros(*shape: int) -> mx.array:
    """Computed before any trace, as weights are."""
    array = mx.zeros(shape)
    mx.eval(array)
    return array


HEADS = zeros(1, 6, 1, 64)  # of one token


def test_views_launch_nothing() -> None:
    def views(x: mx.array) -> Sequence[mx.array]:
        q, k = mx.split(x.reshape(1, 6, 1, 64).swapaxes(1, 2), [4], axis=2)
        return [q[:, :, 1:, None], k.squeeze(0), mx.broadcast_to(x, (3, 384)).view(mx.uint32)]

    assert of(views, mx.zeros((1, 384))) == {}


def test_elementwise_fast_and_matrix_operations_launch_once() -> None:
    norm, weight = zeros(64), zeros(96, 64)

    def work(x: mx.array) -> Sequence[mx.array]:
        h = mx.fast.rms_norm(x, norm, 1e-5)
        h = mx.softmax(h @ weight.T + 1, axis=-1)
        return [mx.argmax(h), h.sum(axis=-1)]

    once = ("RMSNorm", "Matmul", "Add", "Softmax", "ArgReduce", "Reduce")
    assert of(work, mx.zeros((1, 64))) == dict.fromkeys(once, 1)


def test_a_concatenation_copies_each_of_its_inputs() -> None:
    assert of(lambda x: [mx.concatenate([x, x + 1, x])], HEADS) == {"Add": 1, "Concatenate": 3}


@pytest.mark.parametrize(("keys", "kernels"), [(128, 1), (4095, 1), (4096, 2)])
def test_long_attention_takes_two_kernels(keys: int, kernels: int) -> None:
    buffer, sinks = zeros(2, 2, keys + 9, 64), zeros(6)

    def attend(q: mx.array) -> Sequence[mx.array]:
        k, v = mx.split(buffer[..., :keys, :], 2)
        return [mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, sinks=sinks)]

    assert of(attend, HEADS) == {"Attention": kernels}


def test_a_transposition_that_must_be_copied_is() -> None:
    x = mx.zeros((4, 6))
    assert of(lambda x: [x.T.reshape(24)], x) == {"copy for Reshape": 1}
    assert of(lambda x: [x[:1].T.reshape(6)], x) == {}
    assert of(lambda x: [x.reshape(2, 2, 6).reshape(4, 6)], x) == {}
    assert of(lambda x: [x[:, :4].reshape(2, 2, 4)], x) == {}
    assert of(lambda x: [x[:, :4].reshape(16)], x) == {"copy for Reshape": 1}


def test_a_quantized_product_wants_the_strides_of_a_matrix() -> None:
    """`expand_dims` gives an axis of one element stride 1, which MLX does not take for a row's."""
    w, scales, biases = mx.quantize(mx.zeros((8, 32, 64)), group_size=32, bits=8)
    mx.eval(w, scales, biases)

    def gathered(x: mx.array) -> Sequence[mx.array]:
        ids = mx.array([[0, 3]], mx.uint32)
        options = {"rhs_indices": ids, "group_size": 32, "bits": 8}
        return [mx.gather_qmm(x, w, scales, biases, **options)]  # type: ignore[arg-type]

    direct = of(gathered, zeros(1, 1, 1, 64))
    assert direct == {"Arange": 1, "GatherQMM": 1}
    expanded = of(lambda x: gathered(mx.expand_dims(x, (-2, -3))), mx.zeros((1, 64)))
    assert expanded == {**direct, "copy for GatherQMM": 1}


def test_an_update_is_in_place_unless_its_buffer_was_read_or_may_be() -> None:
    def fresh(x: mx.array) -> Sequence[mx.array]:
        buffer = mx.exp(x)
        buffer[:, 1:2] = 1.0
        return [buffer]

    def read(x: mx.array) -> Sequence[mx.array]:
        buffer = mx.exp(x)
        buffer[:, 1:2] = 2 * buffer[:, 1:2]
        return [buffer]

    def held(x: mx.array) -> Sequence[mx.array]:
        x[:, 1:2] = 1.0
        return [x]

    x = mx.zeros((4, 4))
    assert of(fresh, x) == {"Exp": 1, "SliceUpdate": 1}
    assert of(read, x) == {"Exp": 1, "Multiply": 1, "SliceUpdate": 1, "copy for SliceUpdate": 1}
    assert (counted(fresh, x).held, counted(read, x).held, counted(held, x).held) == (0, 0, 1)
    assert of(held, x) == {"SliceUpdate": 1}


def test_a_metal_kernel_goes_by_its_name_and_has_strided_inputs_copied() -> None:
    def run(x: mx.array) -> Sequence[mx.array]:
        kernel = mx.fast.metal_kernel(
            name="moe", input_names=["x", "y"], output_names=["out"], source="out[0] = x[0];"
        )
        shape = {"output_shapes": [(4,)], "output_dtypes": [mx.float32]}
        grid = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1)}
        return kernel(inputs=[x.T, x], **shape, **grid)  # type: ignore[operator, no-any-return]

    assert of(run, mx.zeros((4, 6))) == {"moe": 1, "copy for moe": 1}


def test_a_compiled_function_is_one_launch_if_all_of_it_fuses() -> None:
    tracer = Tracer()
    with tracer.open():
        smooth = mx.compile(lambda x, k: mx.sigmoid(k * x) * x)
        total = mx.compile(lambda x: mx.sigmoid(x).sum())
        nodes = tracer.trace(lambda x: [smooth(x, 2), total(x)], mx.zeros((4, 6)))
        assert dict(count(nodes).launches) == {"Compiled": 2}
        first, second = (tracer.inside(compiled) for compiled in list(tracer.compiled))
        check_compiled(first)
        with pytest.raises(UnknownLaunches, match=r"^Reduce in a compiled function"):
            check_compiled(second)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: [mx.cumsum(x)], "Scan"),
        (lambda x: [x @ x.T], "Matmul"),
        (lambda x: [x.sum(axis=0)], "Reduce"),
    ],
)
def test_what_the_table_does_not_say_is_refused(
    function: Callable[[mx.array], Sequence[mx.array]], named: str
) -> None:
    with pytest.raises(UnknownLaunches, match=named):
        counted(function, mx.zeros((64, 64)))


@pytest.mark.parametrize(
    ("length", "kernels"), [(32, 1), (2048, 1), (2049, 4), (4097, 6), (201088, 16)]
)
def test_sorting_by_hand(length: int, kernels: int) -> None:
    found = of(lambda x: [mx.argpartition(x, kth=-4, axis=-1)], mx.zeros((1, length)))
    assert found == {"ArgPartition": kernels}


def test_mlx_is_itself_again_afterwards() -> None:
    before = (mx.compile, mx.eval, mx.fast.rms_norm, mx.fast.metal_kernel, mx.default_device)
    counted(lambda x: [x], HEADS)
    after = (mx.compile, mx.eval, mx.fast.rms_norm, mx.fast.metal_kernel, mx.default_device)
    assert after == before


def test_a_layer_of_ours_takes_no_more_launches_than_the_goal(
    checkpoint_of: Callable[..., Path],
) -> None:
    two, four = (
        launches._spawn("gptoss_mlx", checkpoint_of(replace(launches.SHAPE, layers=layers)), 9)
        for layers in (2, 4)
    )
    assert 0 < four.launches.total() - two.launches.total() <= 2 * launches.GOAL
    assert two.launches["moe_decode_gate_up"] == two.launches["moe_decode_down"] == 2
    assert "copy" not in " ".join(four.launches)
    assert four.held == 0
    assert two.arrays == four.arrays == 1  # the table of places


def test_a_step_of_eight_sequences_takes_no_more_launches_a_layer(
    checkpoint_of: Callable[..., Path],
) -> None:
    two, four = (
        launches._spawn("gptoss_mlx", checkpoint_of(replace(launches.SHAPE, layers=n)), 9, 8)
        for n in (2, 4)
    )
    assert 0 < four.launches.total() - two.launches.total() <= 2 * launches.GOAL
    assert "copy" not in " ".join(four.launches)
    assert (two.held, four.held, two.arrays, four.arrays) == (0, 0, 1, 1)


@pytest.mark.oracle
def test_a_step_of_mlx_lm_by_hand(checkpoint_of: Callable[..., Path]) -> None:
    """Its gpt_oss.py, read line by line, for two layers and what is around them."""
    pytest.importorskip("mlx_lm")
    step = launches._spawn("mlx-lm", checkpoint_of(replace(launches.SHAPE, layers=2)), 9)
    layer = {
        "RMSNorm": 2,
        "AddMM": 5,  # q, k, v, o, router
        "Multiply": 3,  # YaRN's magnitude on q and k; the routing weights
        "RoPE": 2,
        "SliceUpdate": 2,  # keys, values
        "Attention": 1,
        "ArgPartition": 1,
        "GatherAxis": 1,
        "Softmax": 1,
        "Arange": 3,
        "GatherQMM": 3,
        "copy for GatherQMM": 2,
        "Gather": 3,  # biases of the experts
        "Add": 5,  # they, and both residuals
        "Compiled": 1,
        "Reduce": 1,
    }
    around = {"Gather": 1, "RMSNorm": 1, "Matmul": 1, "LogSumExp": 1, "Subtract": 1, "ArgReduce": 1}
    assert dict(step.launches) == {
        name: 2 * layer.get(name, 0) + around.get(name, 0) for name in {**layer, **around}
    }
