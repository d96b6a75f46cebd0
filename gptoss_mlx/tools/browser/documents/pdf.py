"""The text of a PDF, page by page, by pypdf; it is the extra `documents`."""

from __future__ import annotations

import importlib
import io
import logging
import time
from typing import Any

from gptoss_mlx.tools.browser.documents.unreadable import TEXT_LIMIT, UnreadableError
from gptoss_mlx.tools.browser.plain import plain

PAGES_LIMIT = 5000
TIME_LIMIT = 120.0
"""Seconds after which no further page of a file is read."""


def pdf_text(data: bytes) -> tuple[str, str]:
    """The title and the text of a PDF; each page begins with its number. Raises UnreadableError."""
    try:
        pypdf: Any = importlib.import_module("pypdf")
    except ImportError as error:
        raise UnreadableError(
            "a PDF needs pypdf: pip install 'gptoss-mlx[documents]'", can_change=True
        ) from error
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity of a file
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("an encrypted PDF")
        title = reader.metadata.title if reader.metadata is not None else None
        text = _pages(reader)
    except UnreadableError:
        raise
    except Exception as error:  # pypdf raises whatever its parsers do on a broken file
        raise UnreadableError(f"not a PDF that can be read ({type(error).__name__})") from error
    if not text:
        raise UnreadableError("a PDF without text, such as scanned pages")
    return plain(title) if isinstance(title, str) else "", text


def _pages(reader: Any) -> str:
    begun, length = time.monotonic(), 0
    texts = []
    for number, page in enumerate(reader.pages, 1):
        if number > PAGES_LIMIT or length > TEXT_LIMIT or time.monotonic() - begun > TIME_LIMIT:
            texts.append(f"[The text is cut off here, before page {number}.]")
            break
        text = plain(page.extract_text()).strip()
        if text:
            texts.append(f"[Page {number}]\n{text}")
            length += len(text)
    return "\n\n".join(texts)
