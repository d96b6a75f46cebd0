"""HTML as the text that the model reads: links numbered, headings, lists, tables and code kept.

Scripts, styles, forms and hidden elements are dropped, and what is around the content: navigation,
asides and the footer of the page. Where that leaves nothing, only the former are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from gptoss_mlx.tools.browser.html_lines import HtmlLines
from gptoss_mlx.tools.browser.html_tree import Element, parse_html
from gptoss_mlx.tools.browser.page import TITLE_LIMIT, Link
from gptoss_mlx.tools.browser.plain import one_line, plain
from gptoss_mlx.tools.browser.results import link_text

_DROPPED = re.compile(
    r"script|style|template|iframe|frame|object|embed|svg|canvas|audio|video|map|head|"
    r"title|select|option|datalist|button|input|textarea"
)
_NOTHING: frozenset[str] = frozenset()
_IN_MAIN = frozenset(("nav", "navigation", "search"))
_AROUND = _IN_MAIN | {"aside", "footer", "banner", "contentinfo", "complementary"}
"""Tags and roles of what is around the content."""
_HIDDEN = re.compile(r"display:none|visibility:hidden|font-size:0(?![.\d])|opacity:0(?![.\d])")
_HEADING = re.compile(r"h[1-6]")
_PARAGRAPHS = re.compile(r"p|blockquote|figure|table|form|fieldset|details")
_BLOCKS = re.compile(
    r"address|article|aside|body|center|dd|div|dt|figcaption|footer|header|html|legend|li|"
    r"main|nav|optgroup|section|summary|tbody|td|tfoot|th|thead|tr|caption"
)
_IN_LAYOUT = re.compile("table|pre|ul|ol")
_ROWS = {
    "table": ("caption", "colgroup", "thead", "tbody", "tfoot", "tr"),
    **dict.fromkeys(("thead", "tbody", "tfoot"), ("tr",)),
    "tr": ("td", "th"),
}
"""What may stand in a table's parts."""
_MARKED = re.compile(r"[\w\-]+")
_PERMALINKS = ("¶", "#", "§", "🔗")
_LEAST = 200
"""Characters of a main part; one with fewer may be a frame that scripts fill, and all is shown."""


@dataclass(frozen=True)
class HtmlText:
    """title: "" if the page has none. text: plain but for the marks of `links`."""

    title: str
    text: str
    links: dict[int, Link] = field(default_factory=dict)


def html_text(source: str, resolve: Callable[[str], tuple[str, str] | None]) -> HtmlText:
    """The text of a page.

    resolve: gives the URL that a link's href stands for and what is shown after its text, such as
    the domain of another site; None for one that leads nowhere.
    """
    root = parse_html(source)
    heading = root.first("title") or root.first("h1")
    title = one_line(heading.text(), TITLE_LIMIT) if heading is not None else ""
    main = _main(root)
    for part, around, least in ((main, _IN_MAIN, _LEAST), (root, _AROUND, 1), (root, _NOTHING, 0)):
        writer = _Writer(resolve, around)
        if part is not None:
            writer.element(part)
        text = writer.lines.text()
        if part is not None and len(text) >= least:
            return HtmlText(title, text, writer.links)
    return HtmlText(title, "")


def _main(root: Element) -> Element | None:
    """The main part of a page: a main element, or the only article."""
    elements = [part for part in root.walk() if isinstance(part, Element)]
    for part in elements:
        if part.tag == "main" or part.attributes.get("role") == "main":
            return part
    articles = [part for part in elements if part.tag == "article"]
    return articles[0] if len(articles) == 1 else None


class _Writer:
    """Walks a tree once. around: tags and roles of what is left out."""

    def __init__(
        self, resolve: Callable[[str], tuple[str, str] | None], around: frozenset[str]
    ) -> None:
        self.lines, self.links = HtmlLines(), dict[int, Link]()
        self._numbers: dict[str, int] = {}
        self._resolve, self._around = resolve, around
        self._images = 0

    def element(self, element: Element) -> None:
        tag, lines = element.tag, self.lines
        if self._is_dropped(element):
            return
        if tag == "a":
            self._link(element)
        elif tag == "br":
            lines.end()
        elif tag == "hr":
            lines.paragraph()
            lines.write("* * *")
            lines.paragraph()
        elif tag == "img":
            self._image(element)
        elif tag == "pre":
            lines.block([" " * 4 + line for line in _code(element)])
        elif tag in ("code", "kbd", "samp", "tt"):
            text = _flat(element)
            lines.write(f"`{text}`" if text else "")
        elif tag in ("sup", "sub"):
            text = _flat(element)
            mark = "^" if tag == "sup" else "_"
            lines.write(f"{mark}{{{text}}}" if _MARKED.fullmatch(text) else text)
        elif tag == "math":
            lines.write(plain(element.attributes.get("alttext", "")))
        elif _HEADING.fullmatch(tag):
            lines.paragraph()
            lines.write("#" * int(tag[1]) + " ")
            self._children(element)
            lines.paragraph()
        elif tag in ("ul", "ol", "menu", "dl"):
            self._list(element)
        elif tag == "table" and not _is_layout(element):
            self._table(element)
        else:
            self._block(element)

    def _block(self, element: Element) -> None:
        tag, lines = element.tag, self.lines
        if _PARAGRAPHS.fullmatch(tag):
            lines.paragraph()
        elif _BLOCKS.fullmatch(tag):
            lines.end()
        with lines.indented("> " if tag == "blockquote" else ""):
            self._children(element)
            if _PARAGRAPHS.fullmatch(tag):
                lines.paragraph()
            elif _BLOCKS.fullmatch(tag):
                lines.end()

    def _children(self, element: Element) -> None:
        for child in element.children:
            if isinstance(child, str):
                self.lines.write(plain(child))
            else:
                self.element(child)

    def _list(self, element: Element) -> None:
        lines = self.lines
        nested = lines.in_list
        if not nested:
            lines.paragraph()
        number = _start(element)
        for child in element.children:
            if isinstance(child, str):
                lines.write(plain(child))
            elif child.tag == "dd":
                with lines.indented("    "):
                    self._block(child)
            elif child.tag != "li" or self._is_dropped(child):
                self.element(child)
            else:
                mark = f"  {number}. " if element.tag == "ol" else "  * "
                number += 1
                with lines.item(mark):
                    self._children(child)
        lines.end()
        if not nested:
            lines.paragraph()

    def _table(self, table: Element) -> None:
        """A line for each row, its cells apart by bars, so that an empty one is seen."""
        rows = []
        for part in table.walk():
            if isinstance(part, Element) and part.tag in ("tr", "caption"):
                cells = [part] if part.tag == "caption" else _cells(part)
                row = " | ".join(self._inline(cell) for cell in cells if not self._is_dropped(cell))
                rows += [row.rstrip()] if row.strip(" |") else []
        self.lines.block(rows)

    def _inline(self, element: Element) -> str:
        """What an element is written as in one line."""
        outside, self.lines = self.lines, HtmlLines()
        try:
            self._children(element)
            return " ".join(self.lines.text().split())
        finally:
            self.lines = outside

    def _link(self, element: Element) -> None:
        href = element.attributes.get("href", "").strip()
        text = link_text(_flat(element), TITLE_LIMIT)
        if text in _PERMALINKS:
            return
        found = self._resolve(href) if text and href and not href.startswith("#") else None
        if found is None:
            self._children(element)
            return
        url, place = found
        number = self._numbers.setdefault(url, len(self._numbers))
        self.links.setdefault(number, Link(url, text))
        place = link_text(place, TITLE_LIMIT)
        self.lines.write(f"【{number}†{text}†{place}】" if place else f"【{number}†{text}】")

    def _image(self, element: Element) -> None:
        name = one_line(element.attributes.get("alt", ""), TITLE_LIMIT)
        if name:
            self.lines.write(f"[Image {self._images}: {name}]")
            self._images += 1

    def _is_dropped(self, element: Element) -> bool:
        role = element.attributes.get("role", "")
        return _is_unseen(element) or not self._around.isdisjoint((element.tag, role))


def _is_unseen(element: Element) -> bool:
    attributes = element.attributes
    return (
        _DROPPED.fullmatch(element.tag) is not None
        or "hidden" in attributes
        or attributes.get("aria-hidden") == "true"
        or _HIDDEN.search(attributes.get("style", "").lower().replace(" ", "")) is not None
    )


def _seen(element: Element) -> str:
    """The text in an element as it stands, of what a person would see."""
    texts, rest = list[str](), list[Element | str]([element])
    while rest:
        part = rest.pop()
        if isinstance(part, str):
            texts.append(part)
        elif part.tag == "br":
            texts.append("\n")
        elif not _is_unseen(part):
            kinds = (_BLOCKS, _PARAGRAPHS, _HEADING) if part is not element else ()
            rest += ["\n"] if any(kind.fullmatch(part.tag) for kind in kinds) else []
            rest += reversed(part.children)
    return plain("".join(texts))


def _flat(element: Element) -> str:
    return " ".join(_seen(element).split())


def _code(element: Element) -> list[str]:
    return _seen(element).strip("\n").expandtabs(8).split("\n")


def _cells(row: Element) -> list[Element]:
    return [part for part in row.children if isinstance(part, Element) and part.tag in ("td", "th")]


def _is_layout(table: Element) -> bool:
    """Whether a table is there for its layout, or is broken: not just rows of cells of text."""
    if table.attributes.get("role") == "presentation":
        return True
    for part in table.walk():
        if not isinstance(part, Element):
            continue
        if part is not table and (_IN_LAYOUT.fullmatch(part.tag) or _HEADING.fullmatch(part.tag)):
            return True
        if part.tag in _ROWS and not all(
            _is_row(child, _ROWS[part.tag]) for child in part.children
        ):
            return True
    return False


def _is_row(child: Element | str, tags: tuple[str, ...]) -> bool:
    return child.tag in tags if isinstance(child, Element) else not child.strip()


def _start(element: Element) -> int:
    """The first number of a list."""
    start = element.attributes.get("start", "")
    return int(start) if re.fullmatch(r"[0-9]{1,9}", start) else 1
