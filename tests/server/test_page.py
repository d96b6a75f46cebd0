"""The chat page in headless Chromium, against a server whose answers are scripted."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')"
)
pytest.importorskip("starlette", reason="starlette is not installed (pip install -e '.[dev]')")

from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from tests.support.chat_page import CHROMIUM, ChatPage
from tests.support.page_server import (
    Cut,
    Gate,
    ScriptedServer,
    called,
    delta,
    ended,
    said,
    served,
    thought,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: chromium)"),
    pytest.mark.timeout(120),
]

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
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
def chat(context: BrowserContext, server: ScriptedServer) -> Iterator[ChatPage]:
    chat = ChatPage(context, server.url)
    yield chat
    assert chat.faults == []


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
            chat.page.reload()
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


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>\n\n<svg onload=alert(1)>",
    "[x](javascript:alert(1)) [x](JaVaScRiPt:alert(1)) [x](java\tscript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>) <javascript:alert(1)>",
    "[x](vbscript:a) [x](file:///etc/passwd) [x](/page/page.js) [x](//elsewhere.example)",
    "[x][1]\n\n[1]: javascript:alert(1)",
    "![x](data:image/svg+xml,<svg onload=alert(1)>) ![y](javascript:alert(1))",
    '[x](https://example.com "\\" onclick=alert(1) \\"")',
    "```html\n<script>alert(1)</script>\n```",
    '```"><img src=x onerror=alert(1)>\nx\n```',
    "\\(\\href{javascript:alert(1)}{x}\\) $\\includegraphics{https://elsewhere.example/x}$",
    "\\[\\style{background:url(https://elsewhere.example)}{x} \\class{send}{x}\\]",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_answer_stays_text(chat: ChatPage, server: ScriptedServer, text: str) -> None:
    chat.open()
    server.answer([*thought(text), *said(*text), ended()])
    server.answer([*called(text, json.dumps({text: text})), ended("tool_calls")])
    answer = chat.ask(text)
    chat.page.wait_for_load_state("networkidle")
    html = answer.locator(".body")
    assert html.locator("script, img, iframe, svg:not(.icon), object, embed, [style]").count() == 0
    links = html.locator("a").evaluate_all("links => links.map(link => link.href)")
    assert [link for link in links if not link.startswith("https://example.com")] == []
    attributes = html.locator("*").evaluate_all(
        "all => all.flatMap(one => one.getAttributeNames().filter(name => name.startsWith('on')))"
    )
    assert attributes == []
    call = chat.ask("Again").locator(".calls")
    assert call.locator("script, img, iframe, a").count() == 0
    expect(call.locator("figcaption span")).to_have_text(text)


def test_an_image_is_a_link_and_links_tell_nothing(chat: ChatPage, server: ScriptedServer) -> None:
    chat.open()
    server.answer([*said("![a cat](https://example.com/cat.png) <https://example.com>"), ended()])
    links = chat.ask("Draw").locator("a")
    expect(links.first).to_have_text("a cat (image)")
    for link in links.all():
        assert link.get_attribute("rel") == "noopener noreferrer"
        assert link.get_attribute("target") == "_blank"


BOMBS = {
    "quotes": ">" * 3000 + " end",
    "lists": "".join("  " * depth + "- a\n" for depth in range(300)) + "end",
    "emphasis": "*a **b " * 3000 + "end",
    "brackets": "[" * 5000 + "end" + "](" * 5000,
    "ticks": "".join("`" * count + "a" for count in range(300)) + "end",
    "formulas": "\\(" * 2000 + "$x^{" * 500 + "end",
    "macros": "\\(\\def\\a{\\a\\a}\\a\\) end",
}


@pytest.mark.parametrize("name", BOMBS)
def test_nested_marks_lose_nothing(chat: ChatPage, server: ScriptedServer, name: str) -> None:
    chat.open()
    server.answer([*said(BOMBS[name]), ended()])
    expect(chat.ask("Nest").locator(".content")).to_contain_text("end")
    deepest = chat.page.evaluate(
        """() => {
            const depth = (node) => node ? 1 + depth(node.parentElement) : 0;
            return Math.max(...[...document.querySelectorAll('.content *')].map(depth));
        }"""
    )
    assert deepest < 100
    assert chat.ask("Still here?").inner_text().startswith("gpt-oss")


RENDER = """async ([text, cuts]) => {
    const { Markdown } = await import('/page/markdown.js');
    const { mathNode } = await import('/page/math.js');
    const span = /<span class="code-.*?">|<\\/span>/g;
    const plain = (element) => element.innerHTML.replaceAll(span, '');
    mathNode('x', false);
    await import('/page/vendor/temml.js');
    const whole = document.createElement('div');
    new Markdown(whole).finish(text);
    const pieces = document.createElement('div');
    const markdown = new Markdown(pieces);
    for (const cut of cuts) markdown.update(text.slice(0, cut));
    markdown.update(text);
    const before = plain(pieces);
    markdown.finish(text);
    return [plain(whole), before, plain(pieces)];
}"""


def test_any_pieces_give_the_same_page(chat: ChatPage) -> None:
    chat.open()
    draw = random.Random(7)
    lines = LONG_TEXT.split("\n")
    cuts: list[int]
    for number in range(60):
        text = LONG_TEXT
        if number:
            draw.shuffle(lines)
            text = "\n".join(lines)
        cuts = [*range(len(text))]
        if number > 5:
            cuts = sorted(draw.sample(cuts, draw.randint(1, 60)))
        whole, before, pieces = chat.page.evaluate(RENDER, [text, cuts])
        assert pieces == whole
        assert before == whole, text


def test_a_block_that_has_ended_is_not_touched_again(chat: ChatPage) -> None:
    chat.open()
    touched = chat.page.evaluate(
        """async (text) => {
            const { Markdown } = await import('/page/markdown.js');
            const container = document.createElement('div');
            const markdown = new Markdown(container);
            const code = '```\\n' + 'line\\n'.repeat(500);
            markdown.update(text + '\\n\\n' + code);
            const records = [];
            new MutationObserver((found) => records.push(...found)).observe(container, {
                childList: true, characterData: true, subtree: true,
            });
            const children = [...container.children];
            markdown.update(text + '\\n\\n' + code + 'last');
            await null;
            const same = children.every((child, index) => container.children[index] === child);
            return [same, records.map(({ type, target }) => [type, target.nodeName])];
        }""",
        LONG_TEXT,
    )
    assert touched == [True, [["characterData", "#text"]]]


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
    chat.page.reload()
    expect(chat.ended().locator(".content")).to_have_text("First second")


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
    chat.press("Send again")
    expect(chat.ended().locator(".content")).to_have_text("Hello.")
    assert chat.texts() == ["Other", "Hello."]
    gate.open()
    expect(chat.page.locator(".message")).to_have_count(2)


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
    chat.page.reload()
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
    expect(chat.page.locator("#model option")).to_have_count(1)
    chat.page.reload()
    expect(chat.ask("Hello").locator(".content")).to_have_text("Hello.")
    assert server.headers[-1]["authorization"] == "Bearer secret"
    assert "secret" not in json.dumps(context.storage_state())
    server.key = "changed"
    chat.ask("And now")
    dialog.get_by_label("Key").fill("changed")
    dialog.get_by_role("button", name="Use this key").click()
    expect(chat.page.locator(".assistant .content").last).to_have_text("Hello.")


FULL = "IDBObjectStore.prototype.put = () => { throw new DOMException('', 'QuotaExceededError') };"
GONE = (
    "for (const name of ['indexedDB', 'localStorage', 'sessionStorage'])"
    "  Object.defineProperty(window, name, {"
    "    get() { throw new DOMException('', 'SecurityError'); }"
    "  });"
)


@pytest.mark.parametrize("broken", [FULL, GONE], ids=["full", "refused"])
def test_a_browser_that_stores_nothing_is_told_of_once(
    chat: ChatPage, server: ScriptedServer, broken: str
) -> None:
    chat.page.add_init_script(broken)
    chat.open()
    chat.ask("One")
    chat.ask("Two")
    expect(chat.page.locator(".note")).to_have_count(2 if broken == GONE else 1)
    chat.press("New conversation")
    chat.ask("Three")
    chat.page.locator("#conversations a", has_text="One").click()
    expect(chat.page.locator(".message")).to_have_count(4)
    assert chat.texts() == ["One", "Hello.", "Two", "Hello."]
    with chat.page.expect_download() as download:
        chat.page.locator(".note button", has_text="Export all").last.click()
    exported = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert len(exported["conversations"]) == 2


def test_damaged_records_are_left_out_and_left_alone(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    chat.ask("Good one")
    chat.page.evaluate(
        """() => new Promise((resolve) => {
            localStorage.setItem('gptoss.options', '{"effort": 7, "model": []');
            localStorage.setItem('gptoss.theme', '{');
            indexedDB.open('gptoss').onsuccess = ({ target }) => {
                const change = target.result.transaction('conversations', 'readwrite');
                const table = change.objectStore('conversations');
                table.put({ id: 'a', messages: [{ role: 'user', content: 5 }] });
                table.put({ id: 'b' });
                table.put({ id: 'c', messages: [null], title: {} });
                change.oncomplete = () => { target.result.close(); resolve(); };
            };
        })"""
    )
    chat.page.reload()
    assert "3 conversations" in chat.note()
    expect(chat.page.locator(".note")).to_have_count(1)
    assert chat.titles() == ["Good one"]
    expect(chat.ended().locator(".content")).to_have_text("Hello.")
    chat.page.goto(f"{server.url}/#b")
    expect(chat.page.locator("#welcome")).to_be_visible()


def test_two_tabs_see_each_other_and_lose_nothing(
    chat: ChatPage, server: ScriptedServer, context: BrowserContext
) -> None:
    chat.open()
    chat.ask("Shared")
    other = ChatPage(context, server.url).open(chat.page.url.rsplit("/", 1)[1])
    expect(other.page.locator(".message")).to_have_count(2)
    other.ask("From the other tab")
    expect(chat.page.locator(".message")).to_have_count(4)
    gate = Gate()
    server.answer([*said("Slow"), gate, ended()])
    chat.send("Mine")
    expect(chat.page.locator(".assistant .content").last).to_have_text("Slow")
    expect(other.page.locator(".message")).to_have_count(6)
    other.ask("Yours")
    gate.open()
    chat.ended()
    assert "copy" in chat.note()
    expect(chat.page.locator("#conversations li")).to_have_count(2)
    assert chat.texts()[-2:] == ["Mine", "Slow"]
    assert other.texts()[-2:] == ["Yours", "Hello."]
    chat.page.reload()
    expect(chat.page.locator(".message")).to_have_count(6)
    assert other.faults == []


def test_conversations_are_renamed_found_deleted_and_brought_back(
    chat: ChatPage, server: ScriptedServer
) -> None:
    chat.open()
    server.answer([*said("Apples and Pears"), ended()])
    chat.ask("First")
    chat.press("New conversation")
    chat.ask("Second")
    chat.page.locator("#conversations li", has_text="First").hover()
    chat.press("Rename First")
    chat.page.get_by_label("Name of the conversation").fill("Fruit")
    chat.page.keyboard.press("Enter")
    expect(chat.page.locator("#conversations li a", has_text="Fruit")).to_be_visible()
    chat.page.keyboard.press("Control+k")
    expect(chat.page.locator("#search")).to_be_focused()
    chat.page.keyboard.type("pEARS")
    expect(chat.page.locator("#conversations li")).to_have_count(1)
    assert chat.titles() == ["Fruit"]
    chat.page.locator("#search").fill("")
    expect(chat.page.locator("#conversations li")).to_have_count(2)
    chat.press("Delete Second")
    expect(chat.page.locator("#welcome")).to_be_visible()
    assert chat.titles() == ["Fruit"]
    chat.press("Undo")
    expect(chat.page.locator("#conversations li")).to_have_count(2)
    chat.page.reload()
    expect(chat.page.locator("h1")).to_have_text("Second")
    assert sorted(chat.titles()) == ["Fruit", "Second"]


def test_an_export_can_be_imported(chat: ChatPage, server: ScriptedServer, tmp_path: Path) -> None:
    chat.open()
    server.answer([*thought("Hm."), *said("Yes — ✓"), ended(thoughts=2)])
    chat.ask("Question")
    with chat.page.expect_download() as download:
        chat.press("Export Question")
    path = tmp_path / "exported.json"
    download.value.save_as(path)
    chat.press("Delete Question")
    chat.page.set_input_files("#import-file", path)
    expect(chat.page.locator("h1")).to_have_text("Question")
    expect(chat.page.locator(".assistant .content")).to_have_text("Yes — ✓")
    expect(chat.page.locator("summary")).to_contain_text("2 tokens")
    exported = json.loads(path.read_text(encoding="utf-8"))
    exported["conversations"][0]["messages"].append({"role": "nobody", "content": ""})
    path.write_text(json.dumps(exported), encoding="utf-8")
    chat.page.set_input_files("#import-file", path)
    expect(chat.page.locator(".note").last).to_contain_text("Conversation 1")
    assert chat.titles() == ["Question"]


def test_code_and_answers_are_copied_as_they_were_written(
    chat: ChatPage, server: ScriptedServer, context: BrowserContext
) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.open()
    text = "Look:\n\n```python\nif a < b:\n    print('&')\n```"
    server.answer([*said(text), ended()])
    chat.ask("Code")
    for button, copied in {
        "Copy code": "if a < b:\n    print('&')",
        "Copy this answer": text,
    }.items():
        chat.press(button)
        expect(chat.page.get_by_role("button", name="Copied")).to_be_visible()
        assert chat.page.evaluate("navigator.clipboard.readText()") == copied


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
    chat.page.reload()
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
    chat.press("Show earlier messages")
    expect(chat.page.locator(".message")).to_have_count(80)
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


@pytest.mark.parametrize("width", [320, 800, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_nothing_sticks_out(
    browser: Browser, server: ScriptedServer, width: int, scheme: Any
) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-playwright-python is not installed (pip install -e '.[dev]')",
    )
    context = browser.new_context(
        viewport={"width": width, "height": 700}, color_scheme=scheme, reduced_motion="reduce"
    )
    chat = ChatPage(context, server.url)

    def check(state: str) -> None:
        found = axe.Axe().run(chat.page).response["violations"]
        grave = [
            (one["id"], [node["html"] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert grave == [], state
        size = "[document.documentElement.scrollWidth, document.querySelector('#transcript')"
        assert max(chat.page.evaluate(f"() => {size}.scrollWidth]")) <= width, state

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
