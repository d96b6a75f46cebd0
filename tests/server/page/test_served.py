"""The page as the server itself gives it, with a model: an answer, a call of a tool, a stop, and
nothing that its content policy refuses."""

from __future__ import annotations

import pytest

from gptoss_mlx.server.policy import Policy
from tests.support.chat_page import BrowserContext, ChatPage, expect
from tests.support.gate import Gate
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import serving

pytestmark = pytest.mark.slow

ANSWER = f"{ANALYSIS}They greet.{AGAIN}{FINAL}Hello **there**, $x^2$.<|return|>"


def test_an_answer_of_the_server(context: BrowserContext) -> None:
    with serving(Scripted(ANSWER), policy=Policy(keys=("key",))) as served:
        chat = ChatPage(context, served.url)
        chat.page.goto(f"{served.url}/")
        chat.page.locator("dialog[open] input").fill("key")
        chat.page.locator("dialog[open] button[type=submit]").click()
        answer = chat.ready().ask("hi")
        expect(answer.locator("strong").first).to_have_text("there")
        expect(answer.locator("math").first).to_be_attached()
        expect(answer.locator("details").first).to_contain_text("They greet.")
        assert chat.reload().page.locator("#messages").inner_text().count("there") == 1
    assert chat.faults == []


def test_a_stop_reaches_the_model(context: BrowserContext, gate: Gate) -> None:
    scripted = Scripted(FINAL + "word " * 3000 + "<|return|>")
    with serving(scripted) as served:
        chat = ChatPage(context, served.url).open()
        gate.close()
        chat.send("hi")
        gate.let(8)
        chat.press("Stop the answer")
        served.wait_until(lambda: served.registry.find(None).sequences == 0)
        gate.open()
        chat.ready()
        served.wait_until(lambda: scripted.engine.finished)
    assert scripted.count("read") < 20
    assert chat.faults == []
