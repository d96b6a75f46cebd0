"""Other names of the released models -> their ids on Hugging Face."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

_IDS = {"20b": "openai/gpt-oss-20b", "120b": "openai/gpt-oss-120b"}

ALIASES = MappingProxyType(
    {
        **_IDS,
        **{f"gpt-oss:{size}": id for size, id in _IDS.items()},
        **{f"gpt-oss-{size}": id for size, id in _IDS.items()},
        **{f"openai/gpt-oss:{size}": id for size, id in _IDS.items()},
        "gpt-oss": _IDS["20b"],
        "gpt-oss:latest": _IDS["20b"],
    }
)
"""As Ollama, LM Studio and others write them; "latest" is the one that Ollama means."""


def full_name(model: str) -> str:
    """The id of a released model by one of its other names; a folder, or anything else, as it is.

    A file or folder of that name in the current folder comes first.
    """
    id = ALIASES.get(model.lower())
    return model if id is None or Path(model).exists() else id
