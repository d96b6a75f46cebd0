"""The tree of an HTML page, of Python's own parser: it takes any input, and nothing in it runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser

DEPTH_LIMIT = 100
"""Elements inside one another; what is deeper stands in the last of them."""

ELEMENTS_LIMIT = 200_000
"""Elements of a page; of those beyond it only the text counts."""

_VOID = re.compile("area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr|keygen")
_ENDED_BY = {
    "li": ("li",),
    "dt": ("dt", "dd"),
    "dd": ("dt", "dd"),
    "tr": ("tr", "td", "th"),
    "a": ("a",),
    "td": ("td", "th"),
    "th": ("td", "th"),
    "option": ("option",),
}
"""By a tag that begins, the open elements that it ends, up to their list or table."""
_SCOPE = frozenset(("ul", "ol", "dl", "table", "menu", "select"))
_PARAGRAPH_SCOPE = frozenset(("td", "th", "li", "button"))
_ENDS_PARAGRAPH = re.compile(
    "address|article|aside|blockquote|div|dl|fieldset|figure|footer|form|h1|h2|h3|h4|h5|"
    "h6|header|hr|main|nav|ol|p|pre|section|table|ul"
)
# What are comments in HTML, as every version of the parser takes them; some raise for a "<![".
_COMMENTS = {"<![": "<! [", "<!-->": "<!-- -->", "<!--->": "<!-- -->", "--!>": "-->"}
_ODD = re.compile("|".join(map(re.escape, _COMMENTS)))


@dataclass
class Element:
    """tag: in lower case. children: elements and texts, in order."""

    tag: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    def text(self) -> str:
        """All text in it."""
        return "".join(part for part in self.walk() if isinstance(part, str))

    def walk(self) -> Iterator[Element | str]:
        """The element, and all elements and texts in it, in the order of the source."""
        rest: list[Element | str] = [self]
        while rest:
            part = rest.pop()
            yield part
            if isinstance(part, Element):
                rest += reversed(part.children)

    def first(self, tag: str) -> Element | None:
        """The first element of a tag in it."""
        parts = (part for part in self.walk() if isinstance(part, Element))
        return next((part for part in parts if part.tag == tag), None)


def parse_html(text: str) -> Element:
    """The tree of a page. It takes time linear in the text's length, whatever the text is.

    The parser is never closed: its end takes quadratic time for what was left open (CVE-2025-6069),
    and HTML drops an unfinished tag.
    """
    builder = _Builder()
    builder.feed(_ODD.sub(lambda odd: _COMMENTS[odd[0]], text))
    builder.feed("<p></p>")  # has the text before it given out
    return builder.root


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("html")
        self._open = [self.root]
        self._counts: Counter[str] = Counter()  # of the open elements, by tag
        self._elements = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._elements += 1
        if self._elements > ELEMENTS_LIMIT:
            return
        if self._counts["p"] and _ENDS_PARAGRAPH.fullmatch(tag):
            self._end(("p",), _PARAGRAPH_SCOPE)
        if tag in _ENDED_BY:
            self._end(_ENDED_BY[tag], _SCOPE)
        element = Element(tag, {name: value or "" for name, value in reversed(attrs)})
        self._open[-1].children.append(element)
        if _VOID.fullmatch(tag) is None and len(self._open) < DEPTH_LIMIT:
            self._open.append(element)
            self._counts[tag] += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if _VOID.fullmatch(tag) is None:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self._end((tag,), frozenset(), once=True)

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def _end(self, tags: tuple[str, ...], scope: frozenset[str], once: bool = False) -> None:
        """End the open elements of these tags, and what is in them, within a scope."""
        if not any(self._counts[tag] for tag in tags):
            return
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag in scope:
                return
            if self._open[depth].tag in tags:
                self._counts.subtract(element.tag for element in self._open[depth:])
                del self._open[depth:]
                if once:
                    return
