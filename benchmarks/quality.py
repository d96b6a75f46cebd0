"""What each recipe of the converter costs: how far its logits are from the unquantized ones.

Every recipe is converted for real and run by the package's own engine in float32. Compared with the
logits of the release: the mean Kullback-Leibler divergence a token (nats), the share of tokens
whose likeliest successor stays the same, and the perplexity of what comes next. The passages are
fixed: held-out conversations for the tiny model, scored where the assistant speaks, and random
tokens for a random checkpoint of the released widths, which knows no language: its perplexity says
nothing and is left out. `--explore` also quantizes one kind of module at a time, which is where the
recipe `mixed` comes from.

    python -m benchmarks.quality
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.make_checkpoint import SHAPES, Shape, config_json, write_checkpoint
from convert import destination
from convert.plan import expected_nbytes, to_mlx
from convert.sources import open_source
from gptoss_mlx.checkpoint import Checkpoint
from gptoss_mlx.config import ModelConfig
from gptoss_mlx.harmony import Encoding
from gptoss_mlx.model import open_model
from gptoss_mlx.recipe import RECIPES, Recipe, quantization
from gptoss_mlx.tiny import materialise
from tiny.conversations import MAKERS, encode, make

WIDE = Shape(layers=4, experts=8, heads=64, kv_heads=8, vocab=8192)
"""The released widths with few layers, experts and words."""

ALONE = tuple(
    Recipe(f"{kind} {bits}", **{kind: bits})  # type: ignore[arg-type]
    for kind in ("router", "attention", "embedding", "head")
    for bits in ((8,) if kind == "router" else (8, 6, 5, 4))
)


@dataclass(frozen=True)
class Passage:
    """Tokens, and the first position whose prediction counts."""

    ids: list[int]
    scored_from: int


@dataclass(frozen=True)
class Quality:
    """Means over all scored tokens; perplexity None where it would mean nothing."""

    divergence: float
    agreement: float
    perplexity: float | None


@click.command()
@click.option("--conversations", default=1, show_default=True, help="Of each skill, for tiny.")
@click.option("--explore", is_flag=True, help="Also one kind of module at a time.")
def main(conversations: int, explore: bool) -> None:
    """Measure every recipe; one JSON line last."""
    recipes = [*RECIPES.values(), *(ALONE if explore else ())]
    with tempfile.TemporaryDirectory() as work:
        wide = write_checkpoint(Path(work) / "wide", WIDE)
        models = {
            "tiny": (materialise(), list(held_out(conversations)), True),
            "random, released widths": (wide, list(random_passages(WIDE.vocab)), False),
        }
        found = {
            name: dict(measure(folder, passages, recipes, Path(work), speaks=speaks))
            for name, (folder, passages, speaks) in models.items()
        }
    sizes = {
        recipe.name: {name: nbytes(name, recipe) for name in ("20b", "120b")} for recipe in recipes
    }
    _show(found, sizes)
    print(json.dumps(_report(found, sizes, conversations)))


def held_out(count: int) -> Iterator[Passage]:
    """Conversations the tiny model never saw, the same ones everywhere."""
    encoding = Encoding()
    for kind in MAKERS:
        rng = Random(f"quality {kind}")
        for _ in range(count):
            prompt, reply = encode(encoding, make(rng, True, kind))
            yield Passage(prompt + reply, len(prompt) - 1)


def random_passages(vocab: int) -> Iterator[Passage]:
    rng = np.random.default_rng(3)
    for _ in range(4):
        yield Passage([int(id) for id in rng.integers(0, vocab, 160)], 0)


def measure(
    folder: Path, passages: list[Passage], recipes: Iterable[Recipe], work: Path, *, speaks: bool
) -> Iterator[tuple[str, Quality]]:
    """Each recipe's quality on a released checkpoint, converted into `work` in turn."""
    wanted = list(log_probabilities(folder, passages))
    yield "release", _quality(wanted, wanted, passages, speaks)
    source = open_source(folder)
    for recipe in track(list(recipes), description=folder.name, console=Console(stderr=True)):
        with tempfile.TemporaryDirectory(dir=work) as made:
            converted = Path(made) / "model"
            destination.write(source, to_mlx(source, recipe), converted, resume="")
            found = log_probabilities(converted, passages)
            yield recipe.name, _quality(wanted, found, passages, speaks)


def log_probabilities(folder: Path, passages: Iterable[Passage]) -> Iterator[NDArray[np.float32]]:
    """Of the scored positions of each passage: float32 [tokens, vocabulary], in nats."""
    with Checkpoint.open(folder) as checkpoint:
        model = open_model(checkpoint, dtype="float32")
        for passage in passages:
            hidden = model.hidden(passage.ids[:-1], model.new_state())[passage.scored_from :]
            logits = np.array(model.logits(hidden))
            logits -= logits.max(axis=-1, keepdims=True)
            total = np.exp(logits).sum(axis=-1, keepdims=True, dtype=np.float64)
            yield logits - np.log(total).astype(np.float32)


def _quality(
    wanted: list[NDArray[np.float32]],
    found: Iterable[NDArray[np.float32]],
    passages: list[Passage],
    speaks: bool,
) -> Quality:
    divergence, agreement, likelihood = [], [], []
    for p, q, passage in zip(wanted, found, passages, strict=True):
        divergence += list((np.exp(p) * (p - q)).sum(axis=-1, dtype=np.float64))
        agreement += list(p.argmax(-1) == q.argmax(-1))
        following = passage.ids[passage.scored_from + 1 :]
        likelihood += list(q[np.arange(len(following)), following])
    perplexity = math.exp(-float(np.mean(likelihood))) if speaks else None
    return Quality(float(np.mean(divergence)), float(np.mean(agreement)), perplexity)


def nbytes(shape: str, recipe: Recipe) -> int:
    """Bytes of weights of a released size under a recipe."""
    config = config_json(SHAPES[shape])
    path = Path(f"{shape}/config.json")
    section = quantization(recipe, ModelConfig.from_values(config, path))
    return expected_nbytes(config if section is None else config | {"quantization": section}, path)


def _show(found: dict[str, dict[str, Quality]], sizes: dict[str, dict[str, int]]) -> None:
    released = sizes["bf16"]
    for model, by_recipe in found.items():
        table = Table(title=model)
        for column in ("recipe", "KL, nats", "same top token", "perplexity", "20b GB", "120b GB"):
            table.add_column(column, justify="left" if column == "recipe" else "right")
        for name, quality in by_recipe.items():
            size = sizes.get(name, released)
            perplexity = "" if quality.perplexity is None else f"{quality.perplexity:.4f}"
            table.add_row(
                name,
                f"{quality.divergence:.2e}",
                f"{100 * quality.agreement:.2f} %",
                perplexity,
                f"{size['20b'] / 1e9:.2f}",
                f"{size['120b'] / 1e9:.2f}",
            )
        Console(stderr=True).print(table)


def _report(
    found: dict[str, dict[str, Quality]], sizes: dict[str, dict[str, int]], conversations: int
) -> dict[str, Any]:
    return {
        "benchmark": "quality",
        "conversations": conversations,
        "models": {
            model: {name: vars(quality) for name, quality in by_recipe.items()}
            for model, by_recipe in found.items()
        },
        "bytes": sizes,
    }


if __name__ == "__main__":
    main()
