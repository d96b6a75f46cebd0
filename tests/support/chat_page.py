"""The chat page in a browser, as a person uses it: write, read, wait, press."""

from __future__ import annotations

import shutil
from typing import Any

from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


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
        self.page.locator("#model option").first.wait_for(state="attached")
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
