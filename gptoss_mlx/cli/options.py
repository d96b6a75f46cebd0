"""The commands' shared options, and parameter types: sizes, tokens, machines, devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gptoss_mlx.backends.backend import BACKENDS, check_device
from gptoss_mlx.models.hub import DEFAULT_MODEL
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
