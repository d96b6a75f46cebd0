"""Calls that the server runs: how many, how long, of which tools, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gptoss_mlx.server.toolkit import Toolkit
from tests.support.responses import PATH, ask, events, function, types_of
from tests.support.scripted_model import AGAIN, FINAL, Scripted
from tests.support.served_tools import CODE, DONE, PYTHON, SEARCH, codes, fake_kit, prompts, tooled


@pytest.mark.parametrize("limit", ["of the request", "of the server"])
def test_after_the_most_calls_the_model_has_to_answer(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices: list[Any] = []
    scripted, log = Scripted(CODE.format("a"), CODE.format("b"), DONE), list[tuple[str, str]]()
    add = scripted.engine.add

    def spy(*given: Any, **options: Any) -> Any:
        choices.append(options.get("tool_choice"))
        return add(*given, **options)

    monkeypatch.setattr(scripted.engine, "add", spy)
    is_requests = limit == "of the request"
    kit = fake_kit(log=log, **({} if is_requests else {"most_calls": 2}))
    body: dict[str, Any] = {"max_tool_calls": 2} if is_requests else {"max_tool_calls": 9}
    with tooled(scripted, kit) as served:
        response = ask(served, tools=[PYTHON], **body)
    assert codes(log) == ["a", "b"]
    assert choices == [None, None, "none"]
    assert response.status == "completed"
    assert response.max_tool_calls == body["max_tool_calls"]


def test_calls_beyond_the_limit_are_not_run() -> None:
    """Of a turn that makes several at once; the model reads why."""
    both = CODE.format("a").replace("<|call|>", AGAIN) + CODE.format("b")
    scripted, log = Scripted(both, DONE), list[tuple[str, str]]()
    with tooled(scripted, fake_kit(log=log)) as served:
        output = ask(served, tools=[PYTHON], max_tool_calls=1).output
    assert codes(log) == ["a"]
    assert [i.status for i in output if i.type == "code_interpreter_call"] == [
        *("completed", "failed")
    ]
    assert "No more calls are run: the limit is 1." in prompts(scripted)[-1]


def test_no_calls_are_offered_where_none_may_be_made() -> None:
    scripted = Scripted(DONE)
    with tooled(scripted, fake_kit()) as served:
        ask(served, tools=[PYTHON], max_tool_calls=0)
    assert "## python" not in prompts(scripted)[0]


def test_the_limit_of_tokens_is_that_of_all_turns() -> None:
    first = CODE.format("a")
    used = len(Scripted(first).replies[0])
    scripted = Scripted(first, f"{FINAL}one two three four<|return|>", first)
    with tooled(scripted, fake_kit()) as served:
        response = ask(served, tools=[PYTHON], max_output_tokens=used + 5)
        assert response.status == "incomplete"
        assert response.usage is not None
        assert response.usage.output_tokens == used + 5
        spent = ask(served, tools=[PYTHON], max_output_tokens=used)
    assert spent.status == "incomplete"
    assert spent.incomplete_details is not None
    assert spent.incomplete_details.reason == "max_output_tokens"


def test_a_call_that_was_cut_short_is_not_run() -> None:
    log: list[tuple[str, str]] = []
    reply = CODE.format("one two three four five")
    with tooled(Scripted(reply, reply), fake_kit(log=log)) as served:
        found = events(served, tools=[PYTHON], max_output_tokens=9)
        whole = ask(served, tools=[PYTHON], max_output_tokens=9)
    assert codes(log) == []
    (item,) = found[-1]["response"]["output"]
    assert (item["type"], item["status"]) == ("code_interpreter_call", "incomplete")
    assert types_of(found)[-2:] == ["response.output_item.done", "response.incomplete"]
    assert [item.type for item in whole.output] == ["code_interpreter_call"]


def test_no_call_is_run_of_a_turn_that_was_cut_short() -> None:
    both = CODE.format("a").replace("<|call|>", AGAIN) + CODE.format("one two three four")
    log: list[tuple[str, str]] = []
    with tooled(Scripted(both), fake_kit(log=log)) as served:
        most = len(Scripted(both).replies[0]) - 2
        found = events(served, tools=[PYTHON], max_output_tokens=most)
    assert codes(log) == []
    output = found[-1]["response"]["output"]
    assert [(item["code"], item["status"]) for item in output] == [
        ("a", "incomplete"),
        ("one two three", "incomplete"),
    ]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a file that was uploaded": (
        {"tools": [{**PYTHON, "container": {"type": "auto", "file_ids": ["f"]}}]},
        "file_ids",
    ),
    "more memory": (
        {"tools": [{**PYTHON, "container": {"type": "auto", "memory_limit": "64g"}}]},
        "memory_limit",
    ),
    "a network": (
        {"tools": [{**PYTHON, "container": {"type": "auto", "network_policy": {"type": "x"}}}]},
        "network_policy",
    ),
    "a container that is a number": ({"tools": [{**PYTHON, "container": 5}]}, "container"),
    "a choice of what is not there": ({"tool_choice": {"type": "code_interpreter"}}, "cannot be"),
    "calls below nothing": ({"max_tool_calls": -1}, "max_tool_calls"),
    "a search": ({"tools": [SEARCH]}, "--tool browser"),
    "an older search": ({"tools": [{"type": "web_search_preview"}]}, "--tool browser"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(case: str) -> None:
    body, name = REFUSED[case]
    with tooled(Scripted(), fake_kit()) as served:
        response = served.post(PATH, {"input": "hi", **body})
    assert response.status_code == 400
    assert name in response.json()["error"]["message"]


def test_a_server_without_tools_says_how_it_gets_them() -> None:
    with tooled(Scripted(DONE), Toolkit()) as served:
        error = served.post(PATH, {"input": "hi", "tools": [PYTHON]}).json()["error"]
        assert ask(served, tools=[SEARCH, function("f")]).output_text == "Done."  # as Codex does
        assert "server_tools" not in served.client.get("/v1/models").json()["data"][0]
    assert error["code"] == "tool_not_available"
    assert "--tool python" in error["message"]


CHOICES: dict[str, tuple[Any, Any]] = {
    "of the tool": ({"type": "code_interpreter"}, {"type": "python"}),
    "required": ("required", "required"),
    "of some": (
        {"type": "allowed_tools", "mode": "required", "tools": [PYTHON]},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "python"}]},
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_a_choice_holds_for_the_first_call(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it the model may answer, or it never would."""
    given, first = CHOICES[case]
    scripted, choices = Scripted(CODE.format("a"), DONE), list[Any]()
    add = scripted.engine.add

    def spy(*arguments: Any, **options: Any) -> Any:
        choices.append(options.get("tool_choice"))
        return add(*arguments, **options)

    monkeypatch.setattr(scripted.engine, "add", spy)
    with tooled(scripted, fake_kit()) as served:
        ask(served, tools=[PYTHON, function("f")], tool_choice=given)
    later = {**first, "mode": "auto"} if case == "of some" else None
    assert choices == [first, later]
