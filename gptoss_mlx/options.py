"""What commands take on their command line besides words and numbers: sizes, tokens, machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from gptoss_mlx.machine import find_machine
from gptoss_mlx.units import parse_bytes, parse_tokens

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # older versions of click have no type argument
    _ParamType = click.ParamType


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
TOKENS = Parsed("tokens", parse_tokens)
MACHINE = Parsed("machine", find_machine)
