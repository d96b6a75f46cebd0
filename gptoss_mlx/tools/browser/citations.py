"""Citation marks such as `【6†L9-L11】` in an answer, resolved against the pages that were shown.

Only the page stack is trusted: a mark whose cursor it does not have stays text, whatever a document
says. An answer may come in deltas cut anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from typing_extensions import TypedDict

from gptoss_mlx.tools.browser.page import Page, domain
from gptoss_mlx.tools.browser.stack import PageStack

QUOTE_LIMIT = 4000
"""Characters of the cited lines that are kept."""

_INSIDE = r"[^【】\n]"
_MARK = re.compile(rf"【(\d{{1,6}})†({_INSIDE}{{1,100}})】", re.ASCII)
_BEGUN = re.compile(rf"【(?:\d{{0,6}}|\d{{1,6}}†{_INSIDE}{{0,100}})", re.ASCII)
_LINES = re.compile(r"\s*L?(\d{1,9})(?:\s*[-\u2010-\u2015]\s*L?(\d{1,9}))?(?!\w)", re.ASCII)


class UrlCitation(TypedDict):
    """An annotation of OpenAI's Responses API: characters of the text, from start up to end."""

    type: Literal["url_citation"]
    start_index: int
    end_index: int
    url: str
    title: str


class FileCitation(TypedDict):
    """An annotation of OpenAI's Responses API. index: the character at which the mark begins."""

    type: Literal["file_citation"]
    index: int
    file_id: str
    filename: str


Annotation: TypeAlias = UrlCitation | FileCitation


@dataclass(frozen=True)
class Citation:
    """A mark that the page stack has the page of.

    start, end: characters of the answer's text that stand for the mark. url: for a document, its
    path in the folder; file: where that is. lines: the first and the last one cited, None where the
    mark names none that the page has; quote: their text. was_shown: whether the model has seen all
    of them.
    """

    start: int
    end: int
    cursor: int
    title: str
    url: str
    file: Path | None = None
    lines: tuple[int, int] | None = None
    quote: str = ""
    was_shown: bool = False

    @property
    def annotation(self) -> Annotation:
        if self.file is not None:
            return FileCitation(
                type="file_citation", index=self.start, file_id=self.url, filename=self.file.name
            )
        return UrlCitation(
            type="url_citation",
            start_index=self.start,
            end_index=self.end,
            url=self.url,
            title=self.title,
        )


@dataclass(frozen=True)
class Cited:
    """A part of an answer, or all of it, and the citations that end in it."""

    text: str
    citations: tuple[Citation, ...] = ()

    def __add__(self, other: Cited) -> Cited:
        return Cited(self.text + other.text, self.citations + other.citations)


Written: TypeAlias = Callable[[str, Citation], str]
"""What an answer's text has for a mark; it takes the mark and its citation."""


def as_mark(mark: str, citation: Citation) -> str:
    """The mark as the model wrote it."""
    return mark


def as_link(mark: str, citation: Citation) -> str:
    """A link in Markdown; the title alone for a document."""
    if citation.file is not None:
        return f" ({citation.title})"
    return f" ([{domain(citation.url) or citation.title}]({citation.url}))"


class CitationReader:
    """Reads an answer in deltas; what may become a mark is held until it is one or is not. What is
    written for a mark that follows a space, or begins the answer, begins with none."""

    def __init__(self, stack: PageStack, written: Written = as_mark) -> None:
        self._stack, self._written = stack, written
        self._held, self._length, self._last = "", 0, " "

    def push(self, delta: str) -> Cited:
        """The text that this delta settles, and the citations in it."""
        self._held += delta
        texts, citations = list[str](), list[Citation]()
        for text, mark in self._settled():
            citation = None if mark is None else resolve(self._stack, mark[1], mark[2])
            if citation is not None:
                text = self._written(text, citation)
                text = text.lstrip(" ") if self._last.isspace() else text
                start = self._length
                citations.append(replace(citation, start=start, end=start + len(text)))
            texts.append(text)
            self._length += len(text)
            self._last = text[-1:] or self._last
        return Cited("".join(texts), tuple(citations))

    def flush(self) -> Cited:
        """What is held at the end of the answer, as text."""
        text, self._held = self._held, ""
        self._length += len(text)
        return Cited(text)

    def _settled(self) -> Iterator[tuple[str, re.Match[str] | None]]:
        """The pieces of what is held that more text cannot change, and the mark that one is."""
        text, at = self._held, 0
        while (begin := text.find("【", at)) >= 0:
            yield text[at:begin], None
            mark = _MARK.match(text, begin)
            if mark is None and _BEGUN.fullmatch(text, begin) is not None:
                self._held = text[begin:]
                return
            at = mark.end() if mark is not None else begin + 1
            yield text[begin:at], mark
        self._held = ""
        yield text[at:], None


def resolve(stack: PageStack, cursor: str, lines: str) -> Citation | None:
    """What a mark cites; None if nothing was shown under its cursor, or nothing of a page."""
    number = int(cursor)
    shown = stack.get(number)
    if shown is None:
        return None
    page = shown.page
    cited = _cited_lines(lines, len(page.lines))
    quoted = page.lines[cited[0] : cited[1] + 1] if cited is not None else ()
    citation = Citation(
        start=0,
        end=0,
        cursor=number,
        title=page.title,
        url=page.url,
        file=page.file,
        lines=cited,
        quote="\n".join(quoted)[:QUOTE_LIMIT],
        was_shown=cited is not None and stack.has_shown(page, *cited),
    )
    return citation if page.kind == "document" else _of_origin(citation, page)


def _cited_lines(text: str, count: int) -> tuple[int, int] | None:
    """The first and the last line that a mark names, of a page's `count`."""
    match = _LINES.match(text)
    if match is None:
        return None
    first, last = sorted((int(match[1]), int(match[2] or match[1])))
    return (first, min(last, count - 1)) if first < count else None


def _of_origin(citation: Citation, page: Page) -> Citation | None:
    """A citation of search results or matches, as one of the page that these lines come from."""
    first, last = citation.lines or (0, -1)
    origins = [page.origins[line] for line in range(first, last + 1) if line in page.origins]
    if not origins:
        return None
    link = origins[0].link
    begin, end = origins[0].line, origins[-1].line
    same = origins[-1].link.url == link.url
    lines = (begin, end) if begin is not None and end is not None and same else None
    return replace(citation, title=link.title, url=link.url, file=link.file, lines=lines)
