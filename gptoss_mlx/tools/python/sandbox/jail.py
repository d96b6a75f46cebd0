"""`Jail`: what an interpreter's process is given, the same for every kind of sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gptoss_mlx.tools.python.limits import Limits

DATA = "/mnt/data"
"""Where the model was told its files are."""


@dataclass(frozen=True)
class Jail:
    """What the keeper builds around the interpreter.

    kind: of the sandbox: "namespaces", "bubblewrap", "seatbelt" or "none". python: the program.
    worker: the script it runs. paths: its sys.path. readable: files and folders it may read, at
    the same place. folder: of its files, as it sees it. wrapper: a command that confines what
    follows it. environment: all its variables.
    """

    kind: str
    python: str
    worker: str
    paths: tuple[str, ...]
    readable: tuple[str, ...]
    folder: str
    environment: Mapping[str, str]
    limits: Limits
    wrapper: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """Isolated from the user's settings and site folders; `paths` come from the request."""
        options = ["-I", "-S", "-B", "-X", "utf8"]
        return [*self.wrapper, self.python, *options, self.worker]

    def packed(self) -> bytes:
        return json.dumps(asdict(self)).encode("utf-8")

    @classmethod
    def unpacked(cls, data: bytes) -> Jail:
        made: dict[str, Any] = json.loads(data)
        made["limits"] = Limits(**made["limits"])
        jail = cls(**made)
        return replace(
            jail,
            paths=tuple(jail.paths),
            readable=tuple(jail.readable),
            wrapper=tuple(jail.wrapper),
        )
