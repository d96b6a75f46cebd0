"""Other models of generate: asked where the file says so, and refused where it cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import gptoss_mlx
from gptoss_mlx.generate import main
from tests.support.endpoint import EndpointServer, serving
from tests.support.scripted_model import FINAL, Scripted, encoding

CALL = " to=functions.ask_big<|channel|>commentary <|constrain|>json<|message|>"
REPLIES = [f'{CALL}{{"question": "Of France?"}}<|call|>', f"{FINAL}Paris, it says.<|return|>"]


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with serving() as made:
        yield made


def ask(monkeypatch: pytest.MonkeyPatch, file: Path, model: Any) -> tuple[Result, Scripted]:
    """What generate did with a file of this model, and the engine that wrote the replies."""
    scripted = Scripted(*REPLIES)
    monkeypatch.setattr(gptoss_mlx, "load", lambda model, **options: scripted.engine)
    file.write_text(json.dumps({"models": {"big": model}}))
    return CliRunner().invoke(main, ["q", "--ask-models", str(file), "--json"]), scripted


def test_a_model_asks_another_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: EndpointServer
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-secret")
    model = {"url": server.url, "model": "m", "key_env": "THE_KEY", "rule": "allow"}
    result, scripted = ask(monkeypatch, tmp_path / "models.json", model)
    assert (result.exit_code, result.stderr) == (0, "")
    value = json.loads(result.stdout)
    assert value["text"] == "Paris, it says."
    assert [(ran["name"], ran["output"]) for ran in value["ran"]] == [("ask_big", "Paris.")]
    ((_, headers, body),) = server.asked
    assert body["messages"] == [{"role": "user", "content": "Of France?"}]
    assert headers["Authorization"] == "Bearer sk-secret"
    first, second = [encoding().decode(ids) for _, _, ids in scripted.samplings]
    assert "type ask_big = (_: {" in first
    assert "leaves this machine" not in first  # it is on loopback
    assert "Paris." in second
    assert "sk-secret" not in first + second + result.output


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        (
            {"model": "m", "url": "http://127.0.0.1:1"},
            2,
            "=ask needs a terminal, to show calls of ask_big",
        ),
        ({"model": "m", "url": "nowhere"}, 1, "models.json: big: 'nowhere' is not a URL such as"),
    ],
)
def test_what_cannot_be_asked_is_said_before_loading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Any, code: int, said: str
) -> None:
    result, scripted = ask(monkeypatch, tmp_path / "models.json", model)
    assert (result.exit_code, scripted.samplings) == (code, [])
    assert said in result.stderr
