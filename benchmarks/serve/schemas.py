"""Answers under the schemas of the JSON-Schema-Test-Suite: are all valid, and what do masks cost?

    python -m benchmarks.serve.schemas SUITE [--texts 2000] [--json FILE]

SUITE: a checkout of https://github.com/json-schema-org/JSON-Schema-Test-Suite. Of draft 2020-12,
every schema that is not refused is written to by a random model: logits drawn anew, temperature
1.5, real vocabulary, with a liking for what closes a text, or few would end. A finished text must
be valid by the package jsonschema; one cut off is continued, and must then be. Prints a table, and
one line of JSON last.

Then what masks cost: the time of one, and with a model under a schema the time of a token against
that of a model that is free. There a mask is computed while the model's next step is.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import jsonschema
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

import gptoss_mlx
from gptoss_mlx.errors import GrammarError
from gptoss_mlx.harmony import Encoding, HeaderState, Mask
from gptoss_mlx.harmony.compiler import Compiler
from gptoss_mlx.harmony.encoding import RETURN, VOCAB_SIZE
from gptoss_mlx.harmony.text_grammar import GrammarState

DRAFT = "tests/draft2020-12"
CUT = 60  # tokens after which a text counts as cut off
MOST = 600  # tokens after which one that was cut off is given up
TEMPERATURE = 1.5
LIKING = 12.0  # added to the logits of what closes a text, and of plain tokens once it was cut off
CLOSING = '"}]0123456789eltrufasn.-:TZ@'
PROFILE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "long one"]}, "maxItems": 5},
        "note": {"type": "string"},
    },
    "required": ["name", "age", "tags", "note"],
    "additionalProperties": False,
}


@dataclass
class Tally:
    """What was found. seconds: of each mask, with the state's advance."""

    finished: int = 0
    valid: int = 0
    cut: int = 0
    completed: int = 0
    given_up: int = 0
    invalid: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


def cases(suite: Path) -> Iterator[tuple[str, Any]]:
    """(keyword's file, schema) of every group of the draft's required tests."""
    for path in sorted((suite / DRAFT).glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            if r"\\p" not in json.dumps(group["schema"]):  # Python's patterns know no properties
                yield path.stem, group["schema"]


class RandomModel:
    """Logits drawn at random, with a liking for some tokens; Gumbel-max sampling under a mask."""

    def __init__(self, encoding: Encoding, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._liked = np.zeros(VOCAB_SIZE, np.float32)
        self._liked[[encoding.encode(letter)[0] for letter in CLOSING]] = LIKING
        self._liked[encoding.encode('"')] += LIKING / 2
        self._liked[RETURN] = 3 * LIKING

    def choose(self, mask: Mask, liking: float) -> int:
        ids = permitted(mask)
        scores = 2 * self._rng.standard_normal(len(ids), np.float32) + liking * self._liked[ids]
        noise = -np.log(self._rng.standard_exponential(len(ids), np.float32))
        return int(ids[np.argmax(scores / TEMPERATURE + noise)])


def permitted(mask: Mask) -> NDArray[np.int64]:
    if mask.bits is None:
        return np.array(mask.allow, np.int64)
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask.bits, np.uint8), bitorder="little"))


def write(state: GrammarState, model: RandomModel, tally: Tally) -> tuple[list[int], bool]:
    """The tokens of one text, and whether it was cut off before it ended."""
    ids: list[int] = []
    while len(ids) < MOST:
        begun = time.perf_counter()
        mask = state.mask
        tally.seconds.append(time.perf_counter() - begun)
        id = model.choose(mask, 0.5 if len(ids) < CUT else 2.0)
        if id == RETURN:
            return ids, len(ids) > CUT
        ids.append(id)
        begun = time.perf_counter()
        state = state.advance(id)
        tally.seconds[-1] += time.perf_counter() - begun
    return ids, True


def survey(suite: Path, texts: int, encoding: Encoding) -> Tally:
    """Write texts in turn to every schema that is taken, until so many have finished."""
    tally, compiler = Tally(), Compiler(lambda: encoding.trie, VOCAB_SIZE)
    taken: list[tuple[str, Any, GrammarState]] = []
    for stem, schema in cases(suite):
        try:
            if isinstance(schema, dict):  # a response format has no other
                grammar = compiler.schema(schema, stem)
                taken.append((stem, schema, grammar.start((RETURN,), HeaderState(Mask(ban=())))))
        except GrammarError:
            tally.refused[stem] += 1
    rounds = 2 * -(-texts // len(taken))
    for seed in track(range(rounds), description=f"{len(taken)} schemas", console=_console()):
        model = RandomModel(encoding, seed)
        for stem, schema, start in taken:
            ids, cut = write(start, model, tally)
            _judge(tally, stem, schema, encoding.decode(ids), cut, len(ids) < MOST)
            if tally.finished >= texts:
                return tally
    return tally


def _judge(tally: Tally, stem: str, schema: Any, text: str, cut: bool, ended: bool) -> None:
    valid = ended and is_valid(schema, text)
    if ended and not valid:
        tally.invalid.append(f"{stem}: {json.dumps(schema)[:200]} -> {text[:200]}")
    if cut:
        tally.cut += 1
        tally.completed += valid
        tally.given_up += not ended
    else:
        tally.finished += 1
        tally.valid += valid


def is_valid(schema: Any, text: str) -> bool:
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def token_times(tokens: int) -> dict[str, float]:
    """Milliseconds a token of the tiny model on this machine, free and under a schema.

    mask: those of the masks alone, as if nothing hid them.
    """
    asked = {"type": "json_schema", "json_schema": {"name": "profile", "schema": PROFILE}}
    found = {}
    with gptoss_mlx.load("tiny", backend="mlx", memory="2GiB", context="2k") as engine:
        common: dict[str, Any] = {"max_tokens": tokens, "reasoning_budget": 0, "seed": 1}
        common |= {
            "temperature": TEMPERATURE,
            "stop_repetition": False,
            "logit_bias": {RETURN: -99},
        }
        engine.generate("Hi", response_format=asked, **common)  # compiled, and warm
        for name, options in {"free": {}, "schema": {"response_format": asked}}.items():
            results = [engine.generate("Hi", **common, **options) for _ in range(3)]
            found[name] = min(1e3 / result.timings.decode_rate for result in results)
        request = engine.preprocessor.request("Hi", reasoning_budget=0, response_format=asked)
        result = engine.generate("Hi", response_format=asked, **common)
        begun = time.perf_counter()
        state = request.grammar
        for id in result.token_ids[:-1]:
            assert state is not None
            _ = state.mask
            state = state.advance(id)
        found["mask"] = 1e3 * (time.perf_counter() - begun) / len(result.token_ids)
    return found


def _console() -> Console:
    return Console(stderr=True)


@click.command(help=__doc__)
@click.argument("suite", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--texts", type=click.IntRange(1), default=2000, show_default=True)
@click.option("--tokens", type=click.IntRange(8), default=120, show_default=True)
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the line there too.")
def main(suite: Path, texts: int, tokens: int, target: Path | None) -> None:
    encoding = Encoding()
    begun = time.perf_counter()
    _ = encoding.trie
    built = time.perf_counter() - begun
    tally = survey(suite, texts, encoding)
    microseconds = 1e6 * np.array(tally.seconds)
    report = {
        "benchmark": "serve.schemas",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "finished": tally.finished,
        "valid": tally.valid,
        "cut_off": tally.cut,
        "cut_off_then_completed_and_valid": tally.completed,
        "cut_off_and_given_up": tally.given_up,
        "invalid": tally.invalid[:20],
        "groups_refused": dict(sorted(tally.refused.items())),
        "trie_seconds": round(built, 2),
        "masks": len(microseconds),
        "mask_us_median": round(float(np.median(microseconds)), 1),
        "mask_us_mean": round(float(np.mean(microseconds)), 1),
        "mask_us_99": round(float(np.percentile(microseconds, 99)), 1),
        "mask_us_max": round(float(np.max(microseconds)), 1),
        "tiny_ms_a_token": {k: round(v, 3) for k, v in token_times(tokens).items()},
    }
    table = Table(show_header=False)
    for name, value in report.items():
        table.add_row(name, str(value))
    _console().print(table)
    line = json.dumps(report)
    if target is not None:
        target.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
