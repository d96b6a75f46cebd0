"""The chat page in a browser, as a person uses it: write, read, wait, press."""

from __future__ import annotations

from typing import Any

import pytest

# What imports this module is skipped where a browser cannot be driven.
pytest.importorskip(
    "axe_playwright_python", reason="playwright is not installed (pip install -e '.[clients]')"
)

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    expect,
    sync_playwright,
)

__all__ = ["LONG_TEXT", "Browser", "BrowserContext", "ChatPage", "expect", "sync_playwright"]

LONG_TEXT = """# A heading

A paragraph with *emphasis*, **weight**, `code` and [a link](https://example.com/a_b).
Its second line
***bold*** and more

- one
- two

  with a paragraph
- three
  1. nested
  2. twice

> quoted
# not quoted
> > deep

| a | b |
|---|--:|
| 1 | 2 |

```python
def f(x):  # a comment
    return "text"

- not a list
```

Setext
======

    indented

\\[
x^2
\\]

Text with \\(y\\) and $z$, not $5 or $6.

---
1. last
- *item
* other
"""
"""Every kind of Markdown, and lines that look like another kind at first."""


class ChatPage:
    """One tab. What it does wrong on its own (a violation of the policy, an error that nothing
    catches, a request to elsewhere) is collected in `faults`."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.url = url
        self.faults: list[str] = []
        self.page.set_default_timeout(20_000)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.faults.append(f"{error}"))
        self.page.on("dialog", lambda dialog: self.faults.append(f"dialog {dialog.message}"))
        self.page.on("request", self._see)

    def _hear(self, message: ConsoleMessage) -> None:
        expected = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not expected:
            self.faults.append(message.text)

    def _see(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.faults.append(f"a request to {request.url}")

    def open(self, address: str = "") -> ChatPage:
        """Opens the page; when it returns, the model can be asked."""
        self.page.goto(f"{self.url}/{address}")
        return self.ready()

    def reload(self) -> ChatPage:
        self.page.reload()
        return self.ready()

    def ready(self) -> ChatPage:
        self.page.locator("#send[aria-label=Send]").wait_for()
        return self

    def send(self, text: str) -> None:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def ask(self, text: str) -> Locator:
        """Sends a message and waits for the end of its answer."""
        self.send(text)
        return self.ended()

    def ended(self) -> Locator:
        """The last answer, once it has ended."""
        self.page.locator("#send .icon-send").wait_for()
        return self.page.locator(".message.assistant").last

    def press(self, name: str, within: Locator | None = None) -> None:
        """Presses the button, or follows the link, of that name."""
        scope = within or self.page
        button = scope.get_by_role("button", name=name, exact=True)
        button.or_(scope.get_by_role("link", name=name, exact=True)).last.click()

    def texts(self) -> list[str]:
        """What each message says."""
        return self.page.locator(".message .content").all_inner_texts()

    def titles(self) -> list[str]:
        return self.page.locator("#conversations li a").all_inner_texts()

    def note(self) -> str:
        self.page.locator(".note").first.wait_for()
        return self.page.locator("#notes").inner_text()

    def grave(self) -> list[tuple[str, list[str]]]:
        """What axe-core finds that is serious or critical: the rule, and the elements."""
        return [
            (found["id"], [node["html"] for node in found["nodes"]])
            for found in Axe().run(self.page).response["violations"]
            if found["impact"] in ("serious", "critical")
        ]
