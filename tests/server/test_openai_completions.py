"""Raw completions, read strictly by OpenAI's own types and by its client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion

from gptoss_mlx.server.policy import Policy
from tests.support.scripted_model import Scripted, tokenizer
from tests.support.served import Served, data_of, serving

PATH = "/v1/completions"


def ask(scripted: Scripted, **body: Any) -> Completion:
    with serving(scripted) as served:
        response = served.post(PATH, {"prompt": "Once", **body})
        assert response.status_code == 200, response.text
        return Completion.model_validate(response.json(), strict=True)


def test_its_own_client_reads_a_text_streamed_and_not() -> None:
    text = "upon a time é \U0001fadc<|return|>"
    with (
        serving(Scripted(text, text)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as client,
    ):
        whole = client.completions.create(model="scripted", prompt="Once")
        stream = client.completions.create(
            model="scripted", prompt="Once", stream=True, stream_options={"include_usage": True}
        )
        parts = list(stream)
    assert whole.choices[0].text == "upon a time é \U0001fadc"
    assert whole.choices[0].finish_reason == "stop"
    assert "".join(c.text for part in parts for c in part.choices) == whole.choices[0].text
    assert parts[-1].choices == []
    assert parts[-1].usage is not None
    assert whole.usage is not None
    assert parts[-1].usage.total_tokens == whole.usage.total_tokens
    assert whole.usage.completion_tokens == len(Scripted(text).replies[0])


def test_sixteen_tokens_are_written_unless_asked_otherwise() -> None:
    found = ask(Scripted("word " * 40))
    assert found.usage is not None
    assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (16, "length")
    found = ask(Scripted("word " * 40 + "<|return|>"), max_tokens=-1)
    assert found.choices[0].finish_reason == "stop"


def test_prompts_are_answered_in_order_each_n_times() -> None:
    """The choices of the first prompt come first; seeds follow each other, anew for each prompt."""
    replies = [f"{word}<|return|>" for word in ("a", "b", "c", "d")]
    scripted = Scripted(*replies)
    found = ask(scripted, prompt=["One", "Two two"], n=2, seed=5)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    encode = tokenizer().encode
    prompts = [encode("One"), encode("Two two")]
    assert [(ids, seed) for _, seed, ids in scripted.samplings] == [
        (prompts[0], 5),
        (prompts[0], 6),
        (prompts[1], 5),
        (prompts[1], 6),
    ]
    assert [choice.text for choice in found.choices] == ["a", "b", "c", "d"]
    assert found.usage is not None
    assert found.usage.prompt_tokens == sum(map(len, prompts))
    assert found.usage.completion_tokens == 8


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("<|start|>user", [200006, 1428]),
        ([200006, 1428], [200006, 1428]),
        ([[13225], [200006, 1428]], [13225]),
        (None, [199999]),
    ],
)
def test_a_prompt_is_text_or_ids(prompt: Any, read: list[int]) -> None:
    scripted = Scripted("x<|return|>", "y<|return|>")
    ask(scripted, prompt=prompt)
    assert scripted.samplings[0][2] == read


def test_logprobs_are_of_every_token_with_its_place() -> None:
    text = "Hi é \U0001fadc! STOP never"
    with serving(Scripted(*[text] * 3)) as served:
        body = {"prompt": "x", "stop": "STOP", "logprobs": 2}
        whole = served.post(PATH, body).json()["choices"][0]
        lines = served.stream(PATH, {**body, "stream": True})
        bare = served.post(PATH, {**body, "logprobs": 0}).json()["choices"][0]["logprobs"]
    found = whole["logprobs"]
    assert whole["text"] == "Hi é \U0001fadc! "
    assert found["tokens"][:2] == ["Hi", " é"]
    assert found["text_offset"][:2] == [0, 2]
    assert any(token.startswith("bytes:\\x") for token in found["tokens"])
    lengths = {len(values) for values in found.values()}
    assert len(lengths) == 1
    assert all(token in top for token, top in zip(*list(found.values())[::2], strict=False))
    streamed = [c["logprobs"] for part in data_of(lines) for c in part["choices"] if c["logprobs"]]
    assert [token for part in streamed for token in part["tokens"]] == found["tokens"]
    assert [at for part in streamed for at in part["text_offset"]] == found["text_offset"]
    assert bare["top_logprobs"] is None
    assert len(bare["token_logprobs"]) == len(found["tokens"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an echo": ({"echo": True}, "echo"),
    "a gap": ({"suffix": "x"}, "suffix"),
    "the best of more": ({"best_of": 3}, "best_of"),
    "nothing": ({"prompt": ""}, "prompt"),
    "no prompts": ({"prompt": []}, "prompt"),
    "no ids": ({"prompt": [[1], []]}, "prompt"),
    "an id that is none": ({"prompt": [1, 201088]}, "201088"),
    "words and ids": ({"prompt": ["x", 1]}, "prompt"),
    "too many prompts": ({"prompt": ["x"] * 65}, "prompt"),
    "more than may wait": ({"prompt": ["x"] * 60, "n": 3}, "180"),
    "too many alternatives": ({"logprobs": 6}, "logprobs"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "two rules": ({"grammar": "start: /a/", "regex": "a"}, "regex"),
    "too long a prompt": ({"prompt": "word " * 5000}, "4096"),
}


@pytest.fixture(scope="module")
def idle() -> Iterator[Served]:
    with serving(Scripted()) as served:
        yield served


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(case: str, idle: Served) -> None:
    body, named = REFUSED[case]
    for stream in (False, True):
        response = idle.post(PATH, {"prompt": "hi", "stream": stream, **body})
        assert response.status_code == 400, response.text
        assert named in response.json()["error"]["message"]


def test_what_other_clients_send_is_taken() -> None:
    body = dict.fromkeys(("echo", "suffix", "logprobs", "best_of", "stop", "seed", "n", "user"))
    found = ask(Scripted("x<|return|>"), **{**body, "best_of": 1, "user": "me", "other": [1]})
    assert found.choices[0].text == "x"


def test_an_error_of_one_choice_ends_the_stream_with_it() -> None:
    scripted = Scripted(*["a b c d<|return|>"] * 2)
    with serving(scripted, policy=Policy()) as served:
        scripted.fail("read", 2, RuntimeError("secret /path"))
        lines = served.stream(PATH, {"prompt": ["x", "y"], "stream": True})
        assert "server_error" in lines[-2]
        assert "secret" not in lines[-2]
        assert lines[-1] == "data: [DONE]"
        served.wait_until(lambda: served.registry.entries[0].sequences == 0)
