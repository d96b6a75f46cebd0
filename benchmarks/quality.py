"""What each recipe of the converter costs: how far its logits are from the unquantized ones.

Every recipe is converted for real and run by the package's own engine in float32. Compared with the
logits of the release: the mean Kullback-Leibler divergence a token (nats), the share of tokens
whose likeliest successor stays the same, and the perplexity of what comes next. The passages are
fixed. The tiny model reads held-out conversations, scored where the assistant speaks, and a plain
text, of which it understands nothing: so its choices there are close ones. A random checkpoint of
the released widths reads random tokens. Where a model knows nothing, perplexity is left out.
`--explore` also quantizes one kind of module at a time, which is where the recipe `mixed` comes
from.
The row "kv 8 bits" is the release with keys and values of full-attention layers in 8 bits; it is
also measured on one longer passage, so that the cache holds something.

    python -m benchmarks.quality
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Collection, Iterable, Iterator
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

from convert import destination
from convert.plan import expected_nbytes, to_mlx
from convert.sources import open_source
from convert.tiny.conversations import MAKERS, encode, make
from gptoss_mlx.backends.mlx.model import open_model
from gptoss_mlx.harmony import Encoding
from gptoss_mlx.models.checkpoint import Checkpoint
from gptoss_mlx.models.tiny import materialise
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.recipe import RECIPES, Recipe, quantization
from tests.support.checkpoints import SHAPES, Shape, config_json, write_checkpoint

WIDE = Shape(layers=2, experts=8, heads=64, kv_heads=8, vocab=8192)
"""The released widths with few layers, experts and words."""

TEXT = """A model of language is a long list of numbers. To make it small, one writes each number
with fewer digits; to keep it wise, one asks which digits it can spare. Most of the numbers lie in
the experts, and those were trained with four bits: they stay as they are. What is left are the
matrices of attention, the table in which every word has its row, and the one that turns thoughts
into words again. A row of the table is read for each word that is heard; the last matrix is read
as a whole for each word that is said. So the first costs room on the disk, the second costs time.
We measured what happens to the answers when either is made coarser, and chose by what we saw."""

LONG = 512  # tokens of the longer passage

ALONE = tuple(
    Recipe(f"{kind} {bits}", **{kind: bits})  # type: ignore[arg-type]
    for kind in ("router", "attention", "embedding", "head")
    for bits in ((8,) if kind == "router" else (8, 6, 5, 4))
)

KV = "kv 8 bits"
"""Not a recipe: the release, run with kv_bits=8."""


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
@click.option(
    "--only",
    type=click.Choice([*RECIPES, *(recipe.name for recipe in ALONE), KV]),
    multiple=True,
    help="Only this row beside the release; may be given several times.",
)
def main(conversations: int, explore: bool, only: tuple[str, ...]) -> None:
    """Measure every recipe; one JSON line last."""
    recipes, kv = chosen(explore, only)
    with tempfile.TemporaryDirectory() as work:
        wide = write_checkpoint(Path(work) / "wide", WIDE)
        models = {
            "tiny": (materialise(), list(held_out(conversations)), True),
            "tiny, plain text": (materialise(), [plain_text()], False),
            "random, released widths": (wide, list(random_passages(WIDE.vocab)), False),
        }
        found = {
            name: dict(measure(folder, passages, recipes, Path(work), speaks=speaks, kv=kv))
            for name, (folder, passages, speaks) in models.items()
        }
        if kv:
            passages = [long_passage(WIDE.vocab)]
            rows = measure(wide, passages, [], Path(work), speaks=False, kv=True)
            found[f"random, released widths, {LONG} tokens"] = dict(rows)
    sizes = {
        recipe.name: {name: nbytes(name, recipe) for name in ("20b", "120b")}
        for recipe in dict.fromkeys([RECIPES["bf16"], *recipes])
    }
    _show(found, sizes)
    print(json.dumps(_report(found, sizes, conversations)))


def chosen(explore: bool, only: Collection[str]) -> tuple[list[Recipe], bool]:
    """The recipes to measure, and whether the cache in 8 bits is."""
    if only:
        return [r for r in (*RECIPES.values(), *ALONE) if r.name in only], KV in only
    return [*RECIPES.values(), *(ALONE if explore else ())], True


def held_out(count: int) -> Iterator[Passage]:
    """Conversations the tiny model never saw, the same ones everywhere."""
    encoding = Encoding()
    for kind in MAKERS:
        rng = Random(f"quality {kind}")
        for _ in range(count):
            prompt, reply = encode(encoding, make(rng, True, kind))
            yield Passage(prompt + reply, len(prompt) - 1)


def plain_text() -> Passage:
    return Passage(Encoding().encode(TEXT), 0)


def random_passages(vocab: int) -> Iterator[Passage]:
    rng = np.random.default_rng(3)
    for _ in range(2):
        yield Passage([int(id) for id in rng.integers(0, vocab, 96)], 0)


def long_passage(vocab: int) -> Passage:
    """Random tokens, of which the last half is scored."""
    rng = np.random.default_rng(4)
    return Passage([int(id) for id in rng.integers(0, vocab, LONG)], LONG // 2)


def measure(
    folder: Path,
    passages: list[Passage],
    recipes: Iterable[Recipe],
    work: Path,
    *,
    speaks: bool,
    kv: bool = False,
) -> Iterator[tuple[str, Quality]]:
    """Each recipe's quality on a released checkpoint, converted into `work` in turn; then, with
    `kv`, that of its own weights with keys and values in 8 bits."""
    wanted = list(log_probabilities(folder, passages))
    yield "release", _quality(wanted, wanted, passages, speaks)
    source = open_source(folder)
    for recipe in track(list(recipes), description=folder.name, console=Console(stderr=True)):
        with tempfile.TemporaryDirectory(dir=work) as made:
            converted = Path(made) / "model"
            destination.write(source, to_mlx(source, recipe), converted)
            found = log_probabilities(converted, passages)
            yield recipe.name, _quality(wanted, found, passages, speaks)
    if kv:
        found = log_probabilities(folder, passages, kv_bits=8)
        yield KV, _quality(wanted, found, passages, speaks)


def log_probabilities(
    folder: Path, passages: Iterable[Passage], kv_bits: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """Of the scored positions of each passage: float32 [tokens, vocabulary], in nats."""
    with Checkpoint.open(folder) as checkpoint:
        model = open_model(checkpoint, dtype="float32", kv_bits=kv_bits)
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
