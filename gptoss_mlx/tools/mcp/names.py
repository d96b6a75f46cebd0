"""The names of functions, SERVER_TOOL, of letters, digits, underscores and hyphens.

A name depends on the file and on the tool's own name alone, not on what else a server lists, so it
stays when the list changes. A name that had to be altered ends with a hash of what it stood for;
that is how "a.b" and "a b" differ.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

MOST_LETTERS = 64
"""Of a function's name, as in OpenAI's API."""

_PREFIX_LETTERS = 32
_HASH_LETTERS = 6
_OTHERS = re.compile(r"[^A-Za-z0-9_-]")


def prefixes(servers: Sequence[str]) -> list[str]:
    """What the names of each server's functions begin with. One that begins as another does has a
    hash, so that no two servers have a function of the same name."""
    found: list[str] = []
    for server in servers:
        prefix = _OTHERS.sub("_", server)[:_PREFIX_LETTERS] + "_"
        if any(prefix.startswith(other) or other.startswith(prefix) for other in found):
            prefix = f"{prefix}{_hash(server)}_"
        found.append(prefix)
    return found


def function_name(prefix: str, tool: str) -> str:
    """The name of a server's function."""
    name = prefix + _OTHERS.sub("_", tool)
    if name == prefix + tool and len(name) <= MOST_LETTERS:
        return name
    return f"{name[: MOST_LETTERS - _HASH_LETTERS - 1]}_{_hash(tool)}"


def _hash(text: str) -> str:
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:_HASH_LETTERS]
