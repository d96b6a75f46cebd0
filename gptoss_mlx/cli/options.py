"""The commands' shared options, and parameter types: sizes, tokens, machines, devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gptoss_mlx.backends.backend import BACKENDS, check_device
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.models.hub import DEFAULT_MODEL
from gptoss_mlx.system.cores import MOST_THREADS
from gptoss_mlx.system.machine import find_machine
from gptoss_mlx.system.units import parse_budget, parse_bytes, parse_tokens

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # older versions of click have no type argument
    _ParamType = click.ParamType


CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""click's settings of every command."""

CACHE = "What the package itself makes lies in $GPTOSS_CACHE, or else in the user's cache folder."
"""Shown at the end of --help."""

MODEL_HELP = 'A folder, a Hugging Face id, gpt-oss:20b or such, or "tiny".'

EFFORTS = ("low", "medium", "high")
"""Of reasoning."""

MOST_SECONDS = 1e9


class Parsed(_ParamType):
    """A value read by `parse`, whose ValueError is a usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


BYTES = Parsed("size", parse_bytes)
BUDGET = Parsed("size", parse_budget)
TOKENS = Parsed("tokens", parse_tokens)
MACHINE = Parsed("machine", find_machine)
DEVICE = Parsed("device", check_device)

Command = TypeVar("Command", bound=Callable[..., Any])


def model_option(help: str) -> Callable[[Command], Command]:
    """-m, --model: which one."""
    return click.option("-m", "--model", default=DEFAULT_MODEL, show_default=True, help=help)


def backend_options(command: Command) -> Command:
    """--backend and --device, for `backend.choose_backend`."""
    help = "Of PyTorch: cpu, cuda or such as cuda:1."
    device = click.option("--device", type=DEVICE, help=help)
    help = "What computes; cuda is torch on a card. By default the best there is."
    backend = click.option("--backend", type=click.Choice(BACKENDS), help=help)
    return backend(device(command))


def cache_option(command: Command) -> Command:
    """--cache: the memory of the prefix store."""
    help = "Most memory for what prompts have in common, such as 2GiB; 0 for none."
    return click.option("--cache", type=BUDGET, help=help)(command)


def cache_options(command: Command) -> Command:
    """--cache, --cache-dir and --cache-disk, of a command that keeps an engine."""
    help = "Most bytes in --cache-dir; 20GiB by default."
    disk = click.option("--cache-disk", type=BYTES, help=help)
    help = "A folder in which what prompts have in common lasts."
    folder = click.option("--cache-dir", type=click.Path(file_okay=False), help=help)
    return cache_option(folder(disk(command)))


def _biases(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> dict[int, float] | None:
    """ID=VALUE, repeated, as {ID: VALUE}; None if not given."""
    biases = {}
    for text in given:
        token, _, bias = text.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError as error:
            raise click.BadParameter(f"{shown(text)} is not like 1734=-5") from error
    return biases or None


# None, or empty, if not given, so that the checkpoint's own defaults apply.
INSTRUCTION_OPTIONS = (
    click.option("--system", help="Instructions for the model."),
    click.option("--reasoning", type=click.Choice(EFFORTS), help="How long to think."),
)

SAMPLING_OPTIONS = (
    click.option("-n", "--max-tokens", type=click.IntRange(1), help="Most tokens to generate."),
    click.option(
        "--max-time",
        type=click.FloatRange(0, MOST_SECONDS, min_open=True),
        metavar="SECONDS",
        help="Most time to take, prompt and answer.",
    ),
    click.option("--stop", multiple=True, help="End before this text. Repeatable."),
    click.option("--temperature", type=float, help="0 takes the most probable token."),
    click.option("--top-p", type=float, help="Only the first tokens that together reach this."),
    click.option("--top-k", type=int, help="Only this many tokens; 0 is all."),
    click.option("--min-p", type=float, help="Only tokens this probable, relative to the first."),
    click.option("--repetition-penalty", type=float, help="Divides logits of tokens seen."),
    click.option("--presence-penalty", type=float, help="Subtracted once from tokens written."),
    click.option("--frequency-penalty", type=float, help="Subtracted for each use of a token."),
    click.option(
        "--logit-bias",
        metavar="ID=VALUE",
        multiple=True,
        callback=_biases,
        help="Added to a token's logit. Repeatable.",
    ),
    click.option("--seed", type=int, help="Repeats the same output."),
)


def loading_options(command: Command) -> Command:
    """--memory to --cache-disk: how a model is opened, beside its name and backend."""
    options = (
        click.option("--memory", type=BYTES, help="Most memory to use, such as 10GiB."),
        click.option("--context", type=TOKENS, help="Most tokens, prompt and answer: 32k."),
        click.option(
            "--dtype", type=click.Choice(["bfloat16", "float32"]), help="Compute precision."
        ),
        click.option(
            "--embedding", type=click.Choice(["file", "resident"]), help="Where its table is."
        ),
        click.option(
            "--kv-bits", type=click.Choice(["8"]), help="Bits of keys and values, to save room."
        ),
        cache_options,
        click.option(
            "--threads", type=click.IntRange(1, MOST_THREADS), help="Of the kernels for CPUs."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
