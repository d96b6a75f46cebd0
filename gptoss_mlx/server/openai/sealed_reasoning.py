"""Sealed reasoning: the text of `encrypted_content`, opaque to clients, which send it back.

It holds no secret, and needs no key: it outlives a restart of the server.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "gptoss1."


def seal(reasoning: str) -> str:
    return _MARK + base64.urlsafe_b64encode(reasoning.encode()).decode()


def unseal(sealed: str) -> str | None:
    """The reasoning; None if it was sealed elsewhere."""
    if not sealed.startswith(_MARK):
        return None
    try:
        return base64.urlsafe_b64decode(sealed.removeprefix(_MARK)).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
