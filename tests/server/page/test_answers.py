"""An answer: asked for, streamed, stopped, asked for again, and read out."""

from __future__ import annotations

import json

import pytest

from tests.support.chat_page import ChatPage, expect
from tests.support.page_server import Gate, ScriptedServer, called, delta, ended, said, thought

pytestmark = pytest.mark.slow


def test_an_answer_with_reasoning_outlives_a_reload(chat: ChatPage, server: ScriptedServer) -> None:
    chat.open()
    server.answer(
        [
            *thought("The user ", "greets."),
            *said("Good ", "**morning**"),
            ended(prompt=1204, answer=12, thoughts=7),
        ]
    )
    for again in (False, True):
        if again:
            chat.reload()
        answer = chat.ended() if again else chat.ask("Hello there")
        expect(answer.locator(".content strong")).to_have_text("morning")
        expect(answer.locator("summary")).to_contain_text("7 tokens")
        expect(answer.locator(".thoughts")).to_be_hidden()
        expect(answer.locator(".facts")).to_contain_text("41.3 tokens/s")
        expect(chat.page.locator("#context-text")).to_have_text("1,216 of 131,072 tokens")
        expect(chat.page.locator("h1")).to_have_text("Hello there")
    answer.locator("summary").click()
    expect(answer.locator(".thoughts")).to_have_text("The user greets.")


def test_a_request_says_what_was_chosen(chat: ChatPage, server: ScriptedServer) -> None:
    server.models.append({"id": "gpt-oss-120b", "object": "model", "context_length": 4096})
    chat.open()
    chat.page.get_by_label("High").check(force=True)
    chat.page.select_option("#model", "gpt-oss-120b")
    chat.press("Settings")
    for label, value in {"System prompt": "Be brief.", "Temperature": "0.5"}.items():
        chat.page.get_by_label(label).fill(value)
    chat.page.get_by_label("Longest answer, tokens").fill("99")
    chat.press("Close the settings")
    chat.ask("One")
    chat.ask("Two")
    assert server.requests[1] == {
        "model": "gpt-oss-120b",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Two"},
        ],
        "reasoning_effort": "high",
        "temperature": 0.5,
        "max_completion_tokens": 99,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_stop_ends_the_request_and_keeps_what_came(chat: ChatPage, server: ScriptedServer) -> None:
    chat.open()
    server.answer([*said("Half of an"), Gate(), *said(" answer"), ended()])
    chat.send("Write")
    expect(chat.page.locator(".assistant .content")).to_have_text("Half of an")
    chat.page.keyboard.press("Escape")
    answer = chat.ended()
    assert server.aborted.wait(10)
    expect(answer.locator(".content")).to_have_text("Half of an")
    expect(answer.locator(".failure")).to_contain_text("Stopped.")
    chat.press("Try again")
    expect(chat.ended().locator(".content")).to_have_text("Hello.")
    assert chat.texts() == ["Write", "Hello."]


def test_an_answer_goes_on_while_another_conversation_is_shown(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    gate = Gate()
    server.answer([*said("First "), gate, *said("second"), ended()])
    chat.send("Long one")
    expect(chat.page.locator(".assistant .content")).to_have_text("First")
    chat.press("New conversation")
    expect(chat.page.locator("#welcome")).to_be_visible()
    chat.ask("Short one")
    assert chat.texts() == ["Short one", "Hello."]
    chat.page.locator("li.running a").click()
    expect(chat.page.locator(".assistant .content")).to_have_text("First")
    gate.open()
    expect(chat.ended().locator(".content")).to_have_text("First second")
    chat.reload()
    expect(chat.ended().locator(".content")).to_have_text("First second")


def test_the_back_button_shows_the_conversation_before(chat: ChatPage) -> None:
    chat.open()
    chat.ask("One")
    chat.press("New conversation")
    chat.ask("Two")
    chat.page.go_back()
    expect(chat.page.locator("h1")).to_have_text("One")
    assert chat.texts() == ["One", "Hello."]


def test_an_edit_replaces_what_follows_and_can_be_undone(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    chat.ask("One")
    chat.ask("Two")
    chat.page.get_by_role("button", name="Edit this message").first.click()
    area = chat.page.get_by_label("Edit the message")
    expect(area).to_be_focused()
    area.fill("Three")
    server.answer([*said("Third."), ended()])
    chat.press("Send again")
    expect(chat.ended().locator(".content")).to_have_text("Third.")
    assert chat.texts() == ["Three", "Third."]
    assert server.requests[-1]["messages"] == [{"role": "user", "content": "Three"}]
    chat.press("Undo")
    expect(chat.page.locator(".message")).to_have_count(4)
    assert chat.texts() == ["One", "Hello.", "Two", "Hello."]


def test_answer_again_while_it_runs_leaves_one_answer(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    chat.ask("One")
    gate = Gate()
    server.answer([*said("Slow"), gate, ended()])
    chat.press("Answer again")
    expect(chat.page.locator(".assistant .content")).to_have_text("Slow")
    chat.page.get_by_role("button", name="Edit this message").click()
    chat.page.get_by_label("Edit the message").fill("Other")
    server.answer([*said("New"), Gate(), ended()])
    chat.press("Send again")
    expect(chat.page.locator(".assistant .content")).to_have_text("New")
    assert server.aborted.wait(10)
    gate.open()
    chat.press("Stop the answer")
    expect(chat.ended().locator(".failure")).to_contain_text("Stopped.")
    assert chat.texts() == ["Other", "New"]


TOOL = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}


def test_a_call_is_shown_and_its_typed_result_goes_on(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    chat.press("Settings")
    tools = chat.page.get_by_label("Tools, a JSON list")
    tools.fill("[{")
    expect(chat.page.locator("#tool-error")).to_contain_text("not JSON")
    tools.fill(json.dumps([TOOL]))
    expect(chat.page.locator("#tool-error")).to_be_empty()
    chat.press("Close the settings")
    server.answer(
        [
            *thought("Ask for it."),
            *called("get_weather", '{"city":"Par', 'is"}'),
            *called("get_time", "{}", index=1),
            ended("tool_calls"),
        ]
    )
    answer = chat.ask("Weather?")
    expect(answer.locator("pre").first).to_have_text('{\n  "city": "Paris"\n}')
    chat.reload()
    chat.page.get_by_label("Result of get_weather").fill("sunny")
    chat.page.get_by_label("Result of get_time").fill("noon")
    server.answer([*said("Sunny at noon."), ended()])
    chat.press("Go on")
    expect(chat.ended().locator(".content")).to_have_text("Sunny at noon.")
    request = server.requests[-1]
    assert request["tools"] == [{"type": "function", "function": TOOL}]
    calls = [
        {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": text}}
        for name, text in (("get_weather", '{"city":"Paris"}'), ("get_time", "{}"))
    ]
    assert request["messages"][1:] == [
        {"role": "assistant", "content": None, "reasoning": "Ask for it.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_get_weather", "content": "sunny"},
        {"role": "tool", "tool_call_id": "call_get_time", "content": "noon"},
    ]


def test_a_call_that_is_passed_over_has_a_result_all_the_same(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    server.answer([*called("get_time", "{}"), ended("tool_calls")])
    chat.ask("Time?")
    chat.ask("Never mind")
    roles = [message["role"] for message in server.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "user"]


def test_reading_a_long_prompt_is_shown(chat: ChatPage, server: ScriptedServer) -> None:
    chat.open()
    gate = Gate()
    server.answer([": prefill 1024/8192", gate, *said("Read."), ended()])
    chat.send("Long")
    wait = chat.page.locator(".wait")
    expect(wait).to_contain_text("Reading 1,024 of 8,192 tokens")
    gate.open()
    expect(chat.ended().locator(".content")).to_have_text("Read.")
    expect(wait).to_be_hidden()


def test_writing_what_is_held_back_is_shown(chat: ChatPage, server: ScriptedServer) -> None:
    chat.open()
    gate = Gate()
    server.answer([": held 1024", gate, *said("Passed."), ended()])
    chat.send("Long")
    wait = chat.page.locator(".wait")
    expect(wait).to_have_text("Writing, 1,024 tokens so far, to be judged first")
    gate.open()
    expect(chat.ended().locator(".content")).to_have_text("Passed.")
    expect(wait).to_be_hidden()


def test_a_delta_may_hold_anything(chat: ChatPage, server: ScriptedServer) -> None:
    chat.open()
    server.answer(
        [
            ": keep-alive",
            "event: ping\ndata: {}",
            {"choices": []},
            {"choices": [{"index": 0}]},
            delta(role="assistant", content=None, reasoning=None, tool_calls=None),
            delta(role="assistant", content=""),
            *said("Ω", "\u2028", "👩‍👩‍👧"),
            ended("length"),
        ]
    )
    answer = chat.ask("Anything")
    expect(answer.locator(".content")).to_contain_text("👩‍👩‍👧")
    expect(answer.locator(".failure")).to_contain_text("limit of tokens")
