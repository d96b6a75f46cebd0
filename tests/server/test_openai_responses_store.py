"""Responses that are kept: gone on from, read, deleted, cancelled, listed and dropped."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pytest
from openai.types.responses import Response
from openai.types.responses.response_item_list import ResponseItemList

from gptoss_mlx.server.openai.response_object import begun
from gptoss_mlx.server.openai.response_store import ResponseStore
from gptoss_mlx.server.openai.responses_request import ResponsesRequest
from gptoss_mlx.server.problems import Problem
from tests.support.gate import Gate
from tests.support.responses import CALL, PATH, ask, events, function
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import LONG, Served, serving

OK = f"{FINAL}ok<|return|>"
CALLED = f"{ANALYSIS}I look.{AGAIN}" + CALL.format("f", '{"a": 1}')
LONG_REPLY = FINAL + "word " * 3000 + "<|return|>"
OUTPUT = {"type": "function_call_output", "output": "42"}


def prompts(scripted: Scripted) -> list[str]:
    """What the model read, as far as it was asked to answer."""
    return [scripted.engine.tokenizer.harmony.decode(ids) for _, _, ids in scripted.samplings]


def call_id(response: Response) -> str:
    (id,) = (item.call_id for item in response.output if item.type == "function_call")
    return id


@pytest.mark.parametrize("stream", [False, True])
def test_15_a_response_goes_on_from_the_previous_one(stream: bool) -> None:
    """A tool's result alone is enough; instructions are those of the last request."""
    scripted = Scripted(CALLED, OK)
    body: dict[str, Any] = {"tools": [function("f")]}
    with serving(scripted) as served:
        first = ask(served, "hi", instructions="First.", **body)
        input = [{**OUTPUT, "call_id": call_id(first)}]
        body |= {"previous_response_id": first.id, "instructions": "Second."}
        if stream:
            assert events(served, input, **body)[-1]["response"]["previous_response_id"] == first.id
        else:
            assert ask(served, input, **body).previous_response_id == first.id
    read = prompts(scripted)[1]
    assert read.endswith(
        "<|start|>user<|message|>hi<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>I look.<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>"
        '{"a": 1}<|call|>'
        "<|start|>functions.f to=assistant<|channel|>commentary<|message|>42<|end|>"
        "<|start|>assistant"
    )
    assert "Second." in read
    assert "First." not in read


def test_a_previous_response_that_is_not_kept_is_a_clear_error() -> None:
    with serving(Scripted(OK, OK)) as served:
        unkept = ask(served, store=False).id
        deleted = ask(served).id
        assert served.client.delete(f"{PATH}/{deleted}").json()["deleted"] is True
        for id in (unkept, deleted, "resp_none"):
            body = {"input": "x", "previous_response_id": id}
            error = served.post(PATH, body).json()["error"]
            assert (error["code"], error["param"]) == (
                "previous_response_not_found",
                "previous_response_id",
            )
            for response in (
                served.client.get(f"{PATH}/{id}"),
                served.client.get(f"{PATH}/{id}/input_items"),
                served.client.delete(f"{PATH}/{id}"),
                served.post(f"{PATH}/{id}/cancel", {}),
            ):
                assert response.status_code == 404
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
                assert id in response.json()["error"]["message"]


def test_a_response_is_read_as_it_was_given() -> None:
    with serving(Scripted(CALLED)) as served:
        given = served.post(PATH, {"input": "hi", "metadata": {"a": "b"}}).json()
        assert served.client.get(f"{PATH}/{given['id']}").json() == given
        assert given["metadata"] == {"a": "b"}
        again = served.client.get(f"{PATH}/{given['id']}?stream=true&starting_after=2")
    assert again.status_code == 400
    assert again.json()["error"]["param"] == "stream"


def listed(served: Served, id: str, **query: Any) -> ResponseItemList:
    response = served.client.get(f"{PATH}/{id}/input_items", params=query)
    return ResponseItemList.model_validate(response.json(), strict=True)


def test_input_items_are_paged_in_either_order() -> None:
    input = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "4"},
        {"role": "user", "content": [{"type": "input_text", "text": "five"}]},
    ]
    with serving(Scripted(OK)) as served:
        id = ask(served, input).id
        whole = listed(served, id, order="asc")
        kinds = ["message", "message", "function_call", "function_call_output", "message"]
        assert [item.type for item in whole.data] == kinds
        assert not whole.has_more
        ids = [str(item.id) for item in whole.data]
        assert [item.id for item in listed(served, id).data] == ids[::-1]
        first = listed(served, id, limit=2, order="asc")
        assert (first.first_id, first.last_id, first.has_more) == (ids[0], ids[1], True)
        rest = listed(served, id, limit=3, order="asc", after=first.last_id)
        assert [item.id for item in rest.data] == ids[2:]
        assert not rest.has_more
        for query in ({"limit": "0"}, {"limit": "many"}, {"after": "msg_none"}):
            path = f"{PATH}/{id}/input_items"
            assert served.client.get(path, params=query).status_code == 400


def test_an_item_is_meant_by_its_id() -> None:
    scripted = Scripted(CALLED, OK)
    with serving(scripted) as served:
        first = ask(served, tools=[function("f")])
        references = [{"type": "item_reference", "id": item.id} for item in first.output]
        ask(served, [*references, {**OUTPUT, "call_id": call_id(first)}])
        gone = served.post(PATH, {"input": [{"type": "item_reference", "id": "rs_none"}]})
    assert "I look." in prompts(scripted)[1]
    assert gone.status_code == 400
    assert "rs_none" in gone.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_one_that_runs_is_cancelled_within_a_token(gate: Gate, stream: bool) -> None:
    """And gives what it has by then."""
    scripted = Scripted(LONG_REPLY, OK, context=8192)
    with serving(scripted) as served:
        ended: list[Any] = []
        gate.close()

        def run() -> None:
            if stream:
                ended.append(events(served)[-1]["response"])
            else:
                ended.append(served.post(PATH, {"input": "hi"}).json())

        thread = threading.Thread(target=run)
        thread.start()
        running = served.listener.config.app.responses.running  # type: ignore[union-attr]
        gate.let(20)
        (id,) = running
        served.wait_until(lambda: bool(served.client.get(f"{PATH}/{id}").json()["output"]))
        assert served.client.get(f"{PATH}/{id}").json()["status"] == "in_progress"
        too_early = served.post(PATH, {"input": "x", "previous_response_id": id}).json()
        assert too_early["error"]["code"] == "previous_response_not_found"
        read = scripted.count("read")
        assert served.post(f"{PATH}/{id}/cancel", {}).json()["status"] == "cancelled"
        gate.open()
        thread.join(LONG)
        assert scripted.count("read") <= read + 1
        assert ended[0]["status"] == "cancelled"
        assert ended[0]["output"][0]["content"][0]["text"]
        assert served.client.get(f"{PATH}/{id}").json() == ended[0]
        # Cancelled again, it stays as it is.
        assert served.post(f"{PATH}/{id}/cancel", {}).json() == ended[0]
        assert ask(served).output_text == "ok"


def store_of_some(most: int, most_bytes: int, **texts: str) -> ResponseStore:
    store = ResponseStore(most, most_bytes)
    echo = ResponsesRequest.model_validate({"input": "x"}).echo()
    for id, text in texts.items():
        store.keep(begun(id, 0, "m", echo), [{"id": f"msg_{id}", "text": text}])
    return store


def kept(store: ResponseStore, *ids: str) -> list[str]:
    """Those of the ids that are kept, with their items."""
    found = []
    for id in ids:
        with suppress(Problem):
            store.thread(id)
            found.append(id)
    assert [id for id in ids if store.item(f"msg_{id}") is not None] == found
    return found


def test_the_one_used_longest_ago_is_dropped_by_number_and_by_bytes() -> None:
    store = store_of_some(3, 1 << 20, a="", b="", c="")
    store.thread("a")
    store.keep(store.find("c").response | {"id": "d"}, [{"id": "msg_d"}])  # type: ignore[arg-type]
    assert kept(store, "a", "b", "c", "d") == ["a", "c", "d"]
    store = store_of_some(9, 10_000, a="x" * 6000, b="x" * 2000, c="x" * 1000, d="x" * 20_000)
    assert kept(store, "a", "b", "c", "d") == ["b", "c"]
    store.keep(store.find("c").response | {"id": "e"}, store.find("b").items)  # type: ignore[arg-type]
    store.remove("e")
    assert kept(store, "b") == ["b"]
    store.remove("b")
    store.remove("c")
    assert (store.nbytes, store.item("msg_c")) == (0, None)
