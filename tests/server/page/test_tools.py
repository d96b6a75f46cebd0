"""The server's tools on the page: switched on, shown, asked about; what they give is data."""

from __future__ import annotations

import base64

import pytest

from tests.support.chat_page import ChatPage, expect
from tests.support.page_responses import (
    CONTAINER,
    answered,
    begun,
    browsed,
    completed,
    computed,
    made,
    reasoned,
)
from tests.support.page_server import Gate, ScriptedServer, called, ended, said

pytestmark = pytest.mark.slow

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SVG = (
    b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9' onload='top.ran=1'>"
    b"<script>top.ran = 1</script><image href='http://elsewhere.test/x.png'/></svg>"
)
HTML = "<img src=x onerror='window.ran=1'><b>bold</b>"


@pytest.fixture
def tooled(chat: ChatPage, server: ScriptedServer) -> ChatPage:
    """A page whose server has both tools; they are switched on."""
    server.models[0]["server_tools"] = {"python": "allow", "browser": "allow"}
    chat.open()
    for name in ("Python", "Browser"):
        chat.page.get_by_label(name, exact=True).check(force=True)
    return chat


def test_tools_are_offered_where_the_server_has_them(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    expect(chat.page.locator("#served")).to_be_hidden()
    server.models[0]["server_tools"] = {"python": "allow"}
    chat.reload()
    expect(chat.page.get_by_label("Browser", exact=True)).to_be_hidden()
    chat.page.get_by_label("Python", exact=True).check(force=True)
    server.answer([*begun(), *answered(0, "Hello."), completed()])
    chat.ask("Hi")
    request = server.requests[0]
    assert request["tools"] == [{"type": "code_interpreter", "container": {"type": "auto"}}]
    assert request["input"] == [{"role": "user", "content": "Hi"}]
    assert (request["store"], request["tool_approval"]) == (False, "ask")
    del server.models[0]["server_tools"]  # a server that has none any more is asked as before
    chat.reload()
    chat.ask("And?")
    assert [m["content"] for m in server.requests[1]["messages"]] == ["Hi", "Hello.", "And?"]


def test_what_ran_is_folded_and_outlives_a_reload(tooled: ChatPage, server: ScriptedServer) -> None:
    server.files = {"cfile_1": PNG, "cfile_2": SVG, "cfile_3": b"a,b\n"}
    search = {
        "type": "search",
        "query": "ferry",
        "sources": [
            {"type": "url", "url": "https://example.org/a"},
            {"type": "url", "url": "b.md"},
        ],
    }
    notes = [
        made("cfile_3", "data/table.csv"),
        {"type": "url_citation", "url": "https://example.org/a", "title": "Ferries"},
        {"type": "url_citation", "url": "javascript:alert(1)", "title": "Bad"},
        {"type": "file_citation", "filename": "b.md", "file_id": "b.md", "index": 0},
    ]
    text = "See [it](sandbox:/mnt/data/p.png) ([example.org](https://example.org/a))."
    server.answer(
        [
            *begun(),
            *reasoned(0, "Hm."),
            *computed(1, "print('<b>')", HTML, ["cfile_1", "cfile_2"]),
            *browsed(2, search),
            *computed(3, "1/0", "ZeroDivisionError", status="failed"),
            *answered(4, text, notes=notes),
            completed(),
        ]
    )
    for again in (False, True):
        if again:
            tooled.reload()
        answer = tooled.ended() if again else tooled.ask("Draw")
        runs = answer.locator(".run")
        expect(runs.locator("summary")).to_have_text(
            ["Python", "Searches for “ferry”", "Python · failed"]
        )
        expect(runs.first.locator(".result")).to_be_hidden()
        runs.first.locator("summary").click()
        expect(runs.first.locator("code")).to_have_text("print('<b>')")
        expect(runs.first.locator(".result")).to_have_text(HTML)
        pictures = runs.first.locator("img")
        expect(pictures).to_have_count(2)
        for picture in pictures.all():
            assert picture.evaluate("one => one.decode().then(() => one.naturalWidth)") > 0
        runs.nth(1).locator("summary").click()
        expect(runs.nth(1).get_by_role("link")).to_have_attribute("href", "https://example.org/a")
        expect(answer.locator(".content")).to_have_text("See it (example.org).")
        sources = answer.locator(".yields .sources li")
        expect(sources).to_have_text(["Ferries", "Bad", "b.md"])
        expect(sources.get_by_role("link")).to_have_count(1)
        assert tooled.page.evaluate("window.ran") is None
    with tooled.page.expect_download() as download:
        tooled.press("Save data/table.csv")
    assert download.value.path().read_bytes() == b"a,b\n"
    del server.files["cfile_3"]
    tooled.press("Save data/table.csv")
    assert "No such file." in tooled.note()


def test_the_next_question_goes_to_the_same_container(
    tooled: ChatPage, server: ScriptedServer
) -> None:
    """And to a new one where the server has it no more."""
    server.answer([*begun(), *computed(0, "x = 1"), *answered(1, "Done."), completed()])
    tooled.ask("One")
    server.refuse(404, "no such container", code="container_expired")
    server.answer([*begun(), *answered(0, "Again."), completed()])
    expect(tooled.ask("Two").locator(".content")).to_have_text("Again.")
    containers = [request["tools"][0]["container"] for request in server.requests]
    assert containers == [{"type": "auto"}, CONTAINER, {"type": "auto"}]
    assert server.requests[1]["input"] == [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Two"},
    ]


@pytest.mark.parametrize("word", ["Run", "Decline"])
def test_a_call_waits_for_the_person(tooled: ChatPage, server: ScriptedServer, word: str) -> None:
    status = "completed" if word == "Run" else "failed"
    server.answer(
        [
            *begun(),
            *computed(0, "rm()", "ok", status=status, asked=server.approved),
            *answered(1, "Done."),
            completed(),
        ]
    )
    tooled.send("Do it")
    expect(tooled.page.locator(".run code")).to_have_text("rm()")
    expect(tooled.page.locator("#announcer")).to_contain_text("run or decline")
    assert tooled.grave() == []
    tooled.page.get_by_role("button", name=word, exact=True).press("Enter")
    answer = tooled.ended()
    expect(answer.locator(".content")).to_have_text("Done.")
    expect(answer.locator(".question")).to_be_hidden()
    assert server.words == [("resp_1", "ci_0", word == "Run")]


def test_stop_ends_an_answer_whose_call_waits(tooled: ChatPage, server: ScriptedServer) -> None:
    server.answer([*begun(), *computed(0, "rm()", asked=Gate()), completed()])
    tooled.send("Do it")
    expect(tooled.page.get_by_role("button", name="Run", exact=True)).to_be_visible()
    tooled.page.keyboard.press("Escape")
    answer = tooled.ended()
    assert server.aborted.wait(10)
    expect(answer.locator(".question")).to_be_hidden()
    expect(answer.locator(".failure")).to_contain_text("Stopped.")


def test_a_function_of_the_persons_own_is_answered_and_goes_on(
    tooled: ChatPage, server: ScriptedServer
) -> None:
    tooled.press("Settings")
    tooled.press("Insert an example")
    tooled.press("Close the settings")
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "get_weather"}
    output = [{"type": "reasoning", "id": "rs_1"}, {**call, "arguments": "{}"}]
    place = {"output_index": 0}
    server.answer(
        [
            *begun(),
            {"type": "response.output_item.added", **place, "item": {**call, "arguments": ""}},
            {"type": "response.function_call_arguments.delta", **place, "delta": "{}"},
            completed(output),
        ]
    )
    tooled.ask("Weather?")
    tooled.page.get_by_label("Result of get_weather").fill("Sun")
    server.answer([*begun(), *answered(0, "Sunny."), completed()])
    tooled.press("Go on")
    expect(tooled.ended().locator(".content")).to_have_text("Sunny.")
    assert server.requests[1]["input"][1:] == [
        *output,
        {"type": "function_call_output", "call_id": "call_1", "output": "Sun"},
    ]


@pytest.mark.parametrize("width", [320, 1280])
def test_axe_finds_nothing_serious_in_runs(
    tooled: ChatPage, server: ScriptedServer, width: int
) -> None:
    tooled.page.set_viewport_size({"width": width, "height": 700})
    server.files = {"cfile_1": PNG}
    server.answer(
        [
            *begun(),
            *computed(0, "x" * 300, "y" * 300, ["cfile_1"]),
            *browsed(1, {"type": "open_page", "url": "https://example.org/" + "z" * 300}),
            *answered(2, "Done.", notes=[made("cfile_1", "p" * 120 + ".png")]),
            completed(),
        ]
    )
    answer = tooled.ask("Go")
    for summary in answer.locator(".run summary").all():
        summary.click()
    assert tooled.grave() == []
    wide = "() => document.documentElement.scrollWidth > innerWidth"
    assert not tooled.page.evaluate(wide)


def test_without_tools_the_page_asks_as_before(chat: ChatPage, server: ScriptedServer) -> None:
    server.models[0]["server_tools"] = {"python": "allow"}
    chat.open()
    server.answer([*said("Hi."), *called("f", "{}"), ended("tool_calls")])
    chat.ask("Hello")
    assert "messages" in server.requests[0]
