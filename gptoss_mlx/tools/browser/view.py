"""A view of a page: as many numbered lines as fit a budget of tokens, under the page's header."""

from __future__ import annotations

from itertools import accumulate

from gptoss_mlx.harmony.encoding import Encoding
from gptoss_mlx.harmony.merges import LONGEST_TOKEN
from gptoss_mlx.tools.browser.page import Page
from gptoss_mlx.tools.browser.stack import Shown


def view(page: Page, first: int, count: int, encoding: Encoding, tokens: int, most: int) -> Shown:
    """The lines of a page from `first` on that are shown.

    They are those in which the first `tokens` tokens begin; or `count` lines if it is positive, but
    not more than in `most` tokens. There is always one line.
    """
    end = _end(page, first, encoding, most if count > 0 else tokens)
    return Shown(page, first, min(end, first + count) if count > 0 else end)


def written(cursor: int, shown: Shown) -> str:
    """What the model reads of a view."""
    page = shown.page
    place = f" ({page.shown})" if page.shown else ""
    scrollbar = f"viewing lines [{shown.first} - {shown.end - 1}] of {len(page.lines) - 1}"
    lines = "\n".join(_numbered(page, i) for i in range(shown.first, shown.end))
    return f"[{cursor}] {page.title}{place}\n**{scrollbar}**\n\n{lines}"


def _numbered(page: Page, line: int) -> str:
    return f"L{line}: {page.lines[line]}"


def _end(page: Page, first: int, encoding: Encoding, tokens: int) -> int:
    """The line after the one in which the last of the first `tokens` + 1 tokens begins."""
    lines: list[str] = []
    length = 0
    for line in range(first, len(page.lines)):
        if length > (tokens + 1) * LONGEST_TOKEN:  # more cannot count
            break
        lines.append(_numbered(page, line))
        length += len(lines[-1]) + 1
    text = "\n".join(lines)
    if len(text) <= tokens:
        return first + len(lines)
    ids = encoding.encode(text)
    if len(ids) <= tokens:
        return first + len(lines)
    begins = sum(len(encoding.token_bytes(id)) for id in ids[:tokens])
    ends = accumulate(len(line.encode()) + 1 for line in lines)
    return first + next(number for number, end in enumerate(ends, 1) if begins < end)
