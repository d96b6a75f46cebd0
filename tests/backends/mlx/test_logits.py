"""The model's logits against golden ones, transformers and mlx-lm, all in float32; and the two
backends against one another.

The figures the live comparisons measure are printed by
`pytest -s -m oracle tests/backends/mlx/test_logits.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.backends import open_on
from tests.support.comparison import argmax_agreement, fresh, opened, relative_l2, worst_row
from tests.support.record_logits import FILE, digest, positions, rows
from tests.support.shapes import CASES, GOLDEN, Case

LIMIT = 1e-5
"""Relative L2 of all logits. Measured: at most 1e-6, on the tiny model 3e-6."""

MLX_LM_LIMIT = 3e-6
"""mlx-lm runs the same operations in another arrangement. Measured: at most 8e-7."""

PAST_TWO_WINDOWS = [name for name, case in CASES.items() if case.length > 256]

Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def golden() -> Any:
    with np.load(FILE) as file:
        return dict(file)


@pytest.fixture(scope="session")
def folder_of(checkpoint_of: Callable[..., Path]) -> Callable[[Case], Path]:
    return lambda case: checkpoint_of(case.shape, seed=case.seed)


@pytest.fixture(scope="module")
def ours_of(folder_of: Callable[[Case], Path]) -> Callable[[str], Logits]:
    """A case's name -> our logits in one pass."""
    return cache(lambda name: fresh(opened(folder_of(CASES[name])), CASES[name].ids()))


@pytest.fixture(scope="module")
def exact_mlx_lm_of(folder_of: Callable[[Case], Path]) -> Callable[[str], Logits]:
    """A case's name -> the logits of mlx-lm with exact YaRN."""
    return cache(lambda name: _mlx_lm(folder_of(CASES[name]), CASES[name].ids(), exact=True))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_logits_of_transformers(
    name: str, golden: Any, folder_of: Callable[[Case], Path], ours_of: Callable[[str], Logits]
) -> None:
    case, ours = CASES[name], ours_of(name)
    made = digest(folder_of(case))
    assert made == golden[f"{name}/weights"], "other weights than were recorded"
    reference = golden[f"{name}/logits"]
    assert ours.shape == (case.length, case.shape.vocab)
    assert relative_l2(ours[positions(case)][:, rows(case)], reference) <= LIMIT
    np.testing.assert_array_equal(ours.argmax(axis=-1), golden[f"{name}/argmax"])


def test_golden_positions_lie_on_both_sides_of_the_windows_edge(golden: Any) -> None:
    for name in GOLDEN:
        case = CASES[name]
        window = case.shape.window
        assert {window - 1, window, window + 1} <= set(positions(case))
        shape = (len(positions(case)), len(rows(case)))
        assert golden[f"{name}/logits"].shape == shape
        assert golden[f"{name}/logits"].dtype == np.float32
    assert FILE.stat().st_size < 300_000


def _transformers(folder: Path, ids: list[int]) -> Logits:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.support import transformers_oracle

    with torch.no_grad():
        logits: Logits = transformers_oracle.load(folder)(torch.tensor([ids])).logits[0].numpy()
    return logits


def _mlx_lm(folder: Path, ids: list[int], *, exact: bool) -> Logits:
    pytest.importorskip("mlx_lm")
    from tests.support import mlx_lm_oracle

    return mlx_lm_oracle.logits(mlx_lm_oracle.load(folder, exact=exact), ids)


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_live_logits_of_transformers(
    name: str, folder_of: Callable[[Case], Path], ours_of: Callable[[str], Logits]
) -> None:
    case, ours = CASES[name], ours_of(name)
    reference = _transformers(folder_of(case), case.ids())
    print(f"\n{name}: {_figures(ours, reference)}")
    assert relative_l2(ours, reference) <= LIMIT
    assert argmax_agreement(ours, reference) == 1


@pytest.fixture(scope="module")
def pytorch_of(folder_of: Callable[[Case], Path]) -> Callable[[str], Logits]:
    """A case's name -> the logits of our model in PyTorch."""
    return cache(lambda name: fresh(open_on("torch", folder_of(CASES[name])), CASES[name].ids()))


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_pytorch_and_mlx_agree(
    name: str, ours_of: Callable[[str], Logits], pytorch_of: Callable[[str], Logits]
) -> None:
    ours, other = ours_of(name), pytorch_of(name)
    print(f"\n{name}, PyTorch against MLX: {_figures(other, ours)}")
    assert relative_l2(other, ours) <= LIMIT
    assert argmax_agreement(other, ours) == 1


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_live_logits_of_transformers_in_pytorch(
    name: str, folder_of: Callable[[Case], Path], pytorch_of: Callable[[str], Logits]
) -> None:
    case, ours = CASES[name], pytorch_of(name)
    reference = _transformers(folder_of(case), case.ids())
    print(f"\n{name}, PyTorch: {_figures(ours, reference)}")
    assert relative_l2(ours, reference) <= LIMIT
    assert argmax_agreement(ours, reference) == 1


@pytest.mark.oracle
@pytest.mark.parametrize("name", CASES)
def test_live_logits_of_mlx_lm_with_exact_yarn(
    name: str, ours_of: Callable[[str], Logits], exact_mlx_lm_of: Callable[[str], Logits]
) -> None:
    ours, reference = ours_of(name), exact_mlx_lm_of(name)
    print(f"\n{name}: {_figures(ours, reference)}")
    assert relative_l2(ours, reference) <= MLX_LM_LIMIT
    assert argmax_agreement(ours, reference) == 1


@pytest.mark.oracle
@pytest.mark.parametrize("name", PAST_TWO_WINDOWS)
def test_mlx_lm_as_it_is_differs_by_its_rounded_yarn(
    name: str, folder_of: Callable[[Case], Path], exact_mlx_lm_of: Callable[[str], Logits]
) -> None:
    # The error grows with the distance of tokens, so only past a few hundred is it plain.
    case, exact = CASES[name], exact_mlx_lm_of(name)
    rounded = _mlx_lm(folder_of(case), case.ids(), exact=False)
    print(f"\n{name}: {_figures(rounded, exact)}")
    assert relative_l2(rounded, exact) > 1e-2


@pytest.fixture(scope="module")
def tiny() -> Path:
    """The folder of the tiny model."""
    from gptoss_mlx.models.hub import locate

    return locate("tiny")


def _tiny_prompt(folder: Path) -> list[int]:
    """A Harmony prompt, then 200 tokens among those the tiny model knows."""
    from gptoss_mlx.harmony import Encoding, render
    from tests.support.released_tensors import raw_tensors

    messages = [{"role": "user", "content": "What is 17 + 25?"}]
    prompt = render(Encoding(), messages, date="2025-08-05")
    _, table = raw_tensors(folder)["model.embed_tokens.weight"]
    known = np.flatnonzero((table & 0x7FFF).any(axis=-1))
    return [*prompt, *map(int, np.random.default_rng(0).choice(known, 200))]


@pytest.fixture(scope="module")
def tiny_logits(tiny: Path) -> tuple[list[int], Logits]:
    ids = _tiny_prompt(tiny)
    return ids, fresh(opened(tiny), ids)


@pytest.mark.oracle
@pytest.mark.slow
def test_tiny_against_transformers(tiny: Path, tiny_logits: tuple[list[int], Logits]) -> None:
    ids, ours = tiny_logits
    reference = _transformers(tiny, ids)
    print(f"\ntiny: {_figures(ours, reference)}")
    assert relative_l2(ours, reference) <= LIMIT
    assert argmax_agreement(ours, reference) == 1


@pytest.mark.torch
@pytest.mark.slow
def test_tiny_in_pytorch_is_that_in_mlx(tiny: Path, tiny_logits: tuple[list[int], Logits]) -> None:
    ids, ours = tiny_logits
    other = fresh(open_on("torch", tiny), ids)
    print(f"\ntiny, PyTorch against MLX: {_figures(other, ours)}")
    assert relative_l2(other, ours) <= LIMIT
    assert argmax_agreement(other, ours) == 1


@pytest.mark.oracle
@pytest.mark.slow
def test_tiny_against_mlx_lm_with_exact_yarn(
    tiny: Path, tiny_logits: tuple[list[int], Logits]
) -> None:
    ids, ours = tiny_logits
    reference = _mlx_lm(tiny, ids, exact=True)
    print(f"\ntiny: {_figures(ours, reference)}")
    assert relative_l2(ours, reference) <= LIMIT
    assert argmax_agreement(ours, reference) == 1


def _figures(ours: Any, reference: Any) -> str:
    return (
        f"relative L2 {relative_l2(ours, reference):.1e},"
        f" worst token {worst_row(ours, reference):.1e},"
        f" argmax {argmax_agreement(ours, reference):.2%}"
    )
