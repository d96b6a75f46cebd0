"""The plan: its sums are the bytes that are really held, and its choices keep every promise."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.errors import ContextError, MemoryBudgetError
from gptoss_mlx.plan.buffers import GROWTH, HEADROOM, RUNTIME, SCORES_BYTES, least_slots
from gptoss_mlx.plan.memory import CHUNKS, STORE, Plan, device_bytes, make_plan, wired_bytes
from gptoss_mlx.settings import Settings
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.recipe import RECIPES, quantization
from gptoss_mlx.system.machine import MACHINES, Machine, mac
from gptoss_mlx.system.units import show_bytes
from tests.conftest import SMALL
from tests.support.checkpoints import SHAPES, Shape, config_json
from tests.support.quantized import write_quantized
from tests.support.shapes import CASES, tokens

PATH = Path("config.json")
MiB, GiB = 2**20, 2**30
GPU = Machine("a GPU", None, None, True)
CPU = Machine("a CPU", None, None, False)


def config_of(shape: Shape, recipe: str = "bf16") -> ModelConfig:
    values = config_json(shape)
    section = quantization(RECIPES[recipe], ModelConfig.from_values(values, PATH))
    return ModelConfig.from_values({**values, "quantization": section}, PATH)


RELEASED = {
    (name, recipe): config_of(SHAPES[name], recipe)
    for name in ("20b", "120b")
    for recipe in ("bf16", "8", "mixed")
}
EIGHT = {"group_size": 32, "bits": 8, "mode": "affine"}
MIXED = {
    "group_size": 32,
    "bits": 4,
    "mode": "mxfp4",
    "lm_head": {"group_size": 64, "bits": 6, "mode": "affine"},
    "model.layers.0.mlp.router": False,
    "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
}


def sizes(plan: Plan) -> dict[str, int]:
    return {buffer.name: buffer.nbytes for buffer in plan.buffers}


# What is planned is what is held


@pytest.mark.parametrize("embedding", ["file", "resident"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", [None, EIGHT, MIXED], ids=["bf16", "eight", "mixed"])
def test_weights_are_byte_for_byte_what_mlx_holds(
    small_checkpoint: Path,
    tmp_path: Path,
    dtype: str,
    embedding: str,
    quantization: dict[str, Any] | None,
) -> None:
    folder = small_checkpoint
    if quantization is not None:
        folder = write_quantized(small_checkpoint, tmp_path / "quantized", quantization)
    assert held(folder, dtype, embedding) == planned(folder, dtype, embedding)


@pytest.mark.parametrize("name", ["small", "one_kv_head", "odd_window", "wide"])
def test_weights_of_other_shapes(name: str, checkpoint_of: Callable[..., Path]) -> None:
    folder = checkpoint_of(CASES[name].shape, CASES[name].seed)
    assert held(folder, "float32", "file") == planned(folder, "float32", "file")


def planned(folder: Path, dtype: str, embedding: str) -> int:
    config = ModelConfig.from_file(folder / "config.json")
    plan = make_plan(config, CPU, Settings(dtype=dtype, embedding=embedding))
    return plan.of("weights", "expert biases", "experts", "embedding")


def held(folder: Path, dtype: str, embedding: str) -> int:
    """Bytes MLX holds for an open model."""
    import mlx.core as mx

    from gptoss_mlx.backends.mlx.model import open_model
    from gptoss_mlx.models.checkpoint import Checkpoint

    mx.clear_cache()  # what is used again may be larger than what is asked for
    before = mx.get_active_memory()
    model = open_model(Checkpoint.open(folder), dtype=dtype, embedding=embedding)
    mx.synchronize()
    after = mx.get_active_memory()
    assert model.chunk > 0
    return int(after - before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("context", [3, 256, 257, 700])
def test_keys_and_values_are_what_a_full_context_holds(
    checkpoint_of: Callable[..., Path], context: int, dtype: str
) -> None:
    from gptoss_mlx.backends.mlx.model import open_model
    from gptoss_mlx.models.checkpoint import Checkpoint

    shape = CASES["narrow_window"].shape
    checkpoint = Checkpoint.open(checkpoint_of(shape, 11))
    model = open_model(checkpoint, dtype=dtype)
    state = model.new_state()
    for start in range(0, context, 100):
        model.prefill(tokens(shape.vocab, min(100, context - start)), state)
    plan = make_plan(checkpoint.config, CPU, Settings(context=context, dtype=dtype))
    assert state.nbytes == plan.of("keys and values", "sliding layers")


def test_the_released_sizes() -> None:
    """DESIGN's figures, from the released shapes."""
    plan = make_plan(RELEASED["20b", "bf16"], GPU, Settings(context=8192, embedding="resident"))
    found = sizes(plan)
    assert found["experts"] == 24 * 32 * 13_219_200
    assert found["keys and values"] == 8192 * 24 * 1024
    assert found["sliding layers"] == 3 * MiB
    assert found["embedding"] == 201088 * 2880 * 2
    assert round(plan.of("weights", "expert biases", "embedding") / 1e9, 2) == 3.61
    large = make_plan(RELEASED["120b", "8"], GPU, Settings(context=8192, embedding="resident"))
    assert sizes(large)["keys and values"] == 8192 * 36 * 1024
    assert sizes(large)["sliding layers"] == 4.5 * MiB
    assert round(sizes(large)["experts"] / 1e9, 2) == 60.91


def test_float32_widens_what_is_not_quantized() -> None:
    wide, narrow = (
        sizes(make_plan(RELEASED["20b", "bf16"], CPU, Settings(context=1024, dtype=dtype)))
        for dtype in ("float32", "bfloat16")
    )
    frequencies = 32 * 4
    assert wide["weights"] - frequencies == 2 * (narrow["weights"] - frequencies)
    assert wide["experts"] == narrow["experts"]
    assert wide["keys and values"] == 2 * narrow["keys and values"]


def test_eight_bit_keys_and_values_take_little_more_than_half() -> None:
    plain = make_plan(RELEASED["20b", "8"], GPU, Settings(context=32768))
    small = make_plan(RELEASED["20b", "8"], GPU, Settings(context=32768, kv_bits=8))
    # 64 values: 64 bytes, a scale and a bias of 4 bytes each, instead of 128
    assert small.of("keys and values") * 128 == plain.of("keys and values") * 72
    assert small.of("sliding layers") == plain.of("sliding layers")


def test_a_plan_says_what_it_is_for() -> None:
    plan = make_plan(RELEASED["20b", "8"], mac(16), Settings(context=4096))
    assert plan.total == sum(sizes(plan).values())
    assert plan.left == mac(16).budget - plan.total  # type: ignore[operator]
    assert device_bytes(plan) == plan.total - RUNTIME - HEADROOM
    assert wired_bytes(plan) == plan.of(
        "weights", "expert biases", "experts", "embedding", "keys and values", "sliding layers"
    )
    assert wired_bytes(make_plan(RELEASED["20b", "8"], CPU, Settings(context=4096))) == 0


# What is chosen


def test_without_a_limit_everything_is_resident() -> None:
    plan = make_plan(RELEASED["120b", "bf16"], GPU)
    assert plan.resident
    assert plan.budget is None
    assert plan.left is None
    assert (plan.context, plan.chunk) == (131072, CHUNKS[0])
    assert plan.embedding == "resident"


@pytest.mark.parametrize(
    ("memory", "context", "resident"),
    [(8, 8192, False), (16, 8192, False), (18, 8192, False), (24, 131072, True)],
)
def test_the_context_is_the_longest_that_keeps_all_experts(
    memory: int, context: int, resident: bool
) -> None:
    plan = make_plan(RELEASED["20b", "8"], mac(memory))
    assert (plan.context, plan.resident) == (context, resident)
    if resident and context < 131072:
        assert not make_plan(
            RELEASED["20b", "8"], mac(memory), Settings(context=2 * context)
        ).resident


def test_where_not_even_8192_tokens_fit_fewer_are_planned() -> None:
    config = RELEASED["20b", "8"]
    least = least_total(config, GPU, 4096)
    plan = make_plan(config, GPU, Settings(memory=least))
    assert (plan.context, plan.slots, plan.chunk, plan.total) == (4096, 4, 64, least)


def test_the_embedding_is_resident_only_on_a_gpu_with_room_or_if_asked() -> None:
    config = RELEASED["20b", "bf16"]
    room = make_plan(config, GPU, Settings(context=8192, embedding="resident")).total
    assert make_plan(config, GPU, Settings(memory=room, context=8192)).embedding == "resident"
    assert make_plan(config, GPU, Settings(memory=room - 1, context=8192)).embedding == "file"
    assert make_plan(config, CPU, Settings(context=8192)).embedding == "file"
    assert make_plan(config, GPU, Settings(context=8192, embedding="file")).embedding == "file"
    asked = make_plan(config, GPU, Settings(memory=room - 1, context=8192, embedding="resident"))
    assert asked.embedding == "resident"
    assert sizes(asked)["embedding"] == 201088 * 2880 * 2


@pytest.mark.parametrize("machine", [GPU, CPU], ids=["gpu", "cpu"])
def test_the_chunk_is_the_same_at_any_budget_that_allows_it(machine: Machine) -> None:
    config = RELEASED["20b", "8"]
    roomy = make_plan(config, machine, Settings(context=8192, embedding="file"))
    slot = config.num_hidden_layers * 13_219_200
    for slots in range(4, 32):
        budget = roomy.total - (32 - slots) * slot
        plan = make_plan(config, machine, Settings(memory=budget, context=8192))
        assert slots <= plan.slots < 32
        assert plan.chunk == roomy.chunk


def test_where_nothing_else_fits_the_chunk_is_smaller() -> None:
    config = RELEASED["20b", "8"]
    plan = make_plan(config, GPU, Settings(memory=least_total(config, GPU, 8192), context=8192))
    assert (plan.slots, plan.chunk) == (4, 64)


def test_with_less_room_mlx_keeps_fewer_freed_buffers_before_an_expert_goes() -> None:
    config = RELEASED["20b", "8"]
    roomy = make_plan(config, GPU, Settings(context=8192, embedding="file"))
    plan = make_plan(config, GPU, Settings(memory=roomy.total - 100 * MiB, context=8192))
    assert plan.resident
    assert plan.cache_limit < roomy.cache_limit


def test_on_a_cpu_a_chunk_is_halved_where_that_saves_much() -> None:
    """Its attention's scores, [64 heads, chunk, 8192] twice, are larger than slots there."""
    config = RELEASED["20b", "8"]
    plan = make_plan(config, CPU, Settings(memory=6 * GiB, context=8192))
    assert plan.chunk == 128
    assert make_plan(config, CPU, Settings(memory=6 * GiB, context=1024)).chunk == 512


def test_more_is_not_asked_of_a_machine_than_it_has() -> None:
    with pytest.raises(MemoryBudgetError, match=r"17\.00 GiB .* 16GB Mac has 16\.00 GiB"):
        make_plan(RELEASED["20b", "8"], mac(16), Settings(memory=17 * GiB))
    plan = make_plan(
        RELEASED["20b", "8"], mac(16), Settings(memory=15 * GiB)
    )  # the limit can be raised
    assert plan.resident


@pytest.mark.parametrize("context", [0, 1, 131073])
def test_a_context_the_model_does_not_have(context: int) -> None:
    with pytest.raises(ContextError, match=f"{context} tokens is not within 2 to"):
        make_plan(RELEASED["20b", "8"], GPU, Settings(context=context))


# What is refused


def least_total(config: ModelConfig, machine: Machine, context: int) -> int:
    """The smallest budget that is enough, found by halving."""
    low, high = 0, 1 << 40
    while high - low > 1:
        middle = (low + high) // 2
        try:
            make_plan(config, machine, Settings(memory=middle, context=context))
            high = middle
        except MemoryBudgetError:
            low = middle
    return high


def test_a_refusal_names_the_sum_its_parts_and_the_longest_context_that_fits() -> None:
    config = RELEASED["20b", "bf16"]
    with pytest.raises(MemoryBudgetError) as caught:
        make_plan(config, GPU, Settings(memory=5 * GiB, context=131072))
    line = str(caught.value)
    assert "\n" not in line
    assert show_bytes(least_total(config, GPU, 131072)) in line
    assert "weights 2.27 GiB" in line
    assert "4 of 32 experts" in line
    assert "5.00 GiB" in line
    fitting = int(line.split("; ")[1].split()[0])
    assert make_plan(config, GPU, Settings(memory=5 * GiB, context=fitting)).slots == 4
    with pytest.raises(MemoryBudgetError):
        make_plan(config, GPU, Settings(memory=5 * GiB, context=fitting + GROWTH))


def test_the_longest_context_that_fits_is_found_for_any_context_at_once() -> None:
    """One after another there would be four million to try."""
    config = replace(RELEASED["20b", "bf16"], max_position_embeddings=1 << 30)
    lines = []
    begun = time.process_time()
    for context in (1 << 17, 1 << 30):
        with pytest.raises(MemoryBudgetError, match=f"a context of {context} tokens") as caught:
            make_plan(config, GPU, Settings(memory=5 * GiB, context=context))
        lines.append(str(caught.value).split("; ")[1])
    assert lines[0] == lines[1]
    assert time.process_time() - begun < 5


def test_a_refusal_of_everything_says_what_the_least_takes() -> None:
    config = RELEASED["120b", "8"]
    needed = show_bytes(least_total(config, GPU, 1024))
    with pytest.raises(MemoryBudgetError, match=f"1024 tokens take {needed}"):
        make_plan(config, GPU, Settings(memory=2 * GiB, context=4096))
    with pytest.raises(MemoryBudgetError, match=f"1024 tokens with 4 of 128 .* takes {needed}"):
        make_plan(config, GPU, Settings(memory=2 * GiB))


# What holds of every plan

shapes = st.builds(
    Shape,
    layers=st.integers(1, 40),
    hidden=st.integers(1, 100).map(lambda n: 32 * n),
    intermediate=st.integers(1, 100).map(lambda n: 32 * n),
    experts=st.integers(4, 128),
    active=st.integers(1, 4),
    heads=st.sampled_from([4, 16, 64]),
    kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([32, 64, 128]),
    vocab=st.sampled_from([1000, 201088]),
    window=st.sampled_from([1, 128, 1024]),
    context=st.sampled_from([100, 4096, 131072]),
)
machines = st.sampled_from([GPU, CPU])
recipes = st.sampled_from(["bf16", "8", "mixed"])
budgets = st.floats(7, 11).map(lambda exponent: int(10**exponent))


def test_the_prefix_store_takes_half_of_what_is_left_at_most() -> None:
    """So the choices are those without one, and a model that fitted still fits."""
    config = RELEASED["20b", "8"]
    for machine in MACHINES.values():
        none = make_plan(config, machine, Settings(cache=0))
        plan = make_plan(config, machine)
        assert (none.store, plan.store) == (0, min(STORE, (none.left or 0) // 2))
        assert replace(plan, buffers=none.buffers, store=0) == none
        assert plan.of("prefix store") == plan.store == plan.total - none.total
    assert make_plan(config, GPU).store == 0  # nobody knows what is left


def test_a_prefix_store_that_is_asked_for_is_planned_like_the_rest() -> None:
    config = RELEASED["20b", "8"]
    none = make_plan(config, GPU, Settings(context=8192, cache=0))
    exact = none.total + GiB
    asked = make_plan(config, GPU, Settings(context=8192, cache=GiB, memory=exact))
    assert (asked.store, asked.total, asked.slots) == (GiB, exact, 32)
    fewer = make_plan(config, GPU, Settings(context=8192, cache=GiB, memory=exact - 2 * GiB))
    assert fewer.store == GiB
    assert fewer.slots < 32
    assert fewer.total <= exact - 2 * GiB
    with pytest.raises(MemoryBudgetError, match=r"prefix store 1\.00 GiB|the rest"):
        make_plan(config, GPU, Settings(context=8192, cache=GiB, memory=3 * GiB))


@settings(max_examples=200, deadline=None)
@given(shapes, machines, recipes, budgets, st.integers(2, 131072), st.booleans())
def test_a_plan_never_exceeds_its_budget(
    shape: Shape, machine: Machine, recipe: str, budget: int, tokens: int, asked: bool
) -> None:
    config = config_of(shape, recipe)
    context = min(tokens, shape.context) if asked else None
    try:
        plan = make_plan(config, machine, Settings(memory=budget, context=context))
    except MemoryBudgetError as error:
        refusal = str(error)
        assert show_bytes(budget) in refusal
        return
    assert plan.total <= budget
    assert shape.active <= plan.slots <= shape.experts
    assert plan.chunk in CHUNKS
    assert 1 < plan.context <= shape.context
    assert plan.context == context or context is None
    assert all(buffer.nbytes >= 0 for buffer in plan.buffers)


@settings(max_examples=200, deadline=None)
@given(shapes, machines, st.lists(budgets, min_size=2, max_size=6), st.integers(2, 131072))
def test_more_memory_never_gives_fewer_slots_with_the_same_chunk(
    shape: Shape, machine: Machine, given_budgets: list[int], tokens: int
) -> None:
    config, context = config_of(shape), min(tokens, shape.context)
    found = []
    for budget in sorted(given_budgets):
        try:
            plan = make_plan(config, machine, Settings(memory=budget, context=context))
        except MemoryBudgetError:
            assert found == []
            continue
        found.append((plan.chunk, plan.slots))
    assert found == sorted(found)


@settings(max_examples=100, deadline=None)
@given(shapes, machines, budgets, st.lists(st.integers(2, 131072), min_size=2, max_size=5))
def test_a_shorter_context_fits_where_a_longer_one_does(
    shape: Shape, machine: Machine, budget: int, contexts: list[int]
) -> None:
    config = config_of(replace(shape, context=131072))
    fits = []
    for context in sorted(contexts):
        try:
            make_plan(config, machine, Settings(memory=budget, context=context))
            fits.append(True)
        except MemoryBudgetError:
            fits.append(False)
    assert fits == sorted(fits, reverse=True)


@given(shapes, machines, st.lists(st.integers(2, 131072), min_size=2, max_size=5))
def test_every_buffer_but_one_grows_with_the_context(
    shape: Shape, machine: Machine, contexts: list[int]
) -> None:
    config = config_of(replace(shape, context=131072))
    plans = [make_plan(config, machine, Settings(context=context)) for context in sorted(contexts)]
    for name in sizes(plans[0]).keys() - {"scratch"}:  # of which a smaller chunk takes less
        found = [sizes(plan)[name] for plan in plans]
        assert found == sorted(found)


def test_small_has_everything_it_needs() -> None:
    """The tests' own model fits wherever the process itself does."""
    config = config_of(SMALL)
    assert make_plan(config, CPU, Settings(memory=300 * MiB, context=4096)).resident


def test_all_macs_have_a_plan_for_the_converted_20b() -> None:
    for machine in MACHINES.values():
        plan = make_plan(RELEASED["20b", "mixed"], machine)
        assert plan.total <= (machine.limit or 0)
        assert json.dumps(sizes(plan))


def test_scores_over_quantized_keys_come_in_blocks() -> None:
    config = RELEASED["20b", "8"]
    plain = make_plan(config, CPU, Settings(context=131072))
    small = make_plan(config, CPU, Settings(context=131072, kv_bits=8))
    assert small.of("scratch") * 2 < plain.of("scratch")
    assert small.of("scratch") >= 3 * SCORES_BYTES


def test_a_token_of_one_expert_still_needs_two_slots() -> None:
    config = config_of(Shape(2, 64, 64, 8, 1, 4, 2, 32, vocab=512))
    assert least_slots(config) == 2
    assert least_slots(RELEASED["20b", "8"]) == 4
    everything = make_plan(config, CPU, Settings(context=512)).total
    slot = make_plan(config, CPU, Settings(context=512)).of("experts") // 8
    plans = [
        make_plan(config, CPU, Settings(context=512, memory=everything - n * slot)) for n in (1, 6)
    ]
    assert [plan.slots for plan in plans] == [7, 2]
    with pytest.raises(MemoryBudgetError, match="with 2 of 8 experts a layer"):
        make_plan(config, CPU, Settings(context=512, memory=everything - 8 * slot - (64 << 20)))
