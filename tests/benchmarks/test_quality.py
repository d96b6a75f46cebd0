"""The benchmark of quality: distances that are zero where nothing was changed, and sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import (
    ALONE,
    KV,
    TEXT,
    WIDE,
    Passage,
    chosen,
    held_out,
    log_probabilities,
    long_passage,
    measure,
    nbytes,
    plain_text,
)
from gptoss_mlx.harmony import Encoding
from gptoss_mlx.spec.recipe import RECIPES, Recipe
from tests.support.checkpoints import Shape

SHAPE = Shape(2, 128, 64, 4, 2, 4, 2, 32, vocab=256)


@pytest.fixture
def passage() -> Passage:
    rng = np.random.default_rng(0)
    return Passage([int(id) for id in rng.integers(0, SHAPE.vocab, 40)], 10)


def test_nothing_changes_in_bf16_and_more_with_fewer_bits(
    checkpoint_of: Callable[..., Path], passage: Passage, tmp_path: Path
) -> None:
    recipes = [RECIPES["bf16"], Recipe("head 8", head=8), Recipe("head 4", head=4)]
    found = dict(measure(checkpoint_of(SHAPE), [passage], recipes, tmp_path, speaks=True))
    release, bf16, eight, four = found.values()
    assert bf16 == release
    assert (bf16.divergence, bf16.agreement) == (0.0, 1.0)
    assert 0 < eight.divergence < four.divergence / 20
    assert release.perplexity is not None
    assert release.perplexity > 1
    assert list(tmp_path.iterdir()) == []


def test_the_cache_in_eight_bits_is_the_last_row(
    checkpoint_of: Callable[..., Path], passage: Passage, tmp_path: Path
) -> None:
    found = dict(measure(checkpoint_of(SHAPE), [passage], [], tmp_path, speaks=True, kv=True))
    assert list(found) == ["release", KV]
    assert 0 < found[KV].divergence < 0.02
    assert found[KV].perplexity != found["release"].perplexity


def test_only_the_rows_asked_for_are_measured() -> None:
    assert chosen(False, ()) == (list(RECIPES.values()), True)
    assert chosen(True, ()) == ([*RECIPES.values(), *ALONE], True)
    assert chosen(True, (KV,)) == ([], True)
    assert chosen(False, ("mixed", "head 4")) == (
        [RECIPES["mixed"], *(r for r in ALONE if r.name == "head 4")],
        False,
    )


def test_the_long_passage_is_scored_where_much_is_held() -> None:
    passage = long_passage(256)
    assert passage == long_passage(256)
    assert len(passage.ids) // 2 == passage.scored_from > WIDE.window


def test_probabilities_of_scored_positions_sum_to_one(
    checkpoint_of: Callable[..., Path], passage: Passage
) -> None:
    (found,) = log_probabilities(checkpoint_of(SHAPE), [passage])
    assert found.shape == (len(passage.ids) - 1 - passage.scored_from, SHAPE.vocab)
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(-1), 1, rtol=1e-5)


def test_the_plain_text_is_read_whole() -> None:
    passage = plain_text()
    assert Encoding().decode(passage.ids) == TEXT
    assert passage.scored_from == 0


def test_conversations_are_the_same_every_time() -> None:
    assert list(held_out(1)) == list(held_out(1))
    assert all(0 < p.scored_from < len(p.ids) for p in held_out(1))


@pytest.mark.parametrize(
    ("shape", "bits", "rest"),
    [("20b", "bf16", 3.59), ("120b", "bf16", 4.34), ("20b", "8", 1.91), ("20b", "4", 1.01)],
)
def test_sizes_of_the_released_models(shape: str, bits: str, rest: float) -> None:
    experts = {"20b": 10.15, "120b": 60.91}[shape]
    assert nbytes(shape, RECIPES[bits]) / 1e9 == pytest.approx(experts + rest, abs=0.03)
