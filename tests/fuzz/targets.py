"""What is damaged, and what a command does with it then."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from click.testing import CliRunner

from convert.__main__ import main as convert_command
from convert.sources import open_source
from gptoss_mlx.cli.question import read_question
from gptoss_mlx.engine.engine import _generation_defaults
from gptoss_mlx.engine.request import Preprocessor
from gptoss_mlx.errors import ContextError, MemoryBudgetError
from gptoss_mlx.harmony.encoding import special_tokens
from gptoss_mlx.harmony.tokenizer import HarmonyTokenizer, load_tokenizer
from gptoss_mlx.models.checkpoint import INDEX, UNFINISHED, Checkpoint
from gptoss_mlx.plan.memory import make_plan
from gptoss_mlx.settings import Settings
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.recipe import RECIPES, quantization
from gptoss_mlx.spec.released import CONFIGS
from gptoss_mlx.spec.rope import magnitude, periods
from gptoss_mlx.system.machine import MACHINES
from tests.convert.layouts import write_gguf, write_mlx_lm, write_original
from tests.fuzz.mutate import damaged_bytes, damaged_json, damaged_safetensors
from tests.fuzz.samples import FORMAT, MESSAGES, TOOLS
from tests.support.checkpoints import Shape, write_checkpoint

SHAPE = Shape(
    layers=2,
    hidden=64,
    intermediate=96,
    experts=4,
    active=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=64,
)
QUESTION: dict[str, Any] = {
    parameter.name: None
    for parameter in signature(read_question).parameters.values()
    if parameter.kind is Parameter.KEYWORD_ONLY
} | {"raw": False, "no_constrain": False, "stop": ()}
"""What a command passes on when nothing is asked."""


@dataclass(frozen=True)
class Target:
    """A file, what goes wrong with it, and who reads it: `run` raises, or gives what it says."""

    path: Path
    content: bytes
    damage: Callable[[Random, bytes], bytes]
    run: Callable[[], str | None]


def targets(folder: Path) -> Mapping[str, Target]:
    """Every kind of input, its files written into an empty folder."""
    release = write_checkpoint(folder / "release", SHAPE, seed=0, shard_bytes=1 << 14)
    found = dict(_of_checkpoint(release))
    found |= _of_sources(release, folder)
    found |= _of_conversions(release, folder)
    harmony = HarmonyTokenizer()
    found |= _of_tokenizers(folder, harmony)
    found |= _of_questions(folder, harmony)
    return found


def _of_checkpoint(folder: Path) -> Iterator[tuple[str, Target]]:
    _write(folder / "generation_config.json", {"temperature": 0.7, "top_p": 0.9, "top_k": 50})
    shard = sorted(folder.glob("*.safetensors"))[0]
    opened = partial(_open, folder)
    yield "shard", _target(shard, damaged_safetensors, opened)
    yield "index", _target(folder / INDEX, damaged_json, opened)
    yield "config", _target(folder / "config.json", damaged_json, opened)
    path = folder / "generation_config.json"
    yield (
        "generation config",
        _target(path, damaged_json, lambda: str(_generation_defaults(folder))),
    )
    released = folder.parent / "released.json"
    released.write_bytes(CONFIGS["openai/gpt-oss-20b"].read_bytes())
    yield "released config", _target(released, damaged_json, lambda: _plan(released))


def _of_sources(release: Path, folder: Path) -> dict[str, Target]:
    lm = write_mlx_lm(release, folder / "lm", rest=8, files=2)
    original = write_original(release, folder / "original", files=2)
    gguf = write_gguf(release, folder / "gguf" / "model.gguf")
    part = write_gguf(release, folder / "parts" / "model.gguf", parts=2)
    q8 = write_gguf(release, folder / "q8" / "model.gguf", rest="Q8_0")

    def converted(source: Path, *options: str) -> Callable[[], str]:
        return lambda: _convert(source, folder / "made", *options)

    plain = "--bits", "bf16", "--verify"
    exact = "--to", "release", "--verify"
    # MLX computes in a thread for each of ours, and keeps it: matrices are copied as they are.
    copied = "--bits", "8"
    return {
        "gguf": _target(gguf, damaged_bytes, converted(gguf, *plain)),
        "gguf to release": _target(gguf, damaged_bytes, converted(gguf, *exact)),
        "gguf in parts": _target(part, damaged_bytes, converted(part, *plain)),
        "gguf of Q8_0": _target(q8, damaged_bytes, converted(q8, *plain)),
        "mlx-lm config": _target(lm / "config.json", damaged_json, converted(lm, *copied)),
        "mlx-lm index": _target(lm / INDEX, damaged_json, converted(lm, *copied)),
        "mlx-lm shard": _target(_shard(lm), damaged_safetensors, converted(lm, *copied)),
        "original config": _target(
            original / "config.json", damaged_json, converted(original, *plain)
        ),
        "original shard": _target(
            _shard(original), damaged_safetensors, converted(original, *exact)
        ),
    }


def _of_conversions(release: Path, folder: Path) -> dict[str, Target]:
    made, begun = folder / "converted", folder / "begun"
    _convert(release, made, "--bits", "bf16")
    manifest = made / "conversion.json"

    def from_manifest() -> str:
        again = _convert(made, folder / "made", "--to", "release")
        return again + _printed(str(release), str(made), "--bits", "bf16", "--verify")

    def resumed() -> str:
        shutil.rmtree(folder / "resumed", ignore_errors=True)
        shutil.copytree(begun, folder / "resumed")
        return _printed(str(release), str(folder / "resumed"), "--bits", "bf16")

    return {
        "manifest": _target(manifest, damaged_json, from_manifest),
        "journal": _target(_begin(release, begun), _damaged_lines, resumed),
    }


def _of_tokenizers(folder: Path, harmony: HarmonyTokenizer) -> dict[str, Target]:
    tokens = list("!\"#$%&'()*")
    specials = list(special_tokens().items())[:21]
    data = {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": text, "special": True} for text, id in specials],
        "model": {
            "type": "BPE",
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [["!", "!"], ["#", "$"]],
        },
    }
    names, pieces = folder / "names", folder / "pieces"
    for place in (names, pieces):
        place.mkdir()
    _write(names / "tokenizer.json", data)
    _write(pieces / "tokenizer_config.json", {"add_bos_token": True, "model_max_length": 4096})
    (pieces / "tokenizer.model").write_bytes(_sentencepiece())
    return {
        "tokenizer.json": _target(
            names / "tokenizer.json", damaged_json, partial(_named, names, tokens, harmony)
        ),
        "tokenizer.model": _target(
            pieces / "tokenizer.model", damaged_bytes, partial(_tokenizer, pieces)
        ),
        "tokenizer_config": _target(
            pieces / "tokenizer_config.json", damaged_json, partial(_tokenizer, pieces)
        ),
    }


def _of_questions(folder: Path, harmony: HarmonyTokenizer) -> dict[str, Target]:
    config = ModelConfig.from_file(CONFIGS["openai/gpt-oss-20b"])
    preprocessor = Preprocessor(harmony, config, 1 << 17, {})

    def asked(**options: Any) -> str:
        question = read_question(**QUESTION | options)
        try:
            preprocessor.request(question.prompt, **question.options)
        except ContextError as error:  # a long value is a long prompt
            return str(error)
        return ""

    messages, tools, format_ = (folder / f"{name}.json" for name in ("messages", "tools", "format"))
    _write(messages, {"messages": MESSAGES, "tools": TOOLS, "reasoning_effort": "low"})
    _write(tools, TOOLS)
    _write(format_, FORMAT)
    return {
        "messages": _target(messages, damaged_json, partial(asked, messages=messages)),
        "tools": _target(tools, damaged_json, partial(asked, tools=tools, prompt="Hi")),
        "response format": _target(
            format_, damaged_json, partial(asked, response_format=str(format_), prompt="Hi")
        ),
    }


def _target(
    path: Path, damage: Callable[[Random, bytes], bytes], run: Callable[[], str | None]
) -> Target:
    return Target(path, path.read_bytes(), damage, run)


def _open(folder: Path) -> None:
    _plan(folder / "config.json")
    with Checkpoint.open(folder) as checkpoint:
        checkpoint.check_scales()
    open_source(folder)


def _plan(path: Path) -> str:
    config = ModelConfig.from_file(path)
    periods(config)
    magnitude(config)
    for recipe in RECIPES.values():
        quantization(recipe, config)
    told = ""
    for machine in (MACHINES["16GB Mac"], MACHINES["64GB Mac"]):
        for context in (None, config.max_position_embeddings):
            try:
                make_plan(config, machine, Settings(context=context))
            except (MemoryBudgetError, ContextError) as error:
                told += f"{error}\n"
    return told


def _convert(source: Path, made: Path, *options: str) -> str:
    shutil.rmtree(made, ignore_errors=True)
    return _printed(str(source), str(made), *options)


def _printed(*arguments: str) -> str:
    """What the converter's command says."""
    result = CliRunner().invoke(convert_command, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def _begin(release: Path, begun: Path) -> Path:
    """A conversion that was killed when half of it was written; its journal."""
    from convert import destination

    def killed(*_: Any) -> None:
        raise SystemExit(9)

    with patch.object(destination, "_write_small_files", killed):
        _printed(str(release), str(begun), "--bits", "bf16")
    return begun / UNFINISHED


def _damaged_lines(rng: Random, data: bytes) -> bytes:
    """One of a journal's lines as JSON, or their order, or any bytes."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            return damaged_bytes(rng, data, len(data))
        case 1:
            lines[at], lines[-1] = lines[-1], lines[at]
        case 2:
            lines[at] = damaged_json(rng, lines[at]) + b"\n"
        case 3:
            lines[at:] = [lines[at][: rng.randrange(len(lines[at]))]]
    return b"".join(lines)


def _tokenizer(folder: Path) -> None:
    config = ModelConfig.from_file(CONFIGS["openai/gpt-oss-20b"])
    tokenizer = load_tokenizer(folder, config)
    decoder = tokenizer.decoder()
    for id in tokenizer.encode("the cat \U0001f44d sat"):
        decoder.push(id)
    for id in range(0, tokenizer.vocab_size, 97):
        decoder.push(id)
    decoder.flush()


def _named(folder: Path, tokens: list[str], harmony: HarmonyTokenizer) -> None:
    """Compared with a vocabulary of these tokens only, and then another one given: both load for
    a second.
    """
    with (
        patch("gptoss_mlx.harmony.tokenizer.ordinary_tokens", lambda: tokens),
        patch("gptoss_mlx.harmony.tokenizer.HarmonyTokenizer", lambda: harmony),
    ):
        _tokenizer(folder)


def _sentencepiece() -> bytes:
    import sentencepiece

    out = io.BytesIO()
    words = ["the cat sat on the mat", "a dog ran over the hill", "cats and dogs are animals"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=out,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",  # else most of the file is a table for it
        minloglevel=2,
    )
    return out.getvalue()


def _shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
