"""The toolkit: which tools the server runs for its clients, and what makes those of a conversation.

Without it, tools are the client's to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from gptoss_mlx.harmony.encoding import Encoding
from gptoss_mlx.tools.approval import MOST_CALLS, Rule
from gptoss_mlx.tools.tool import Tool

Maker: TypeAlias = Callable[[Path, Encoding], Tool]
"""Makes a tool for one conversation: with a folder of its own, and the model's encoding."""


@dataclass(frozen=True)
class Toolkit:
    """makers: of each tool, by its name. rules: of tools whose calls are not simply run.

    most_calls: of one response. files: where the conversations' folders are made, to stay; None for
    a place that is removed when the server ends. is_offline: whether the browser reads nothing but
    documents of this machine.
    """

    makers: Mapping[str, Maker] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    most_calls: int = MOST_CALLS
    files: Path | None = None
    is_offline: bool = False

    def rule(self, name: str) -> Rule:
        return self.rules.get(name, "allow")
