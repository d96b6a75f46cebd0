"""What a call of the browser does, as OpenAI's clients read it."""

from __future__ import annotations

from contextlib import suppress

from gptoss_mlx.server.openai.output_items import BrowserAction, SearchSource
from gptoss_mlx.tools.browser.arguments import FindCall, OpenCall, SearchCall, read_call
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.page import Page
from gptoss_mlx.tools.browser.source import BrowsingError


def begun_action(recipient: str, arguments: str, browser: BrowserTool) -> BrowserAction:
    """The action of a call that is to be run; empty where the model wrote it wrongly."""
    call: SearchCall | OpenCall | FindCall | None = None
    with suppress(BrowsingError):  # which the model is told when the call is run
        call = read_call(recipient, arguments)
    if recipient == "browser.open":
        id = call.id if isinstance(call, OpenCall) else None
        return {"type": "open_page", "url": id if isinstance(id, str) else None}
    if recipient == "browser.find":
        if not isinstance(call, FindCall):
            return {"type": "find_in_page", "url": "", "pattern": ""}
        page = browser.page(call.cursor)
        return {
            "type": "find_in_page",
            "url": "" if page is None else page.url,
            "pattern": call.pattern,
        }
    query = call.query if isinstance(call, SearchCall) else ""
    return {"type": "search", "query": query, "queries": [query] if query else []}


def ended_action(action: BrowserAction, page: Page, with_sources: bool) -> BrowserAction:
    """The action when the call has shown a page."""
    if action["type"] == "open_page":
        return {**action, "url": page.url}
    if action["type"] == "search" and with_sources:
        urls = dict.fromkeys(link.url for link in page.links.values())
        sources: list[SearchSource] = [{"type": "url", "url": url} for url in urls]
        return {**action, "sources": sources}
    return action
