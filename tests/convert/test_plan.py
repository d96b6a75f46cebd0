"""Plans: sizes, cuts and places of the full models, and what makes two conversions the same."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from convert.piece import Piece
from convert.plan import MLX_SHARD_BYTES, Plan, Task, to_mlx, to_release
from convert.source import Source
from convert.sources import open_source
from gptoss_mlx.files.shard import ITEM_BYTES, Tensor
from gptoss_mlx.models.checkpoint import INDEX, expected_tensors
from gptoss_mlx.spec.config import ModelConfig, QuantizationSpec
from gptoss_mlx.spec.recipe import RECIPES
from tests.convert.results import SHAPE
from tests.support.checkpoints import SHAPES, Shape, config_json

NOWHERE = Path("nowhere") / "model.safetensors"
CHUNK = 16 << 20
RELEASED_BYTES = {"20b": 13_761_264_768, "120b": 65_248_815_744}


def _source(shape: Shape) -> Source:
    """Of no files: a plan reads none."""
    config = config_json(shape)
    pieces = {}
    for name, (dtype, sizes) in expected_tensors(
        ModelConfig.from_values(config, NOWHERE), NOWHERE
    ).items():
        nbytes = prod(sizes) * ITEM_BYTES[dtype]
        pieces[name] = Piece(dtype, sizes, (Tensor(name, dtype, sizes, NOWHERE, 0, nbytes),))
    return Source("released", "model", (NOWHERE,), config, pieces, exact=True)


def _check_places(plan: Plan) -> None:
    """Every file is its head and then its outputs, without overlap, gap or rest."""
    for file in plan.files:
        outputs = [o for task in plan.tasks for o in task.outputs if o.file == file.name]
        end = len(file.head)
        for output in sorted(outputs, key=lambda output: output.offset):
            assert output.offset == end
            assert (output.offset - len(file.head)) % ITEM_BYTES[output.dtype] == 0
            end += output.nbytes
        assert end == file.nbytes
        assert len(file.head) % 8 == 0
    index = json.loads(plan.texts[INDEX])
    placed = {o.name: o.file for task in plan.tasks for o in task.outputs}
    assert index["weight_map"] == placed
    assert index["metadata"]["total_size"] == sum(task.nbytes for task in plan.tasks)


def _saved(columns: int, bits: int | None) -> int:
    """Bytes that affine quantization saves of a row: a scale and a bias for every 64."""
    return 0 if bits is None else columns * 2 - columns * bits // 8 - columns // 64 * 4


@pytest.mark.parametrize("name", ["20b", "120b"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_sizes_of_the_full_models(name: str, recipe: str) -> None:
    plan = to_mlx(_source(SHAPES[name]), RECIPES[recipe])
    _check_places(plan)
    layers, experts, bits = SHAPES[name].layers, SHAPES[name].experts, RECIPES[recipe]
    router = None if bits.router is None else 8
    saved = 201088 * (_saved(2880, bits.embedding) + _saved(2880, bits.head))
    saved += layers * (experts * _saved(2880, router) + 2880 * _saved(4096, bits.attention))
    saved += layers * (4096 + 512 + 512) * _saved(2880, bits.attention)
    assert sum(task.nbytes for task in plan.tasks) == RELEASED_BYTES[name] - saved
    assert all(file.nbytes - len(file.head) <= MLX_SHARD_BYTES for file in plan.files)
    count = len(plan.files)
    assert all(a.nbytes + b.nbytes > MLX_SHARD_BYTES for a, b in pairwise(plan.files))
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert [file.name for file in plan.files] == names


@pytest.mark.parametrize(("name", "count"), [("20b", 3), ("120b", 15)])
def test_the_release_is_cut_where_the_released_files_are(name: str, count: int) -> None:
    plan = to_release(_source(SHAPES[name]))
    _check_places(plan)
    assert [file.name for file in plan.files] == [
        f"model-{i:05d}-of-{count - 1:05d}.safetensors" for i in range(count)
    ]
    if name == "20b":
        first = [o.name for t in plan.tasks for o in t.outputs if o.file == plan.files[0].name]
        assert first[-1] == "model.layers.18.self_attn.v_proj.bias"
    assert sum(task.nbytes for task in plan.tasks) == RELEASED_BYTES[name]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    limit=st.integers(1, 600_000), recipe=st.sampled_from(list(RECIPES)), experts=st.integers(1, 5)
)
def test_any_cut_places_every_tensor_once(limit: int, recipe: str, experts: int) -> None:
    source = _source(replace(SHAPE, experts=experts, active=1))
    for plan in (to_mlx(source, RECIPES[recipe], limit), to_release(source, limit)):
        _check_places(plan)
        for file in plan.files:
            outputs = [o for task in plan.tasks for o in task.outputs if o.file == file.name]
            assert outputs
            assert file.nbytes - len(file.head) <= limit or len(outputs) == 1
        assert [file.name for file in plan.files] == sorted(file.name for file in plan.files)
    assert set(source.pieces) == {o.name for task in plan.tasks for o in task.outputs}


@pytest.mark.parametrize("recipe", RECIPES)
def test_heads_are_what_safetensors_reads(recipe: str, tmp_path: Path) -> None:
    plan = to_mlx(_source(SHAPE), RECIPES[recipe], 150_000)
    assert len(plan.files) > 1
    for file in plan.files:
        with (tmp_path / file.name).open("wb") as opened:
            opened.write(file.head)
            opened.truncate(file.nbytes)
        with safe_open(tmp_path / file.name, framework="np") as read:
            assert read.metadata() == {"format": "mlx"}
            found = {
                name: (read.get_slice(name).get_dtype(), tuple(read.get_slice(name).get_shape()))
                for name in read.offset_keys()
            }
        outputs = [o for task in plan.tasks for o in task.outputs if o.file == file.name]
        assert found == {o.name: (o.dtype, o.shape) for o in outputs}


def test_a_quantized_matrix_is_one_task_wherever_its_parts_lie() -> None:
    plan = to_mlx(_source(SHAPE), RECIPES["8"], 1)
    (task,) = [t for t in plan.tasks if t.outputs[0].name == "lm_head.weight"]
    assert task.spec == QuantizationSpec(8, 64, "affine")
    assert [o.name for o in task.outputs] == ["lm_head.weight", "lm_head.scales", "lm_head.biases"]
    assert len({o.file for o in task.outputs}) == 3
    names = [o.name for t in plan.tasks for o in t.outputs]
    assert len(set(names)) == len(names)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows=st.integers(1, 300_000), columns=st.integers(1, 1 << 25))
def test_spans_cover_all_rows_once_in_bounded_steps(rows: int, columns: int) -> None:
    task = Task(Piece("BF16", (rows, columns), ()), None, ())
    spans = list(islice(task.spans(), 2000))
    assert spans[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert all(start < stop for start, stop in spans)
    assert all((stop - start) * columns * 2 <= CHUNK or stop == start + 1 for start, stop in spans)
    assert spans[-1][1] == rows or len(spans) == 2000


@pytest.mark.parametrize("name", ["20b", "120b"])
def test_spans_of_the_full_models_are_few_and_fit_the_memory(name: str) -> None:
    for task in to_mlx(_source(SHAPES[name]), RECIPES["mixed"]).tasks:
        spans = list(task.spans())
        row = task.piece.nbytes // task.piece.shape[0]
        assert all((stop - start) * row <= max(row, CHUNK) for start, stop in spans)
        assert len(spans) <= 2 * -(-task.piece.nbytes // CHUNK) + 1


def test_what_a_conversion_is_known_by(checkpoint_of: Callable[..., Path], tmp_path: Path) -> None:
    """Recipe, target, cut and weights; neither path, name nor time."""
    release = checkpoint_of(SHAPE, shard_bytes=100_000)
    source, other = open_source(release), open_source(checkpoint_of(SHAPE, 5, 100_000))
    identities = [to_mlx(source, recipe).identity(source) for recipe in RECIPES.values()]
    identities.append(to_release(source).identity(source))
    identities.append(to_mlx(source, RECIPES["8"], 100_000).identity(source))
    identities.append(to_mlx(other, RECIPES["8"]).identity(other))
    for change in ({"recipe": "other"}, {"target": "other"}):
        identities.append(replace(to_mlx(source, RECIPES["8"]), **change).identity(source))
    assert len(set(identities)) == len(identities)
    assert all(re.fullmatch("[0-9a-f]{64}", identity) for identity in identities)
    copy = Path(shutil.copytree(release, tmp_path / "of another name"))
    for path in copy.iterdir():
        os.utime(path, ns=(0, 0))
    same = open_source(copy)
    assert to_mlx(same, RECIPES["8"]).identity(same) == identities[list(RECIPES).index("8")]
