"""The page as the server itself gives it, with a model: an answer, a call of a tool, a stop, and
nothing that its content policy refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

import gptoss_mlx
from gptoss_mlx.server.containers import Containers
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.toolkit import Toolkit
from tests.cli.test_generate_tools import needs_sandbox
from tests.support.chat_page import BrowserContext, ChatPage, expect
from tests.support.gate import Gate
from tests.support.judges import ServedJudge
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import serving
from tests.support.served_tools import BROWSE, CODE, browser_kit, fake_kit, python_kit, tooled

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


DRAW = (
    "x = 41\\nsvg = \"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>\"\\n"
    "open('p.svg', 'w').write(svg); open('t.csv', 'w').write('1,2'); print('<b>')"
)


def test_tools_of_the_server(context: BrowserContext, tmp_path: Path) -> None:
    """Code that a person lets run, and one that is declined; a figure, a file, a document."""
    replies = [
        CODE.format(DRAW.replace("\\n", "\n")),
        CODE.format("print(x + 1)"),
        f"{FINAL}Drawn: [p](sandbox:/mnt/data/p.svg).<|return|>",
        CODE.format("print(x + 1)"),
        BROWSE.format("search", '{"query": "ferry"}'),
        f"{FINAL}At seven.<|return|>",
    ]
    policy, scripted = Policy(keys=("key",)), Scripted(*replies)
    with browser_kit(tmp_path) as browser:
        makers = {**browser.makers, **python_kit().makers}
        with tooled(scripted, Toolkit(makers, {"python": "ask"}), policy) as served:
            chat = ChatPage(context, served.url)
            chat.page.goto(f"{served.url}/")
            chat.page.locator("dialog[open] input").fill("key")
            chat.page.locator("dialog[open] button[type=submit]").click()
            chat.ready()
            for name in ("Python", "Browser"):
                chat.page.get_by_label(name, exact=True).check(force=True)
            chat.send("draw")
            chat.press("Run")
            expect(chat.page.locator(".run")).to_have_count(2)
            chat.press("Decline")
            answer = chat.ended()
            summaries = answer.locator(".run summary")
            expect(summaries).to_have_text(["Python", "Python · failed"])
            expect(answer.locator(".content")).to_have_text("Drawn: p.")
            expect(answer.locator(".figures img")).to_have_count(1)
            with chat.page.expect_download() as download:
                chat.press("Save t.csv")
            assert download.value.path().read_text() == "1,2"
            chat.send("when?")
            chat.press("Run")
            answer = chat.ended()
            expect(answer.locator(".run .result")).to_have_text("42")
            expect(answer.locator(".run summary").last).to_have_text("Searches for “ferry”")
    assert chat.faults == []


@needs_sandbox
def test_the_tiny_model_computes(context: BrowserContext) -> None:
    with (
        gptoss_mlx.load("tiny") as engine,
        serving(engine, containers=Containers(python_kit())) as served,
    ):
        chat = ChatPage(context, served.url).open()
        chat.page.get_by_label("Python", exact=True).check(force=True)
        chat.send("What is 1234 * 5678?")
        answer = chat.ended()
        expect(answer.locator(".content")).to_have_text("1234 * 5678 = 7006652")
        expect(answer.locator(".run .result")).to_have_text("7006652")
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


@pytest.mark.parametrize("with_tools", [False, True])
def test_what_the_guard_blocks_stands_in_its_place(
    context: BrowserContext, with_tools: bool
) -> None:
    scripted = Scripted(f"{FINAL}A vile answer.<|return|>", f"{FINAL}Fine.<|return|>")
    containers = Containers(fake_kit() if with_tools else None)
    with serving(scripted, containers=containers, guard=ServedJudge().served()) as served:
        chat = ChatPage(context, served.url)
        chat.page.goto(f"{served.url}/")
        chat.ready()
        if with_tools:
            chat.page.get_by_label("Python", exact=True).check(force=True)
        line = "[blocked: the answer violates the policy (R1)]"
        expect(chat.ask("q").locator(".content")).to_have_text(line)
        expect(chat.ask("r").locator(".content")).to_have_text("Fine.")
        line = "[blocked: the message violates the policy (R1)]"
        expect(chat.ask("a vile question").locator(".content")).to_have_text(line)
        assert "vile answer" not in chat.page.content()
    assert chat.faults == []
