"""The tiny model with the server's tools, asked through the Responses API by OpenAI's client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

import gptoss_mlx
from gptoss_mlx.server.containers import Containers
from gptoss_mlx.server.toolkit import Toolkit
from tests.cli.test_generate_tools import needs_sandbox
from tests.support.served import Served, serving
from tests.support.served_tools import OUTPUTS, PYTHON, SEARCH, browser_kit, python_kit

PLACES = "# Places\n\nThe lamp is in Berlin.\nThe key is blue.\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("documents")
    with browser_kit(folder, PLACES, "places.md") as browser, gptoss_mlx.load("tiny") as engine:
        kit = Toolkit({**browser.makers, **python_kit().makers})
        with serving(engine, containers=Containers(kit)) as served:
            yield served


@pytest.fixture
def client(tiny: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@needs_sandbox
def test_what_is_too_large_for_it_is_computed(client: OpenAI) -> None:
    found = client.responses.create(
        model="scripted", input="What is 1234 * 5678?", temperature=0, tools=[PYTHON], **OUTPUTS
    )
    assert found.output_text == "1234 * 5678 = 7006652"
    (call,) = (item for item in found.output if item.type == "code_interpreter_call")
    assert call.code == "print(1234 * 5678)"
    assert call.outputs is not None
    assert [output.logs for output in call.outputs if output.type == "logs"] == ["7006652"]


def test_a_document_is_cited(client: OpenAI) -> None:
    found = client.responses.create(
        model="scripted", input="Where is the lamp?", temperature=0, tools=[SEARCH]
    )
    assert found.output_text.startswith("The lamp is in Berlin.")
    message = found.output[-1]
    assert message.type == "message"
    (text,) = message.content
    assert text.type == "output_text"
    (citation,) = text.annotations
    assert citation.type == "file_citation"
    assert citation.filename == "places.md"
