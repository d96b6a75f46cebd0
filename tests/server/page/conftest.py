"""Fixtures of the page's tests: headless Chromium, a scripted server, and a tab on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.chat_page import Browser, BrowserContext, ChatPage, sync_playwright
from tests.support.page_server import ScriptedServer, served

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with served(ScriptedServer()) as server:
        yield server


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()


@pytest.fixture
def chat(server: ScriptedServer, context: BrowserContext) -> Iterator[ChatPage]:
    """A tab, which must not have done anything wrong on its own."""
    chat = ChatPage(context, server.url)
    yield chat
    assert chat.faults == []
