"""Thinking: how much of it a request wants, and whether its answer shows it."""

from __future__ import annotations

import binascii
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, StrictInt, StrictStr

from gptoss_mlx.engine.options import Options
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.bodies import Body
from gptoss_mlx.server.effort import effort_options
from gptoss_mlx.server.problems import Problem

Display: TypeAlias = Literal["shown", "omitted", "hidden"]
"""Of reasoning: with its text, as a block without it, or not at all."""

LOW_MOST, MEDIUM_MOST = 2048, 16384
"""The largest budgets, in tokens, of which low and medium effort make use."""

_KINDS = ("enabled", "adaptive", "between_tools", "disabled")
_SEAL = "gptoss."
_LONGEST = 1 << 20


class ThinkingConfig(Body):
    """budget_tokens: the most tokens of reasoning."""

    type: StrictStr
    budget_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    display: StrictStr | None = None

    def options(self, effort: str | None) -> Options:
        """effort: by name, if the request has one. Raises Problem."""
        if self.type not in _KINDS:
            known = ", ".join(_KINDS)
            raise Problem(
                400,
                f"thinking.type is {shown(self.type)}, but must be one of {known}",
                param="thinking.type",
            )
        options = effort_options(effort or self._effort, "output_config.effort")
        if self.type == "disabled":
            options["reasoning_budget"] = 0
        elif self.type == "enabled" and self.budget_tokens is not None:
            options["reasoning_budget"] = self.budget_tokens
        return options

    @property
    def shows(self) -> Display:
        if self.type == "disabled":
            return "hidden"
        return "omitted" if self.display == "omitted" else "shown"

    @property
    def _effort(self) -> str | None:
        if self.type == "disabled":
            return "none"
        if self.type != "enabled" or self.budget_tokens is None:
            return None
        if self.budget_tokens <= LOW_MOST:
            return "low"
        return "medium" if self.budget_tokens <= MEDIUM_MOST else "high"


def signed(text: str) -> str:
    """The signature of a thinking block, with the reasoning that the block itself leaves out."""
    return _SEAL + urlsafe_b64encode(zlib.compress(text.encode())).decode() if text else _SEAL


def unsealed(signature: object) -> str:
    """The reasoning that a signature carries; "" for one of another model."""
    if not isinstance(signature, str) or not signature.startswith(_SEAL):
        return ""
    try:
        data = urlsafe_b64decode(signature.removeprefix(_SEAL))
        return zlib.decompressobj().decompress(data, _LONGEST).decode("utf-8", "replace")
    except (binascii.Error, ValueError, zlib.error):
        return ""
