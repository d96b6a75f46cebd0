"""What users of other local servers reported with gpt-oss, true of this one in no API: the cases of
chat completions. Those that concern another API are in its own tests, under the same numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptoss_mlx
from gptoss_mlx.models.tiny import materialise
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted, encoding
from tests.support.served import Served, data_of, serving

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
F = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
COMMENTARY = "<|channel|>commentary"
CALL = f" to=functions.f{COMMENTARY} <|constrain|>json<|message|>"


def answer(reply: str | Sequence[int], **body: Any) -> dict[str, Any]:
    """The choice that a reply becomes, streamed and not."""
    with serving(Scripted(reply, reply, context=32768)) as served:
        asked = {"messages": HI, "tools": [F], **body}
        response = served.post(PATH, asked)
        assert response.status_code == 200, response.text
        lines = served.stream(PATH, {**asked, "stream": True})
    choice: dict[str, Any] = response.json()["choices"][0]
    assert_streamed(lines, choice)
    return choice


def assert_streamed(lines: Sequence[str], choice: dict[str, Any]) -> None:
    """The stream says what the whole answer does, and ends once."""
    assert lines[-1] == "data: [DONE]"
    parts = [c for value in data_of(lines) for c in value["choices"]]
    said = {"content": "", "reasoning": ""}
    calls: list[list[str]] = []
    for part in parts:
        for name in said:
            said[name] += part["delta"].get(name) or ""
        for call in part["delta"].get("tool_calls", ()):
            if "id" in call:
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    message = choice["message"]
    assert said["content"] == (message["content"] or "")
    assert said["reasoning"] == message.get("reasoning", "")
    assert calls == calls_of(choice)
    ends = [part["finish_reason"] for part in parts if part["finish_reason"]]
    assert ends == [choice["finish_reason"]]


def calls_of(choice: dict[str, Any]) -> list[list[str]]:
    calls = choice["message"].get("tool_calls", ())
    return [[call["function"]["name"], call["function"]["arguments"]] for call in calls]


def test_1_unexpected_tokens_in_a_header_lose_no_text() -> None:
    header = "<|channel|>final extra words <|constrain|>json<|constrain|><|message|>"
    choice = answer(f"{ANALYSIS}Hm.{AGAIN}{header}Hello.<|return|>")
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello.", "stop")


def test_2_a_recipient_without_a_function_is_no_failure() -> None:
    choice = answer(f" to=functions{COMMENTARY}<|message|>{{}}<|call|>")
    assert calls_of(choice) == [["functions", "{}"]]


@pytest.mark.parametrize(
    "header", ["<|channel|>analysisfinal<|message|>", "<|channel|><|message|>", "final<|message|>"]
)
def test_3_a_malformed_channel_does_not_fail_the_turn(header: str) -> None:
    assert "Hello." in json.dumps(answer(f"{header}Hello.<|return|>")["message"])


def test_4_a_final_message_without_a_channel_is_the_answer() -> None:
    assert answer("<|message|>Hello.<|return|>")["message"]["content"] == "Hello."
    assert answer("Hello.<|return|>")["message"]["content"] == "Hello."


@pytest.mark.parametrize(
    "header",
    [
        f" to=functions.f{COMMENTARY} <|constrain|>json<|message|>",
        f"{COMMENTARY} to=functions.f <|constrain|>json<|message|>",
        f"{COMMENTARY} to=functions.f<|message|>",
        f" to=functions.f{COMMENTARY} json<|message|>",
        f"{COMMENTARY} functions.f <|constrain|>json<|message|>",
    ],
)
def test_5_the_recipient_may_stand_in_the_role_or_the_channel(header: str) -> None:
    choice = answer(f'{header}{{"a": 1}}<|call|>')
    assert calls_of(choice) == [["f", '{"a": 1}']]
    assert choice["finish_reason"] == "tool_calls"


def test_6_code_of_many_lines_is_an_argument() -> None:
    code = "\n".join(f"def f{i}(x):\n\treturn \"\\n{i}\" + 'é' + x  # <|x" for i in range(200))
    arguments = json.dumps({"code": code}, ensure_ascii=False)
    ids = [*encoding().encode_special(CALL), *encoding().encode(arguments), 200012]
    (call,) = calls_of(answer(ids))
    assert json.loads(call[1]) == {"code": code}


def test_12_no_mark_leaks_and_arguments_are_not_reasoning() -> None:
    choice = answer(f'{ANALYSIS}I think.{AGAIN}{CALL}{{"a": [1]}}<|call|>')
    assert "<|" not in json.dumps(choice)
    assert choice["message"]["reasoning"] == "I think."


def test_13_the_turn_ends_at_a_call() -> None:
    """What the model makes up as the tool's result is not said."""
    made_up = "<|start|>functions.f to=assistant<|channel|>commentary<|message|>42<|end|>"
    choice = answer(f"{CALL}{{}}<|call|>{made_up}<|start|>assistant{FINAL}It is 42.<|return|>")
    assert calls_of(choice) == [["f", "{}"]]
    assert choice["message"]["content"] is None


def test_14_every_message_is_said() -> None:
    first = f"{COMMENTARY}<|message|>First.{AGAIN}"
    choice = answer(f"{ANALYSIS}a{AGAIN}{first}{ANALYSIS}b{AGAIN}{FINAL}Last.<|return|>")
    assert choice["message"]["content"] == "First.\n\nLast."
    assert choice["message"]["reasoning"] == "ab"


def test_39_reasoning_that_is_cut_off_does_not_end_by_a_stop() -> None:
    choice = answer(f"{ANALYSIS}one two three four five six", max_tokens=6)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ""


FRAGMENTS = (
    *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>"),
    *("<|return|>", "assistant", " to=functions.f", "analysis", "commentary", "final", "json"),
    *('{"a": 1}', "Hello é \U0001fadc", " ", "functions", "<|endoftext|>", "<|reserved_200014|>"),
)


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[Scripted, Served]]:
    script = Scripted()
    with serving(script) as served:
        yield script, served


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14))
def test_03_anything_a_model_writes_is_an_answer(
    scripted: tuple[Scripted, Served], fragments: list[str]
) -> None:
    script, served = scripted
    ids = [id for text in fragments for id in encoding().encode_special(text)]
    script.replies[:] = [[*ids, 200002]] * 2
    body = {"messages": HI, "tools": [F]}
    whole = served.post(PATH, body)
    assert whole.status_code == 200, whole.text
    lines = served.stream(PATH, {**body, "stream": True})
    assert_streamed(lines, whole.json()["choices"][0])


@pytest.fixture(scope="module")
def tiny() -> Iterator[Served]:
    """The tiny model; four answers at a time, and a prefix store."""
    engine = gptoss_mlx.load(materialise(), context=4096, parallel=4, cache="64MiB")
    with serving(engine) as served:
        yield served


def asked(served: Served, messages: Any, **body: Any) -> dict[str, Any]:
    body = {"messages": messages, "seed": 5, "temperature": 1.0, "max_tokens": 24, **body}
    response = served.post(PATH, body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def cached(found: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt that were not computed, and all of them."""
    usage = found["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def question(number: int, words: int = 200) -> list[dict[str, str]]:
    """Past the sliding window of 128 tokens."""
    return [
        {"role": "system", "content": f"Number {number}. " + "Be brief. " * (words // 3)},
        {"role": "user", "content": f"What is {number} + 5?"},
    ]


def test_23_a_schema_leaves_harmony_its_own_tokens(tiny: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = asked(tiny, question(3), response_format=form, max_tokens=300)
    message = found["choices"][0]["message"]
    assert found["choices"][0]["finish_reason"] == "stop"
    assert isinstance(json.loads(message["content"])["a"], int)


def test_25_a_window_that_has_wrapped_is_no_reason_to_read_again(tiny: Served) -> None:
    messages: list[Any] = question(41)
    for turn in range(3):
        found = asked(tiny, messages)
        reused, prompt = cached(found)
        if turn:
            assert prompt - reused < 100
        said = found["choices"][0]["message"]
        messages = [*messages, said, {"role": "user", "content": f"And {turn}?"}]


def test_26_another_conversation_s_keys_are_never_read(tiny: Served) -> None:
    """Two conversations take turns; each says what it says alone, on a server that knows nothing
    else."""
    engine = gptoss_mlx.load(materialise(), context=4096, parallel=1, cache=0)
    with serving(engine) as fresh:
        alone = [asked(fresh, question(n, 300 + n))["choices"] for n in (7, 8, 9)]
    for _ in range(2):
        assert [asked(tiny, question(n, 300 + n))["choices"] for n in (7, 8, 9)] == alone


def test_27_an_exact_hit_says_the_same_to_the_last_digit(tiny: Served) -> None:
    asked_for = {"logprobs": True, "top_logprobs": 2}
    first = asked(tiny, question(11), **asked_for)
    again = asked(tiny, question(11), **asked_for)
    assert cached(again)[0] == cached(again)[1] - 1
    assert again["choices"] == first["choices"]


def test_29_another_effort_reads_again_once(tiny: Served) -> None:
    """The effort stands at the head of the prompt; both versions are kept."""
    for effort in ("low", "high"):
        asked(tiny, question(13), reasoning_effort=effort)
    for effort in ("low", "high"):
        reused, prompt = cached(asked(tiny, question(13), reasoning_effort=effort))
        assert prompt - reused < 100


@pytest.mark.slow
def test_30_keys_and_values_stay_within_the_plan(tiny: Served) -> None:
    """After more than the store holds, and a burst at once (31)."""

    def held(name: str) -> float:
        lines = tiny.client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"gptoss_{name}")).split()[-1])

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(asked, tiny, question(100 + n, 600), max_tokens=1) for n in range(10)]
        for job in jobs:
            job.result()
    engine = tiny.registry.find(None).engine
    assert engine is not None
    assert engine.plan is not None
    assert held("store_bytes") <= engine.plan.store
    keys = engine.plan.of("keys and values", "sliding layers")
    assert held("kv_bytes") <= keys
    assert held("running") == held("waiting") == 0


def test_32_sequences_of_unequal_length_are_stepped_together(tiny: Served) -> None:
    sizes = (3, 30, 150, 600)
    alone = [asked(tiny, question(n, n))["choices"] for n in sizes]
    with ThreadPoolExecutor(4) as pool:
        together = [pool.submit(asked, tiny, question(n, n)) for n in sizes]
        assert [job.result()["choices"] for job in together] == alone
