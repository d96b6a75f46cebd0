"""Markdown: what a model may write, and what stays text."""

from __future__ import annotations

import json
import random

import pytest

from tests.support.chat_page import LONG_TEXT, BrowserContext, ChatPage, expect
from tests.support.page_server import ScriptedServer, called, ended, said, thought

pytestmark = pytest.mark.slow

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


def test_only_the_open_block_is_parsed_again(chat: ChatPage) -> None:
    chat.open()
    parsed = chat.page.evaluate(
        """async (text) => {
            const { Markdown, parser } = await import('/page/markdown.js');
            const markdown = new Markdown(document.createElement('div'));
            const parse = parser.parse.bind(parser);
            const lengths = [];
            parser.parse = (source, env) => (lengths.push(source.length), parse(source, env));
            for (let end = 0; end <= text.length; end += 10) markdown.update(text.slice(0, end));
            return [lengths.length, Math.max(...lengths)];
        }""",
        "A paragraph of one line.\n\n" * 400,
    )
    assert parsed[0] > 900
    assert parsed[1] < 100


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
        expect(chat.page.locator(f"[title='{button}'][aria-label=Copied]")).to_be_visible()
        assert chat.page.evaluate("navigator.clipboard.readText()") == copied
