"""Access: by keyboard, screen reader and any width, in both colours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.chat_page import LONG_TEXT, Browser, ChatPage, expect
from tests.support.page_server import Gate, ScriptedServer, called, ended, said, thought

pytestmark = pytest.mark.slow


def test_everything_is_done_from_the_keyboard(chat: ChatPage, server: ScriptedServer) -> None:
    chat.open()
    keyboard = chat.page.keyboard
    expect(chat.page.locator("#prompt")).to_be_focused()
    keyboard.type("One")
    keyboard.press("Shift+Enter")
    keyboard.type("two")
    keyboard.press("Enter")
    chat.ended()
    assert server.requests[0]["messages"][0]["content"] == "One\ntwo"
    keyboard.press("ArrowUp")
    expect(chat.page.get_by_label("Edit the message")).to_be_focused()
    keyboard.press("Escape")
    expect(chat.page.get_by_role("button", name="Edit this message")).to_be_focused()
    chat.page.locator("#skip").focus()
    keyboard.press("Enter")
    expect(chat.page.locator("#prompt")).to_be_focused()
    expect(chat.page.locator(".message")).to_have_count(2)
    keyboard.press("Control+Shift+O")
    expect(chat.page.locator("#prompt")).to_be_focused()
    seen = set()
    for _ in range(30):
        keyboard.press("Tab")
        seen.add(
            chat.page.evaluate(
                """() => {
                    const { activeElement: one } = document;
                    const style = getComputedStyle(one.closest('.segments label') ?? one);
                    const name = one.getAttribute('aria-label') || one.id || one.name;
                    // The composer shows the focus of its field, the browser that of its own.
                    const shown = ['prompt', undefined].includes(name);
                    return shown || style.outlineStyle !== 'none' ? name : `unseen ${name}`;
                }"""
            )
        )
    assert [name for name in seen if name and name.startswith("unseen")] == []
    assert {"new", "search", "Settings", "prompt", "model", "Delete One"} <= seen


def test_a_screen_reader_hears_an_answer_once_when_it_has_ended(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    gate = Gate()
    server.answer([*said("Good "), gate, *said("evening"), ended()])
    chat.send("Hello")
    expect(chat.page.locator(".assistant .content")).to_have_text("Good")
    announcer = chat.page.locator("#announcer")
    expect(announcer).to_be_empty()
    expect(chat.page.locator(".assistant")).to_have_attribute("aria-busy", "true")
    gate.open()
    chat.ended()
    expect(announcer).to_have_text("gpt-oss: Good evening")
    assert chat.page.locator("#messages [aria-live], #messages [role=status]").count() == 0


def test_the_colours_are_the_systems_until_they_are_chosen(chat: ChatPage) -> None:
    def dark() -> bool:
        colour = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour[4:-1].split(","))) < 200

    chat.open()
    assert not dark()
    chat.page.emulate_media(color_scheme="dark")
    assert dark()
    chat.press("Settings")
    chat.page.get_by_label("Light").check(force=True)
    assert not dark()
    chat.reload()
    assert not dark()


def test_a_long_conversation_is_shown_from_its_end(chat: ChatPage, server: ScriptedServer) -> None:
    messages = [
        {"role": role, "content": f"{role} {number}", "finish": "stop"}
        for number in range(500)
        for role in ("user", "assistant")
    ]
    chat.open()
    value = {"conversations": [{"id": "long", "title": "Long", "messages": messages}]}
    file = {
        "name": "long.json",
        "mimeType": "application/json",
        "buffer": json.dumps(value).encode(),
    }
    chat.page.set_input_files("#import-file", files=[file])
    expect(chat.page.locator("h1")).to_have_text("Long")
    expect(chat.page.locator(".message")).to_have_count(40)
    expect(chat.page.locator(".message").last).to_be_in_viewport()
    first = chat.page.locator(".message").first.element_handle()
    chat.page.locator("#transcript").evaluate("one => { one.scrollTop = 0; }")
    before = first.bounding_box()
    chat.press("Show earlier messages")
    expect(chat.page.locator(".message")).to_have_count(80)
    after = first.bounding_box()
    assert before is not None
    assert after is not None
    assert abs(after["y"] - before["y"]) < 50
    chat.ask("More")
    assert len(server.requests[-1]["messages"]) == 1001


def test_the_page_follows_the_end_unless_the_person_scrolled(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    gates = [Gate(), Gate()]
    lines = "line\n\n" * 60
    server.answer(
        [*said(lines), gates[0], *said(lines, "middle"), gates[1], *said(lines, "end"), ended()]
    )
    chat.send("Go")
    at_end = """() => {
        const { scrollHeight, scrollTop, clientHeight } = document.querySelector('#transcript');
        return scrollHeight > 1000 && scrollHeight - scrollTop - clientHeight < 60;
    }"""
    chat.page.wait_for_function(at_end)
    gates[0].open()
    expect(chat.page.locator(".assistant .content")).to_contain_text("middle")
    chat.page.wait_for_function(at_end)
    chat.page.locator("#transcript").evaluate("one => { one.scrollTop = 100; }")
    expect(chat.page.locator("#to-end")).to_be_visible()
    gates[1].open()
    chat.ended()
    assert chat.page.locator("#transcript").evaluate("one => one.scrollTop") == 100
    chat.press("To the end")
    chat.page.wait_for_function(at_end)


WIDE = (
    f"{LONG_TEXT}\n\n{'word' * 60}\n\n`{'code' * 60}`\n\n```\n{'x' * 400}\n```\n\n"
    f"|{'head|' * 12}\n|{'---|' * 12}\n|{'cell text|' * 12}\n\n\\[{'x+' * 90}y\\]"
)


STICKS_OUT = """() => [...document.querySelectorAll('body *')].filter((one) =>
    (one.getBoundingClientRect().right > innerWidth + 1
        || (one.clientWidth && one.scrollWidth > one.clientWidth + 1
            && getComputedStyle(one).overflowX === 'visible'))
        && !one.closest('.wide, pre, .visually-hidden, #sidebar')
).map((one) => one.outerHTML.slice(0, 80))"""
"""Elements past the right edge, or with text past their own, but for what scrolls by itself."""


@pytest.mark.parametrize("width", [320, 800, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_nothing_sticks_out(
    browser: Browser, server: ScriptedServer, width: int, scheme: Any
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 700}, color_scheme=scheme, reduced_motion="reduce"
    )
    chat = ChatPage(context, server.url)

    def check(state: str) -> None:
        assert chat.grave() == [], state
        assert chat.page.evaluate(STICKS_OUT) == [], state

    chat.open()
    check("empty")
    server.answer([*thought("Hm " * 300), *said(WIDE), ended(thoughts=300)])
    chat.ask("x" * 300).locator("summary").click()
    check("a long answer")
    server.answer([*called("get_weather", json.dumps({"city": "x" * 300})), ended("tool_calls")])
    chat.ask("Tool")
    check("a call")
    server.refuse(400, "x" * 300)
    chat.ask("Error")
    check("an error")
    chat.page.get_by_role("button", name="Edit this message").last.click()
    check("an edit")
    chat.press("Settings")
    check("the settings")
    chat.press("API key…")
    check("the key")
    chat.page.keyboard.press("Escape")
    chat.press("Close the settings")
    if width < 800:
        chat.page.get_by_role("button", name="Conversations", exact=True).click()
        expect(chat.page.locator("#search")).to_be_focused()
        check("the conversations")
        chat.page.keyboard.press("Escape")
        expect(chat.page.locator("#open-sidebar")).to_be_focused()
    assert chat.faults == []
    context.close()
