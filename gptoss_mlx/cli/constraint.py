"""The options that constrain an answer, as the arguments of `Engine.stream`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptoss_mlx.errors import GrammarError

LIMIT = 1 << 20
"""Bytes of a grammar's file."""

_MODES = ("auto", "required", "none")

CONSTRAINT_OPTIONS = (
    click.option(
        "--grammar",
        type=click.Path(path_type=Path),
        help="Lark file: the answer, or with --raw the text, is of this grammar.",
    ),
    click.option("--regex", help="The answer, or with --raw the text, matches this as a whole."),
    click.option(
        "--tool-choice",
        metavar="auto|required|none|NAME",
        help="Whether a tool is called; NAME: this function is.",
    ),
    click.option(
        "--reasoning-budget", type=click.IntRange(0), help="Most tokens to think, 0 for none."
    ),
)


def take_constraint(given: dict[str, Any], *, raw: bool, no_constrain: bool) -> dict[str, Any]:
    """Take these options out of a command's others; those that were given come back.

    Raises click.UsageError, or GrammarError for a bad file.
    """
    names = ("grammar", "regex", "tool_choice", "reasoning_budget")
    found = {name: value for name in names if (value := given.pop(name, None)) is not None}
    if {"grammar", "regex"} <= found.keys():
        raise click.UsageError("give --grammar or --regex, not both")
    for name in found:
        option = f"--{name.replace('_', '-')}"
        if no_constrain:
            raise click.UsageError(f"{option} is a constraint: leave out --no-constrain")
        if raw and name in ("tool_choice", "reasoning_budget"):
            raise click.UsageError(f"--raw completes a text: it takes no {option} beside it")
    if "grammar" in found:
        found["grammar"] = _text(found["grammar"])
    choice = found.get("tool_choice")
    if choice is not None and choice not in _MODES:
        found["tool_choice"] = {"type": "function", "function": {"name": choice}}
    return found


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise GrammarError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > LIMIT:
        raise GrammarError(f"{path}: is larger than {LIMIT} bytes, the limit for a grammar")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GrammarError(f"{path}: byte {error.start} is not UTF-8 text") from error
