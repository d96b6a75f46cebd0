"""Markdown as lines for a terminal, which nothing in the text controls.

No letter or digit of the text is ever left out: a block that would lose one, such as a table with
too many cells, is shown as it is written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from rich import markdown
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from gptoss_mlx.cli.chat.blocks import MarkdownBlock
from gptoss_mlx.cli.terminal import harmless

if TYPE_CHECKING:
    from markdown_it.token import Token

_THEME = "ansi_dark"  # the terminal's own colours, on its own background
_LOOKS = Theme({"markdown.code": "cyan", "markdown.code_block": "none"})
_STYLE = re.compile(r"\x1b\[[\d;]*m")
_WORDS = re.compile(r"[^\W_]")
# An entity may stand for a control character; a reference or HTML would not be shown at all.
_UNUSED = ["entity", "reference", "html_block", "html_inline", "image"]


class Painter:
    """Turns blocks into lines, coloured as the console is, that fit its width."""

    def __init__(self, console: Console) -> None:
        self._console = console
        console.push_theme(_LOOKS)
        self._parser = MarkdownIt().enable(["strikethrough", "table"]).disable(_UNUSED)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows. The last column stays free: terminals differ in what follows it."""
        width, height = self._console.size
        return max(1, width - 1), height

    def paint(self, block: MarkdownBlock) -> list[str]:
        block = replace(
            block,
            lines=tuple(map(harmless, block.lines)),
            before=tuple(map(harmless, block.before)),
        )
        if block.kind == "blank":
            return [""]
        if block.kind == "fence":
            return self._lines(Text(block.text, style="dim", overflow="fold"))
        if block.kind == "code":
            return self._lines(_coloured(block))
        document = _Document("", hyperlinks=False, code_theme=_THEME)
        document.parsed = self._parser.parse(block.text)
        try:
            lines = self._lines(document)
        except Exception:  # of any kind: a library that fails on a text must not hide it
            return self.plain(block.text)
        lines = _without_margin(lines)
        wanted = Counter(_WORDS.findall(block.text)) - _languages(document.parsed)
        shown = Counter(_WORDS.findall(_STYLE.sub("", "\n".join(lines))))
        return lines if wanted <= shown else self.plain(block.text)

    def plain(self, text: str, style: str = "") -> list[str]:
        """A text as it is, in lines that fit."""
        return self._lines(Text(harmless(text), style=style, overflow="fold"))

    def code(self, text: str, language: str) -> list[str]:
        """Code as it is, coloured by the syntax of a language, in lines that fit."""
        text = harmless(text).expandtabs(4).strip("\n")
        painted = Syntax(text, language, theme=_THEME).highlight(text)
        painted.rstrip()
        if painted.plain != text.rstrip():
            return self.plain(text)
        painted.overflow, painted.no_wrap = "fold", False
        return self._lines(painted)

    def _lines(self, renderable: RenderableType) -> list[str]:
        with self._console.capture() as capture:
            self._console.print(renderable, width=self.size[0], end="")
        # Colours do not reach over the end of a line, as rich writes them.
        return [harmless_line(line) for line in capture.get().rstrip("\n").split("\n")]


def harmless_line(line: str) -> str:
    """A line in which nothing but its styles controls the terminal."""
    pieces = _STYLE.split(line)
    styles = [*_STYLE.findall(line), ""]
    return "".join(harmless(a) + b for a, b in zip(pieces, styles, strict=True)).rstrip(" ")


def _coloured(block: MarkdownBlock) -> Text:
    """A line of code by the syntax of its language, where that is known."""
    line = block.lines[0].expandtabs(4)
    plain = Text(line, overflow="fold")
    if not block.language:
        return plain
    code = "\n".join((*block.before, block.lines[0]))
    syntax = Syntax(code, block.language, theme=_THEME, tab_size=4)
    if syntax.lexer is None:
        return plain
    painted = list(syntax.highlight(code).split("\n", allow_blank=True))[: len(block.before) + 1]
    if painted[-1].plain != line:
        return plain
    painted[-1].overflow, painted[-1].no_wrap = "fold", False
    return painted[-1]


def _languages(tokens: list[Token]) -> Counter[str]:
    """The letters of the languages of code in a block, which are not shown."""
    return Counter("".join(token.info for token in tokens if token.type == "fence"))


def _without_margin(lines: list[str]) -> list[str]:
    """Without the empty lines before and after."""
    filled = [i for i, line in enumerate(lines) if _STYLE.sub("", line).strip()]
    return lines[filled[0] : filled[-1] + 1] if filled else [""]


class _Heading(markdown.Heading):
    """A heading at the left."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.assemble(self.text, style="bold underline" if self.tag == "h1" else "bold")


class _Code(markdown.CodeBlock):
    """Code inside an item or a quotation, without a background."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip("\n")
        yield Syntax(
            code, self.lexer_name, theme=self.theme, word_wrap=True, background_color="default"
        )


class _Item(markdown.ListItem):
    """An item whose number has the full stop that it was written with."""

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> Iterator[Segment]:
        mark = f" {number}. "
        inner = options.update(width=max(1, options.max_width - len(mark)))
        style = console.get_style("markdown.item.number", default="none")
        for i, line in enumerate(console.render_lines(self.elements, inner, style=self.style)):
            yield Segment(" " * len(mark) if i else mark, style)
            yield from line
            yield Segment("\n")


class _Document(markdown.Markdown):
    elements = markdown.Markdown.elements | {
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "list_item_open": _Item,
    }
