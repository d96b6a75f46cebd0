"""Servers of tools on the page: switched on, shown, asked about; what they give is data."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.chat_page import BrowserContext, ChatPage, expect
from tests.support.page_responses import answered, begun, called_server, completed
from tests.support.page_server import ScriptedServer
from tests.support.scripted_model import Scripted
from tests.support.served_mcp import mcp_kit, written
from tests.support.served_tools import DONE, tooled
from tests.tools.mcp.conftest import odd

pytestmark = pytest.mark.slow

HTML = "<img src=x onerror='window.ran=1'><b>bold</b>"


@pytest.fixture
def page(chat: ChatPage, server: ScriptedServer) -> ChatPage:
    """A page whose server has servers of tools; one is switched on."""
    server.models[0]["server_tools"] = {"notes": "ask", "ask_big": "ask", HTML: "allow"}
    chat.open()
    chat.page.get_by_label("notes", exact=True).check(force=True)
    return chat


def test_servers_are_offered_and_asked_for_by_their_labels(
    page: ChatPage, server: ScriptedServer
) -> None:
    expect(page.page.locator("#served label:visible")).to_have_text(["notes", "ask_big", HTML])
    page.page.get_by_label("ask_big", exact=True).check(force=True)
    server.answer([*begun(), *answered(0, "Hello."), completed()])
    page.ask("Hi")
    assert server.requests[0]["tools"] == [
        {"type": "mcp", "server_label": name, "require_approval": "never"}
        for name in ("notes", "ask_big")
    ]
    assert server.requests[0]["tool_approval"] == "ask"


def test_calls_are_folded_and_outlive_a_reload(page: ChatPage, server: ScriptedServer) -> None:
    arguments = json.dumps({"text": HTML})
    server.answer(
        [
            *begun(),
            *called_server(0, arguments, HTML),
            *called_server(1, "{}", None, error=f"no {HTML}"),
            *called_server(2, "{}", "Paris.", names=("ask_big", "ask_big")),
            *called_server(3, "{}", HTML, names=(HTML, HTML[1:])),
            *answered(4, "Done."),
            completed(),
        ]
    )
    for again in (False, True):
        if again:
            page.reload()
        answer = page.ended() if again else page.ask("Find")
        runs = answer.locator(".run")
        names = ["notes: find", "notes: find · failed", "ask_big", f"{HTML}: {HTML[1:]}"]
        expect(runs.locator("summary")).to_have_text(names)
        expect(runs.first.locator(".result")).to_be_hidden()
        for summary in runs.locator("summary").all():
            summary.click()
        expect(runs.first.locator("code")).to_have_text(arguments)
        expect(runs.locator(".result")).to_have_text([HTML, f"no {HTML}", "Paris.", HTML])
        assert page.page.evaluate("window.ran") is None
    assert page.grave() == []


@pytest.mark.parametrize("word", ["Run", "Decline"])
def test_a_call_waits_for_the_person(page: ChatPage, server: ScriptedServer, word: str) -> None:
    asked = server.approved
    calls = called_server(0, '{"a": 1}', "ok", asked=asked)
    server.answer([*begun(), *calls, *answered(1, "Done."), completed()])
    page.send("Do it")
    expect(page.page.locator(".run code")).to_have_text('{"a": 1}')
    expect(page.page.locator(".question")).to_contain_text("May notes: find do this?")
    expect(page.page.locator("#announcer")).to_contain_text("run or decline")
    page.press(word)
    expect(page.page.locator(".question")).to_be_hidden()
    expect(page.ended().locator(".content")).to_have_text("Done.")
    assert server.words == [("resp_1", "mcp_0", word == "Run")]


@pytest.mark.parametrize("width", [320, 1280])
def test_many_servers_fit(chat: ChatPage, server: ScriptedServer, width: int) -> None:
    names = [f"{letter * 40}" for letter in "abcdefghij"]
    server.models[0]["server_tools"] = dict.fromkeys(names, "allow")
    chat.page.set_viewport_size({"width": width, "height": 700})
    chat.open()
    assert chat.grave() == []
    wide = "() => document.documentElement.scrollWidth > innerWidth"
    assert not chat.page.evaluate(wide)


def test_with_the_server_itself(context: BrowserContext) -> None:
    calls = [written("odd_echo", text_=HTML), written("odd_echo", text_="no")]
    with mcp_kit(odd(), rules={"odd": "ask"}) as kit, tooled(Scripted(*calls, DONE), kit) as served:
        chat = ChatPage(context, served.url).open()
        chat.page.get_by_label("odd", exact=True).check(force=True)
        chat.send("echo")
        chat.press("Run")
        expect(chat.page.locator(".run summary").last).to_have_text(re.compile("waits"))
        expect(chat.page.locator(".run")).to_have_count(2)
        chat.press("Decline")
        answer = chat.ended()
        summaries = ["odd: echo", "odd: echo · failed"]
        expect(answer.locator(".run summary")).to_have_text(summaries)
        results = [HTML, "The user has declined this call."]
        for summary in answer.locator(".run summary").all():
            summary.click()
        expect(answer.locator(".run .result")).to_have_text(results)
        assert chat.page.evaluate("window.ran") is None
    assert chat.faults == []
