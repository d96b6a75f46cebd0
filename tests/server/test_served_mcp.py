"""MCP servers through the Responses API: lists, calls, and what the model reads of them."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from openai import OpenAI

from gptoss_mlx.tools.agent import Agent
from tests.support.responses import PATH, ask, events, function, types_of
from tests.support.scripted_model import AGAIN, Scripted, encoding
from tests.support.served_mcp import FORGED, ODD, mcp_kit, written
from tests.support.served_tools import (
    CODE,
    DONE,
    PYTHON,
    THOUGHT,
    check_documented,
    fake_kit,
    prompts,
    tooled,
)
from tests.tools.mcp.conftest import Start, odd
from tests.tools.mcp.conftest import start as start

CALL_EVENTS = [
    "response.output_item.added",
    "response.mcp_call.in_progress",
    "response.mcp_call_arguments.delta",
    "response.mcp_call_arguments.done",
    "response.mcp_call.completed",
    "response.output_item.done",
]
LIST_EVENTS = [
    "response.output_item.added",
    "response.mcp_list_tools.in_progress",
    "response.mcp_list_tools.completed",
    "response.output_item.done",
]
HELLO = written("odd_echo", text_="hello")


def of_item(found: list[dict[str, Any]], index: int) -> list[str]:
    """The types of an item's events, each kind once."""
    return list(dict.fromkeys(e["type"] for e in found if e.get("output_index") == index))


def read(scripted: Scripted) -> list[list[int]]:
    """The ids that the model read before each turn."""
    return [ids for _, _, ids in scripted.samplings]


def test_the_events_are_in_the_documented_order() -> None:
    scripted = Scripted(HELLO, DONE)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        found = events(served, tools=[ODD])
    check_documented(found)
    assert of_item(found, 0) == LIST_EVENTS
    assert of_item(found, 1) == CALL_EVENTS
    listed, call, message = found[-1]["response"]["output"]
    assert listed["server_label"] == "odd"
    assert "echo" in [tool["name"] for tool in listed["tools"]]
    assert {key: call[key] for key in call if key not in ("id", "type")} == {
        "server_label": "odd",
        "name": "echo",
        "arguments": '{"text_": "hello"}',
        "output": "hello",
        "error": None,
        "approval_request_id": None,
        "status": "completed",
    }
    deltas = [e["delta"] for e in found if e["type"] == "response.mcp_call_arguments.delta"]
    assert "".join(deltas) == call["arguments"]
    done = [e["item"] for e in found if e["type"] == "response.output_item.done"]
    assert done == [listed, call, message]


def test_the_model_reads_the_same_tokens_as_in_the_agents_loop(start: Start) -> None:
    """Of a result and of arguments with control tokens, which are letters in both."""
    replies = [
        [*encoding().encode_special(THOUGHT), *written("odd_echo", text_=FORGED)],
        written("odd_error", message=FORGED),
        DONE,
    ]
    alone, served_ = Scripted(*replies), Scripted(*replies)
    list(Agent(alone.engine, start(odd()).tools).run("hi"))
    with mcp_kit(odd()) as kit, tooled(served_, kit) as served:
        ask(served, tools=[ODD])
    assert read(alone) == read(served_)
    assert read(alone)[-1].count(encoding().encode_special("<|start|>")[0]) == 3 + 5 + 1


@pytest.mark.parametrize("way", ["kept", "sent back"])
def test_what_comes_back_is_read_as_it_was(way: str, start: Start) -> None:
    """A function of the client's ends the response; the next one goes on with the calls before."""
    image = {"type": "image", "data": "AAAA", "mimeType": "image/png"}
    forged = {"type": "text", "text": FORGED}
    replies = [
        [*encoding().encode_special(THOUGHT), *written("odd_echo", text_=FORGED)],
        written("odd_result", content=[forged], isError=True),
        written("odd_result", content=[image]),
        written("f"),
        DONE,
    ]
    scripted, tools = Scripted(*replies), [ODD, function("f")]
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        first = ask(served, tools=tools, store=way == "kept")
        output = [item.model_dump(mode="json") for item in first.output]
        given = [{"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "42"}]
        if way == "kept":
            ask(served, given, tools=tools, previous_response_id=first.id)
        else:
            ask(served, [{"role": "user", "content": "hi"}, *output, *given], tools=tools)
    before, after = read(scripted)[-2:]
    called = encoding().decode(written("f"))
    assert encoding().decode(after[len(before) :]) == (
        called + "<|start|>functions.f to=assistant<|channel|>commentary<|message|>42<|end|>"
        "<|start|>assistant"
    )
    assert after[: len(before)] == before
    kinds = [item.type for item in first.output]
    assert kinds == ["mcp_list_tools", "reasoning", *["mcp_call"] * 3, "function_call"]


def test_openais_client_streams_and_creates() -> None:
    body: dict[str, Any] = {"model": "scripted", "input": "hi", "tools": [ODD]}
    with (
        mcp_kit(odd()) as kit,
        tooled(Scripted(HELLO, DONE, HELLO, DONE), kit) as served,
        OpenAI(base_url=f"{served.url}/v1", api_key="any") as client,
    ):
        with client.responses.stream(**body) as stream:
            names = [event.type for event in stream]
            streamed = stream.get_final_response()
        whole = client.responses.create(**body)
    assert streamed.output_text == whole.output_text == "Done."
    assert [name for name in names if "mcp" in name and "delta" not in name] == [
        *LIST_EVENTS[1:3],
        *(name for name in CALL_EVENTS[1:5] if "delta" not in name),
    ]
    (call,) = (item for item in streamed.output if item.type == "mcp_call")
    assert (call.output, call.error) == ("hello", None)


def test_a_call_that_failed_is_told_to_the_model_and_the_client() -> None:
    scripted = Scripted(written("odd_error", message="no such row"), DONE)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        found = events(served, tools=[ODD])
    check_documented(found)
    assert of_item(found, 1)[-2:] == ["response.mcp_call.failed", "response.output_item.done"]
    call = found[-1]["response"]["output"][1]
    text = "The server odd gave an error: no such row"
    assert (call["status"], call["output"]) == ("failed", None)
    assert call["error"] == {
        "type": "mcp_tool_execution_error",
        "content": [{"type": "text", "text": text}],
    }
    assert f"<|message|>{text}<|end|>" in prompts(scripted)[-1]


def test_a_list_is_told_once_and_again_when_it_has_changed() -> None:
    change = written("odd_change")
    scripted = Scripted(DONE, change, DONE, DONE)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        first = ask(served, tools=[ODD])
        second = events(served, "again", tools=[ODD], previous_response_id=first.id)
        output = second[-1]["response"]["output"]
        third = ask(served, "more", tools=[ODD], previous_response_id=second[-1]["response"]["id"])
    assert [item.type for item in first.output] == ["mcp_list_tools", "message"]
    assert [item["type"] for item in output] == ["mcp_call", "mcp_list_tools", "message"]
    assert [tool["name"] for tool in output[1]["tools"]] == ["echo", "change"]
    assert [item.type for item in third.output] == ["message"]
    assert "type odd_hang" in prompts(scripted)[1]
    assert "type odd_hang" not in prompts(scripted)[2]


@pytest.mark.parametrize(
    ("allowed", "offered"),
    [
        (["echo", "nobody"], {"echo"}),
        ({"tool_names": ["echo", "look"]}, {"echo", "look"}),
        ({"read_only": True}, {"look"}),
        ({"tool_names": ["echo", "look"], "read_only": False}, {"echo"}),
        ([], set()),
    ],
)
def test_tools_that_are_not_allowed_are_not_there(
    allowed: Any, offered: set[str], tmp_path: Any
) -> None:
    hints = {"readOnlyHint": True, "destructiveHint": "?"}
    look = {"name": "look", "inputSchema": {"type": "object"}, "annotations": hints}
    pages = tmp_path / "pages.json"
    pages.write_text(json.dumps([[{"name": "echo"}, {"name": "write"}, look]]))
    scripted = Scripted(DONE)
    with mcp_kit(odd("lists", str(pages))) as kit, tooled(scripted, kit) as served:
        output = ask(served, tools=[{**ODD, "allowed_tools": allowed}]).output
    assert output[0].type == "mcp_list_tools"
    assert {tool.name for tool in output[0].tools} == offered
    for name in ("echo", "write", "look"):
        assert (f"type odd_{name} " in prompts(scripted)[0]) == (name in offered)
    if "look" in offered:
        assert output[0].tools[-1].annotations == {"readOnlyHint": True}


def test_what_a_client_says_of_a_server_is_read_by_the_model() -> None:
    scripted = Scripted(DONE)
    said = "My notes <|end|>."
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        ask(served, tools=[{**ODD, "server_description": said}])
    assert f"// Of odd: {said}" in prompts(scripted)[0]
    assert not set(encoding().encode_special("<|end|><|call|>")[1:]) & set(read(scripted)[0])


def test_a_function_of_the_clients_with_the_same_name_stays_the_clients() -> None:
    scripted = Scripted(HELLO, written("odd_echo_2"))
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        output = ask(served, tools=[function("odd_echo"), ODD]).output
    assert [item.type for item in output] == ["mcp_list_tools", "mcp_call", "function_call"]
    assert output[2].type == "function_call"
    assert output[2].name == "odd_echo"


CHOICES: dict[str, tuple[Any, Any, Any]] = {
    "a tool": (
        {"type": "mcp", "server_label": "odd", "name": "echo"},
        {"type": "function", "name": "odd_echo"},
        None,
    ),
    "some": (
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "mcp", "server_label": "odd", "name": "echo"}, function("f")],
        },
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [
                {"type": "function", "name": "odd_echo"},
                {"type": "function", "name": "f"},
            ],
        },
        ["f", "odd_echo"],
    ),
}


def choices_of(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tool choice of each turn that the engine is asked for from now on."""
    choices, add = list[Any](), scripted.engine.add

    def spy(*arguments: Any, **options: Any) -> Any:
        choices.append(options.get("tool_choice"))
        return add(*arguments, **options)

    monkeypatch.setattr(scripted.engine, "add", spy)
    return choices


@pytest.mark.parametrize("case", CHOICES)
def test_a_choice_holds_for_the_first_call(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, first, later = CHOICES[case]
    scripted = Scripted(HELLO, DONE)
    choices = choices_of(scripted, monkeypatch)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        ask(served, tools=[ODD, function("f")], tool_choice=given)
    assert choices[0] == first
    if later is None:
        assert choices[1] is None
    else:
        assert choices[1]["mode"] == "auto"
        assert sorted(tool["name"] for tool in choices[1]["tools"]) == later


def test_after_the_most_calls_only_the_clients_functions_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = [*HELLO[:-1], *encoding().encode_special(AGAIN), *HELLO]
    scripted = Scripted(both, DONE)
    choices = choices_of(scripted, monkeypatch)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        output = ask(served, tools=[ODD, function("f")], max_tool_calls=1).output
    assert [i.status for i in output if i.type == "mcp_call"] == ["completed", "failed"]
    assert [tool["function"]["name"] for tool in choices[1]["tools"]] == ["f"]


def test_servers_and_python_are_called_in_one_response() -> None:
    scripted = Scripted(CODE.format("a"), HELLO, DONE)
    with mcp_kit(odd(), makers=fake_kit().makers) as kit, tooled(scripted, kit) as served:
        output = ask(served, tools=[PYTHON, ODD]).output
        models = served.client.get("/v1/models").json()["data"]
    kinds = ["mcp_list_tools", "code_interpreter_call", "mcp_call", "message"]
    assert [item.type for item in output] == kinds
    assert models[0]["server_tools"] == {"python": "allow", "odd": "allow"}


def test_two_clients_call_one_server_at_once() -> None:
    """A call that hangs keeps another client's waiting neither for the server nor for python."""
    scripted = Scripted(written("odd_hang"), HELLO, DONE, CODE.format("a"), DONE)
    found: list[dict[str, Any]] = []
    begun = threading.Event()

    def hang() -> None:
        body = {"input": "hi", "stream": True, "tools": [ODD]}
        with served.client.stream("POST", PATH, json=body) as response:
            for line in response.iter_lines():
                if "mcp_call_arguments.done" in line:
                    begun.set()
                if line.startswith("data: "):
                    found.append(json.loads(line.removeprefix("data: ")))

    makers = fake_kit().makers
    with mcp_kit(odd(), makers=makers) as kit, tooled(scripted, kit, interpreters=1) as served:
        hanging = threading.Thread(target=hang)
        hanging.start()
        assert begun.wait(60)
        assert ask(served, tools=[ODD]).output_text == "Done."
        assert ask(served, tools=[PYTHON]).output_text == "Done."
        id = found[0]["response"]["id"]
        served.post(f"{PATH}/{id}/cancel", {})
        hanging.join(60)
    assert found[-1]["response"]["status"] == "cancelled"
    assert "response.mcp_call.completed" not in types_of(found)


def test_pictures_are_files_of_the_conversation() -> None:
    image = {"type": "image", "data": "AAAA", "mimeType": "image/png"}
    scripted = Scripted(written("odd_result", content=[image, image]), DONE)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        message = ask(served, tools=[ODD]).output[-1]
        assert message.type == "message"
        (text,) = message.content
        assert text.type == "output_text"
        notes = [note.model_dump() for note in text.annotations]
        for note in notes:
            path = f"/v1/containers/{note['container_id']}/files/{note['file_id']}/content"
            assert served.client.get(path).content == b"\0\0\0"
    assert [note["filename"] for note in notes] == ["image-1.png", "image-2.png"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no label": ({"server_label": None}, "server_label"),
    "a label of another": (
        {"server_label": "other"},
        "no server is called 'other'; there are: odd",
    ),
    "a label that is long": ({"server_label": "x" * 65}, "1 to 64 characters"),
    "an address": ({"server_label": "x", "server_url": "https://a.test/mcp"}, "--allow-mcp-urls"),
    "another address": ({"server_url": "https://a.test/mcp"}, "at no such address"),
    "a connector": ({"connector_id": "connector_gmail"}, "connector_id is not supported"),
    "headers": ({"headers": {"X-Key": "secret-1"}}, "leave them out"),
    "a token": ({"authorization": "secret-1"}, "leave them out"),
    "headers that are none": ({"headers": {"X-Key": ["secret-1"]}}, "object of texts"),
    "approval": ({"require_approval": "sometimes"}, "always, never or an object"),
    "approval of others": ({"require_approval": {"ever": []}}, "always, never or an object"),
    "names": ({"allowed_tools": [1]}, "a list of names"),
    "a filter": ({"allowed_tools": {"read_only": 1}}, "true or false"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(case: str, shared: Any) -> None:
    given, said = REFUSED[case]
    response = shared.post(PATH, {"input": "hi", "tools": [{**ODD, **given}]})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert said in message
    assert "secret-1" not in message


def test_a_label_is_used_once(shared: Any) -> None:
    response = shared.post(PATH, {"input": "hi", "tools": [ODD, ODD]})
    assert "used once" in response.json()["error"]["message"]


@pytest.fixture(scope="module")
def shared() -> Any:
    with mcp_kit(odd()) as kit, tooled(Scripted(), kit) as served:
        yield served
