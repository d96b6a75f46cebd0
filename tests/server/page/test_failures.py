"""What goes wrong between the page and its server, said in place."""

from __future__ import annotations

import json

import pytest

from tests.support.chat_page import BrowserContext, ChatPage, expect
from tests.support.page_server import Cut, End, Gate, ScriptedServer, ended, said

pytestmark = pytest.mark.slow


def test_a_broken_stream_an_error_in_it_and_a_refusal_are_told_apart(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    gate = Gate()
    server.answer([*said("Half"), gate, Cut()])
    chat.send("One")
    expect(chat.page.locator(".assistant .content")).to_have_text("Half")
    gate.open()
    answer = chat.ended()
    expect(answer.locator(".content")).to_have_text("Half")
    expect(answer.locator(".failure")).to_contain_text("Cut off")
    server.answer([*said("Third"), End()])
    chat.press("Try again")
    expect(chat.ended().locator(".failure")).to_contain_text("Cut off")
    server.answer(
        [*said("Some"), {"error": {"message": "The step failed.", "type": "server_error"}}]
    )
    chat.press("Try again")
    expect(chat.ended().locator(".failure")).to_contain_text("The server refused. The step failed.")
    expect(chat.ended().locator(".content")).to_have_text("Some")
    server.refuse(400, "140 tokens, and the context has 128.", "context_length_exceeded")
    chat.press("Try again")
    expect(chat.ended().locator(".failure")).to_contain_text("140 tokens, and the context has 128.")
    server.answer([ended()])
    chat.press("Try again")
    expect(chat.ended().locator(".failure")).to_contain_text("ended without an answer")
    chat.press("Try again")
    expect(chat.ended().locator(".content")).to_have_text("Hello.")
    expect(chat.ended().locator(".failure")).to_be_hidden()


def test_a_server_that_has_gone_is_named_and_found_again(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    chat.page.route("**/v1/**", lambda route: route.abort("connectionrefused"))
    chat.page.route("**/health", lambda route: route.abort("connectionrefused"))
    expect(chat.ask("Hello").locator(".failure")).to_contain_text("No connection")
    assert "No server answers" in chat.note()
    expect(chat.page.locator("#send")).to_be_disabled()
    chat.page.unroute_all()
    chat.press("Try now")
    expect(chat.page.locator(".note")).to_have_count(0)
    chat.press("Try again")
    expect(chat.ended().locator(".content")).to_have_text("Hello.")


def test_loading_is_shown_until_the_model_is_ready(chat: ChatPage, server: ScriptedServer) -> None:
    server.health = [
        {"status": "loading", "done": 3_200_000_000, "total": 13_800_000_000},
        {"status": "loading", "done": 9_000_000_000, "total": 13_800_000_000},
    ]
    chat.page.goto(server.url)
    assert "3.2 of 13.8 GB" in chat.note()
    chat.page.fill("#prompt", "Early")
    chat.page.press("#prompt", "Enter")
    assert server.requests == []
    expect(chat.page.locator(".note")).to_have_count(0)
    expect(chat.page.locator("#prompt")).to_have_value("Early")
    chat.press("Send")
    expect(chat.ended().locator(".content")).to_have_text("Hello.")


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(
    chat: ChatPage, server: ScriptedServer, context: BrowserContext
) -> None:
    server.key = "secret"
    chat.page.goto(server.url)
    for key in ("wrong", "secret"):
        dialog = chat.page.get_by_role("dialog", name="API key")
        dialog.get_by_label("Key").fill(key)
        dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_be_hidden()
    chat.ready()
    chat.reload()
    expect(chat.ask("Hello").locator(".content")).to_have_text("Hello.")
    assert server.headers[-1]["authorization"] == "Bearer secret"
    assert "secret" not in json.dumps(context.storage_state())
    server.key = "changed"
    chat.ask("And now")
    dialog.get_by_label("Key").fill("changed")
    dialog.get_by_role("button", name="Use this key").click()
    expect(chat.page.locator(".assistant .content").last).to_have_text("Hello.")
