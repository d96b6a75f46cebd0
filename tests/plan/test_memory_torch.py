"""Plans for PyTorch: what a card and a CPU hold by arithmetic, and how the choices are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.errors import DeviceError, MemoryBudgetError
from gptoss_mlx.models.checkpoint import expected_tensors
from gptoss_mlx.plan.buffers import SNAPSHOT_BUDGET
from gptoss_mlx.plan.memory import (
    MOST_ROWS,
    SHARED_CONTEXT,
    Plan,
    device_bytes,
    make_plan,
    wired_bytes,
)
from gptoss_mlx.plan.torch_buffers import (
    CARD_HEADROOM,
    CUBLAS,
    CUDA_CONTEXT,
    buckets,
)
from gptoss_mlx.settings import Settings
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.system.machine import CARDS, Machine, card, mac
from tests.plan.test_memory import RELEASED, config_of, least_total, shapes
from tests.support.checkpoints import SHAPES, Shape, config_json

MiB, GiB = 2**20, 2**30
CARD = Machine("a card", None, None, True, "torch")
CPU = Machine("a CPU", None, None, False, "torch")
EXPERT = 13_219_200  # bytes of one, in both released models


def sizes(plan: Plan) -> dict[str, int]:
    return {buffer.name: buffer.nbytes for buffer in plan.buffers}


# What is held


def test_the_released_120b_on_a_card() -> None:
    plan = make_plan(RELEASED["120b", "bf16"], CARD, Settings(context=8192, parallel=4))
    found = sizes(plan)
    assert found["experts"] == 36 * 128 * EXPERT
    assert found["embedding"] == 201088 * 2880 * 2
    assert round(plan.of("weights", "expert biases", "embedding") / 1e9, 2) == 4.33
    assert found["keys and values"] == 4 * 8192 * 36 * 1024
    assert found["sliding layers"] == 4 * 4.5 * MiB
    assert found["snapshots"] == 4 * (SNAPSHOT_BUDGET // int(4.5 * MiB)) * 4.5 * MiB
    assert found["CUDA context"] == CUDA_CONTEXT + CUBLAS
    assert plan.total == sum(found.values())
    assert wired_bytes(plan) == 0
    assert device_bytes(plan) == plan.total - CUDA_CONTEXT - CUBLAS - CARD_HEADROOM


def test_the_host_s_memory_is_beside_the_sum() -> None:
    plan = make_plan(RELEASED["20b", "bf16"], CARD)
    assert {buffer.name for buffer in plan.host} == {"runtime", "pinned buffers"}
    assert {buffer.name for buffer in plan.host} & set(sizes(plan)) == set()
    assert make_plan(RELEASED["20b", "bf16"], CPU).host == ()
    assert make_plan(RELEASED["20b", "bf16"], mac(32)).host == ()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("recipe", ["bf16", "8", "6", "5", "4", "mixed"])
@pytest.mark.parametrize("machine", [CARD, CPU], ids=["card", "cpu"])
def test_eight_bits_stay_and_others_are_widened(machine: Machine, recipe: str, dtype: str) -> None:
    """Every matrix by itself, from its shape in the released files and its bits in the other."""
    shape = Shape(3, 64, 96, 4, 2, 4, 2, 32, vocab=512)
    config, released = config_of(shape, recipe), config_of(shape)
    width = {"bfloat16": 2, "float32": 4}[dtype]
    expected = dict.fromkeys(("weights", "embedding"), 0)
    for name, (_, dims) in expected_tensors(released, Path("x")).items():
        if ".experts." in name:
            continue
        values = dims[0] * (dims[1] if len(dims) == 2 else 1)
        spec = None
        if len(dims) == 2 and config.quantization is not None:
            spec = config.quantization.of(name.removesuffix(".weight"))
        kept = spec is not None and spec.bits == 8
        nbytes = values + 2 * values // 64 * width if kept else values * width
        expected["embedding" if "embed" in name else "weights"] += nbytes
    expected["weights"] += 32 // 2 * 4  # the rotary frequencies
    found = sizes(make_plan(config, machine, Settings(dtype=dtype)))
    assert {name: found[name] for name in expected} == expected


def test_other_formats_of_a_conversion_are_widened_too() -> None:
    values = config_json(SHAPES["20b"])
    values["quantization"] = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    plans = [
        make_plan(config, CARD, Settings(context=8192))
        for config in (ModelConfig.from_values(values, Path("x")), RELEASED["20b", "bf16"])
    ]
    assert sizes(plans[0])["weights"] == sizes(plans[1])["weights"]
    assert sizes(plans[0])["embedding"] == sizes(plans[1])["embedding"]


@given(st.integers(2, 131072), st.integers(1, MOST_ROWS), st.sampled_from([CARD, CPU]))
def test_keys_and_values_are_there_for_every_row_in_steps_of_256(
    context: int, rows: int, machine: Machine
) -> None:
    plan = make_plan(
        RELEASED["120b", "8"], machine, Settings(context=context, parallel=rows, dtype="bfloat16")
    )
    rounded = (context + 255) // 256 * 256
    assert plan.of("keys and values") == rows * rounded * 36 * 1024
    assert plan.rows == rows


@pytest.mark.parametrize(
    ("rows", "captured"), [(1, (1,)), (4, (1, 2, 4)), (6, (1, 2, 4, 8)), (32, (1, 2, 4, 8, 16, 32))]
)
def test_a_step_is_captured_for_powers_of_two_and_all_rows(
    rows: int, captured: tuple[int, ...]
) -> None:
    assert buckets(rows) == captured


# What is chosen


def test_a_card_prefers_bfloat16_and_a_cpu_float32() -> None:
    config = RELEASED["20b", "bf16"]
    assert make_plan(config, CARD).dtype == "bfloat16"
    assert make_plan(config, CPU).dtype == "float32"
    assert make_plan(config, CPU, Settings(dtype="bfloat16")).dtype == "bfloat16"


@pytest.mark.parametrize("machine", [CARD, CPU], ids=["card", "cpu"])
def test_the_embedding_is_always_resident(machine: Machine) -> None:
    least = least_total(RELEASED["20b", "8"], machine, 1024)
    plan = make_plan(RELEASED["20b", "8"], machine, Settings(memory=least, context=1024))
    assert plan.embedding == "resident"
    assert plan.of("embedding") > 0


@pytest.mark.parametrize(
    ("model", "name", "rows", "context"),
    [
        ("120b", "141GB card", 4, 131072),
        ("120b", "80GB card", 4, 65536),
        ("20b", "24GB card", 4, 65536),
        ("20b", "16GB card", 2, 32768),
    ],
)
def test_what_the_cards_hold(model: str, name: str, rows: int, context: int) -> None:
    plan = make_plan(RELEASED[model, "bf16"], CARDS[name])
    assert plan.resident
    assert (plan.rows, plan.context, plan.chunk) == (rows, context, 2048)
    assert plan.total <= (CARDS[name].limit or 0)


@pytest.mark.parametrize(("model", "name"), [("120b", "24GB card"), ("20b", "8GB card")])
def test_a_small_card_streams(model: str, name: str) -> None:
    plan = make_plan(RELEASED[model, "bf16"], CARDS[name])
    assert not plan.resident
    assert (plan.rows, plan.context) == (1, 8192)
    assert plan.slots >= 4
    layers = RELEASED[model, "bf16"].num_hidden_layers
    assert (plan.left or 0) < layers * EXPERT  # not one more would fit


def test_rows_are_as_many_as_leave_each_a_context_worth_having() -> None:
    config = RELEASED["120b", "bf16"]
    least = {
        rows: make_plan(config, CARD, Settings(context=SHARED_CONTEXT, parallel=rows)).total
        for rows in (2, 4)
    }
    for rows, total in least.items():
        plan = make_plan(config, CARD, Settings(memory=total))
        assert (plan.rows, plan.context) == (rows, SHARED_CONTEXT)
        assert make_plan(config, CARD, Settings(memory=total - 1)).rows < rows
    alone = make_plan(config, CARD, Settings(memory=least[2] - 1))
    assert (alone.rows, alone.context, alone.resident) == (1, 65536, True)


def test_an_asked_context_is_what_each_row_gets() -> None:
    config = RELEASED["120b", "bf16"]
    total = make_plan(config, CARD, Settings(context=1024, parallel=4)).total
    assert make_plan(config, CARD, Settings(memory=total, context=1024)).rows == 4
    assert make_plan(config, CARD, Settings(memory=total - 1, context=1024)).rows == 2


def test_a_cpu_plans_for_one_sequence_unless_asked() -> None:
    config = RELEASED["20b", "8"]
    assert make_plan(config, CPU).rows == 1
    assert make_plan(config, CPU, Settings(parallel=3, context=4096)).rows == 3


def test_a_smaller_chunk_comes_before_an_expert_goes() -> None:
    config = RELEASED["120b", "bf16"]
    total = make_plan(config, CARD, Settings(context=8192, parallel=1)).total
    plans = [
        make_plan(config, CARD, Settings(context=8192, memory=total - less))
        for less in range(0, 256 * MiB, 16 * MiB)
    ]
    chunks = [plan.chunk for plan in plans if plan.resident]
    assert set(chunks) == {2048, 1024, 512}
    assert chunks == sorted(chunks, reverse=True)
    streaming = [plan for plan in plans if not plan.resident]
    assert plans == [*plans[: len(chunks)], *streaming]
    assert {plan.chunk for plan in streaming} == {2048}


def test_more_rows_take_more_of_all_that_is_theirs() -> None:
    config = RELEASED["120b", "8"]
    one, many = (
        sizes(make_plan(config, CARD, Settings(context=1024, parallel=rows))) for rows in (1, 32)
    )
    assert {name for name in one if many[name] > one[name]} == {
        "keys and values",
        "sliding layers",
        "snapshots",
        "decoding",
        "CUDA graphs",
    }


# What is refused


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"embedding": "file"}, "the embedding is always in memory"),
        ({"kv_bits": 8}, "keys and values of 8 bits are MLX's alone"),
        ({"parallel": 33}, "33 sequences at a time are not within 1 to 32"),
        ({"parallel": 0}, "0 sequences at a time are not within 1 to 32"),
    ],
)
@pytest.mark.parametrize("machine", [CARD, CPU], ids=["card", "cpu"])
def test_what_pytorch_does_not_have(machine: Machine, asked: dict[str, Any], line: str) -> None:
    with pytest.raises(DeviceError, match=line):
        make_plan(RELEASED["20b", "8"], machine, Settings(**asked))


def test_sequences_at_a_time_take_their_keys_and_values_on_mlx_too() -> None:
    one, four = (
        make_plan(RELEASED["20b", "8"], mac(32), Settings(context=8192, parallel=rows))
        for rows in (1, 4)
    )
    assert (one.rows, four.rows) == (1, 4)
    for name in ("keys and values", "sliding layers", "pages", "snapshots"):
        assert four.of(name) == 4 * one.of(name) > 0
    assert four.of("weights", "experts") == one.of("weights", "experts")
    assert make_plan(RELEASED["20b", "8"], mac(32)).rows == 1


def test_a_card_too_small_is_refused_with_what_would_fit() -> None:
    with pytest.raises(MemoryBudgetError, match=r"4 of 128 .*, but there are 5\.69 GiB; .* fit"):
        make_plan(RELEASED["120b", "8"], card("a card", 6 << 10), Settings(context=131072))


# What holds of every plan

budgets = st.floats(8.8, 11).map(lambda exponent: int(10**exponent))
recipes = st.sampled_from(["bf16", "8", "mixed"])
machines = st.sampled_from([CARD, CPU])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    shapes,
    machines,
    recipes,
    budgets,
    st.none() | st.integers(2, 131072),
    st.none() | st.integers(1, 32),
)
def test_a_plan_never_exceeds_its_budget(
    shape: Shape,
    machine: Machine,
    recipe: str,
    budget: int,
    tokens: int | None,
    parallel: int | None,
) -> None:
    config = config_of(shape, recipe)
    context = tokens and min(tokens, shape.context)
    try:
        plan = make_plan(
            config, machine, Settings(memory=budget, context=context, parallel=parallel)
        )
    except MemoryBudgetError:
        return
    assert plan.total <= budget
    assert shape.active <= plan.slots <= shape.experts
    assert plan.rows == parallel or (parallel is None and plan.rows in (1, 2, 4))
    assert plan.resident or parallel is not None or plan.rows == 1
    assert plan.context == context or context is None
    assert all(buffer.nbytes >= 0 for buffer in plan.buffers)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(shapes, machines, st.lists(budgets, min_size=2, max_size=5), st.integers(2, 131072))
def test_what_kept_every_expert_does_with_more_memory_too(
    shape: Shape, machine: Machine, given_budgets: list[int], tokens: int
) -> None:
    config = config_of(replace(shape, context=131072))
    found = []
    for budget in sorted(given_budgets):
        try:
            found.append(
                make_plan(config, machine, Settings(memory=budget, context=tokens)).resident
            )
        except MemoryBudgetError:
            assert found == []
    assert found == sorted(found)
