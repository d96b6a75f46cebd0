"""Ollama's catalogue of models, their loading and unloading, and what its clients look for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import ollama
import pytest

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.server.facts import facts_of
from gptoss_mlx.server.ollama.catalog import tag_of
from gptoss_mlx.server.ollama.fields import seconds_of
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.registry import ServedModel
from gptoss_mlx.settings import Settings
from tests.server.test_ollama_chat import client_at, gate_of
from tests.support.scripted_model import FINAL, Scripted
from tests.support.served import Served, serving


@pytest.fixture(scope="module")
def idle() -> Iterator[Served]:
    with serving(Scripted(), Scripted()) as served:
        yield served


def test_the_catalogue_in_the_clients_own_types(idle: Served) -> None:
    with client_at(idle) as client:
        first, second = client.list().models
        assert (first.model, second.model) == ("scripted:latest", "scripted-1:latest")
        assert first.modified_at is not None
        assert len(first.digest or "") == 64
        sheet = client.show("scripted:latest")
        loaded = client.ps().models
    assert first.details is not None
    assert first.details.parameter_size == "20.9B"
    assert first.details.families == ["gptoss"]
    assert sheet.capabilities == ["completion", "tools", "thinking"]
    assert sheet.modelinfo is not None
    assert sheet.modelinfo["general.architecture"] == "gptoss"
    assert sheet.modelinfo["gptoss.context_length"] == 4096
    assert ".Suffix" not in (sheet.template or "")  # Continue would fill in the middle
    # Continue reads a name and a value from each line.
    lines = [line.split() for line in (sheet.parameters or "").splitlines()]
    assert dict(lines)["num_ctx"] == "4096"
    assert [model.model for model in loaded] == ["scripted:latest"]
    assert loaded[0].context_length == 4096
    assert loaded[0].expires_at is not None
    assert loaded[0].expires_at.year > 2200


def test_names_are_those_of_ollama() -> None:
    names = {
        "openai/gpt-oss-20b": "gpt-oss:20b",
        "20b": "gpt-oss:20b",
        "openai/gpt-oss-120b": "gpt-oss:120b",
        "someone/other": "other:latest",
    }
    for argument, name in names.items():
        entry = ServedModel(argument, Settings())
        assert tag_of(entry) == name
        assert name in entry.names
    facts = facts_of(ServedModel("openai/gpt-oss-120b", Settings()))
    assert (facts.parameter_size, facts.context, facts.publisher) == ("116.8B", 131072, "openai")
    assert facts_of(ServedModel("someone/other", Settings())).parameter_size == ""
    assert ServedModel("/no/such/folder", Settings()).publisher == "local"


def test_a_released_sheet_is_told_before_it_is_loaded() -> None:
    def missing(progress: object) -> object:
        raise CheckpointError("nothing is here")

    with serving(missing, ready=False) as served:  # type: ignore[arg-type]
        sheet = served.post("/api/show", {"name": "scripted"}).json()
        tags = served.client.get("/api/tags").json()["models"]
    assert sheet["model_info"]["general.architecture"] == "gptoss"
    assert tags[0]["size"] == 0


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (300.0, 300),
        (0.0, 0),
        (-1.0, float("inf")),
        ("300", 300),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("-1", float("inf")),
        ("-1s", float("inf")),
        ("0", 0),
        ("0s", 0),
        ("100ms", 0.1),
        ("999999h", float("inf")),
    ],
)
def test_keep_alive_is_seconds_or_a_duration(given: float | str, seconds: float) -> None:
    assert seconds_of(given) == pytest.approx(seconds)


@pytest.mark.parametrize("given", ["", "m", "5 m", "5x", "٣m", "1" * 100, "--1"])
def test_a_duration_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(Problem, match="keep_alive"):
        seconds_of(given)


def test_a_request_without_a_prompt_loads_and_unloads() -> None:
    opened = []

    def opening(progress: object) -> object:
        opened.append(Scripted(*[f"{FINAL}x<|return|>"] * 2).engine)
        return opened[-1]

    with (
        serving(opening, policy=Policy(keep_alive=60)) as served,  # type: ignore[arg-type]
        client_at(served) as client,
    ):
        entry = served.registry.entries[0]
        assert client.generate("scripted", keep_alive=0).done_reason == "unload"
        served.wait_until(lambda: entry.status == "unloaded")
        assert client.ps().models == []
        assert client.chat("scripted", keep_alive="10m").done_reason == "load"
        (loaded,) = client.ps().models
        assert loaded.expires_at is not None
        left = (loaded.expires_at - datetime.now(UTC)).total_seconds()
        assert 500 < left < 601
        # An answer after which it goes at once, and another that loads it again.
        hi = [{"role": "user", "content": "hi"}]
        assert client.chat("scripted", hi, keep_alive=0).message.content == "x"
        served.wait_until(lambda: entry.status == "unloaded")
        assert client.chat("scripted", hi).message.content == "x"
        assert entry.keep_alive == 60
        assert client.chat("scripted", keep_alive=-1).done_reason == "load"
        assert entry.expiry is None
        assert len(opened) == 3
        with pytest.raises(ollama.ResponseError, match="llama3"):
            client.generate("llama3", keep_alive=0)


def test_a_model_in_use_is_unloaded_when_it_is_free() -> None:
    with serving(Scripted(f"{FINAL}" + "word " * 500)) as served:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        with served.client.stream("POST", "/api/chat", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            told = served.post("/api/generate", {"model": "scripted", "keep_alive": 0}).json()
            assert told["done_reason"] == "unload"
            last = [json.loads(line) for line in lines][-1]
        assert last["done"]
        served.wait_until(lambda: served.registry.entries[0].status == "unloaded")


def test_a_model_whose_time_is_over_stays_while_it_is_used() -> None:
    scripted = Scripted(*[f"{FINAL}x<|return|>"] * 2)
    gate = gate_of(scripted)
    with serving(scripted) as served:
        entry = served.registry.entries[0]
        gate.set()
        body = {"messages": [{"role": "user", "content": "hi"}], "keep_alive": 1}
        served.post("/api/chat", body)
        gate.clear()
        body = {"messages": [{"role": "user", "content": "something else"}]}
        with served.client.stream("POST", "/api/chat", json=body) as response:
            served.wait_until(lambda: entry.expiry is None)
            assert entry.status == "ready"
            gate.set()
            assert json.loads(list(response.iter_lines())[-1])["done"]


def test_a_model_that_is_served_is_pulled_and_another_is_not_found(idle: Served) -> None:
    with client_at(idle) as client:
        assert client.pull("scripted").status == "success"
        assert [step.status for step in client.pull("scripted", stream=True)][-1] == "success"
        for stream in (False, True):
            with pytest.raises(ollama.ResponseError) as caught:
                list(client.pull("llama3", stream=stream))
            assert caught.value.status_code == 404


def test_what_cannot_be_done_with_models_is_refused_by_name(idle: Served) -> None:
    with client_at(idle) as client:
        for doing in (
            lambda: client.create("x", from_="scripted"),
            lambda: client.copy("scripted", "x"),
            lambda: client.delete("scripted"),
            lambda: client.push("scripted"),
            lambda: client.embed("scripted", "x"),
            lambda: client.embeddings("scripted", "x"),
        ):
            with pytest.raises(ollama.ResponseError, match="is not supported") as caught:
                doing()
            assert caught.value.status_code == 400
    assert list(idle.client.get("/api/nothing").json()) == ["error"]
    assert list(idle.client.get("/api/chat").json()) == ["error"]


def test_codex_finds_a_version_that_is_new_enough(idle: Served) -> None:
    version = idle.client.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 13, 4)


def test_enchanted_and_others_find_a_server_at_the_root(idle: Served) -> None:
    assert idle.client.get("/").text == "Ollama is running"
    head = idle.client.head("/")
    assert (head.status_code, head.text) == (200, "")
    assert idle.client.head("/api/tags").status_code == 200


def test_a_browser_gets_the_page_and_a_client_the_line(idle: Served) -> None:
    page = idle.client.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<title>" in page.text
    for name in ("page.js", "style.css", "vendor/markdown-it.js"):
        assert idle.client.get(f"/page/{name}").status_code == 200
    assert idle.client.get("/").text == "Ollama is running"
