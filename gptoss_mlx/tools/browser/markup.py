"""HTML as the text that the model reads: links numbered, headings, lists, tables and code kept.

Python's own parser makes a small tree, which is walked once. It needs no library, takes any input,
and nothing of a page runs. Scripts, styles, forms and hidden elements are dropped, and navigation
around the content, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser

DEPTH_LIMIT = 200
"""Elements inside one another; what is deeper stands in the last of them."""

_VOID = frozenset(
    "area base br col embed hr img input link meta param source track wbr keygen".split()
)
_ENDED_BY = {
    "li": ("li",),
    "dt": ("dt", "dd"),
    "dd": ("dt", "dd"),
    "tr": ("tr", "td", "th"),
    "td": ("td", "th"),
    "th": ("td", "th"),
    "option": ("option",),
}
"""By a tag that begins, the open elements that it ends, up to their list or table."""
_SCOPE = frozenset(("ul", "ol", "dl", "table", "menu", "select"))
_ENDS_PARAGRAPH = frozenset(
    "address article aside blockquote div dl fieldset figure footer form h1 h2 h3 h4 h5 h6 header"
    " hr main nav ol p pre section table ul".split()
)


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
    builder.feed(text)
    builder.feed("<p></p>")  # has the text before it given out
    return builder.root


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("html")
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _ENDS_PARAGRAPH:
            self._end(("p",), frozenset(("td", "th", "li", "button")))
        if tag in _ENDED_BY:
            self._end(_ENDED_BY[tag], _SCOPE)
        element = Element(tag, {name: value or "" for name, value in reversed(attrs)})
        self._open[-1].children.append(element)
        if tag not in _VOID and len(self._open) < DEPTH_LIMIT:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)  # HTML ignores the slash, but in SVG and MathML
        if tag in ("script", "style", "iframe", "svg", "math", "path"):
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag == tag:
                del self._open[depth:]
                return

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)

    def unknown_decl(self, data: str) -> None:
        """A section such as CDATA; the parser's own method raises for some."""

    def _end(self, tags: tuple[str, ...], scope: frozenset[str]) -> None:
        """End the open elements of these tags, and what is in them, within a scope."""
        for depth in range(len(self._open) - 1, 0, -1):
            if self._open[depth].tag in scope:
                return
            if self._open[depth].tag in tags:
                del self._open[depth:]
