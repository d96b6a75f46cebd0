"""The text of a file by its kind, which its name tells: HTML, PDF, Word, Markdown, other text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath

from gptoss_mlx.tools.browser.decode import declared_charset, decode, is_text
from gptoss_mlx.tools.browser.documents.pdf import pdf_text
from gptoss_mlx.tools.browser.documents.unreadable import TEXT_LIMIT, OtherKindError
from gptoss_mlx.tools.browser.documents.word import word_text
from gptoss_mlx.tools.browser.html_text import html_text
from gptoss_mlx.tools.browser.page import TITLE_LIMIT, Link
from gptoss_mlx.tools.browser.plain import one_line, plain

VERSION = 1
"""Of how texts are extracted; a cache of another one is made anew."""

_HTML = (".html", ".htm", ".xhtml")
_MARKDOWN = (".md", ".markdown", ".mdx")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_HEADING = re.compile(r" {0,3}#{1,2}[ \t]+(.+?)[ \t]*#*$")
_SETEXT = re.compile(r"=+\s*")
_RULE = re.compile(r"""([=\-`:.'"~^_*+#])\1{2,}\s*""")
_HEAD = 200  # lines in which a title is looked for

Resolve = Callable[[str], tuple[str, str] | None]


@dataclass(frozen=True)
class Extracted:
    """title: "" if the file has none. text: plain but for the marks of links, without tabs."""

    title: str
    text: str
    links: Mapping[int, Link] = field(default_factory=dict)


def extract(path: str, data: bytes, resolve: Resolve) -> Extracted:
    """The text of a file. resolve: what a link in HTML leads to, as `html_text` takes it.

    Raises UnreadableError.
    """
    ending = PurePosixPath(path).suffix.lower()
    if ending == ".pdf" or data.startswith(b"%PDF-"):
        return _whole(*pdf_text(data))
    if ending == ".docx":
        return _whole(*word_text(data))
    if not is_text(data[:8192]):
        raise OtherKindError("not text")
    if ending in _HTML:
        return extract_html(decode(data, declared_charset(data)), resolve)
    text = plain(decode(data))
    return _whole(_title(ending, text), text)


def extract_html(source: str, resolve: Resolve) -> Extracted:
    page = html_text(source, resolve)
    return _whole(page.title, page.text, page.links)


def _whole(title: str, text: str, links: Mapping[int, Link] | None = None) -> Extracted:
    text = text.expandtabs(8)
    if len(text) > TEXT_LIMIT:
        text = text[:TEXT_LIMIT] + f"\n\n[The text is cut off here, at {TEXT_LIMIT:,} characters.]"
    return Extracted(one_line(title, TITLE_LIMIT), text, links or {})


def _title(ending: str, text: str) -> str:
    """The first heading of Markdown or reStructuredText."""
    lines = text[:16384].split("\n")[:_HEAD]
    if ending in _MARKDOWN:
        return _markdown_title(lines)
    if ending in (".rst", ".txt"):
        for line, next_line in pairwise(lines):
            if line.strip() and _RULE.fullmatch(next_line) and not _RULE.fullmatch(line):
                return line.strip()
    return ""


def _markdown_title(lines: list[str]) -> str:
    in_code = False
    for line, next_line in zip(lines, [*lines[1:], ""], strict=True):
        if _FENCE.match(line):
            in_code = not in_code
        heading = _HEADING.fullmatch(line)
        if heading is not None and not in_code:
            return heading[1]
        if line.strip() and _SETEXT.fullmatch(next_line) and not in_code:
            return line.strip()
    return ""
