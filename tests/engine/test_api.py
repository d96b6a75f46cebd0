"""The package as a Python program uses it: names, opening, closing, and answers that go back in."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest

import gptoss_mlx
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import FinishEvent, PrefillEvent, TokenEvent
from gptoss_mlx.engine.result import Result
from gptoss_mlx.errors import ClosedError, DeviceError, GptOssError, MessageError, OptionError
from gptoss_mlx.harmony import render
from gptoss_mlx.spec.sampling import Sampling
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, TO_F, F, Scripted, encoding

PREAMBLE = "<|channel|>commentary<|message|>"
USER = {"role": "user", "content": "hi"}


class TestNames:
    def test_everything_a_program_needs_is_in_the_package(self) -> None:
        assert (gptoss_mlx.Engine, gptoss_mlx.Result) == (Engine, Result)
        assert (gptoss_mlx.TokenEvent, gptoss_mlx.FinishEvent) == (TokenEvent, FinishEvent)
        assert (gptoss_mlx.PrefillEvent, gptoss_mlx.Sampling) == (PrefillEvent, Sampling)
        for name in gptoss_mlx.__all__:
            assert getattr(gptoss_mlx, name) is not None
            assert name in dir(gptoss_mlx)
        with pytest.raises(AttributeError, match="has no attribute 'Motor'"):
            _ = gptoss_mlx.Motor

    def test_a_name_brings_no_more_than_it_needs(self) -> None:
        code = (
            "import sys, gptoss_mlx\n"
            "from gptoss_mlx import TokenEvent, Result, Sampling, OptionError\n"
            "print(sorted({'mlx', 'torch', 'numpy'} & {n.split('.')[0] for n in sys.modules}))"
        )
        run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        assert run.stdout.strip() == b"[]"


class TestOpening:
    @pytest.mark.parametrize(
        ("options", "line"),
        [
            ({"context": "many"}, "context is 'many', but must be tokens, such as 8192 or 32k"),
            ({"context": float("inf")}, "context is inf, but must be tokens, such as 8192 or 32k"),
            ({"context": True}, "context is True, but must be"),
            ({"context": [1]}, "context is [1], but must be"),
            ({"context": "9" * 5000}, "context is '9999"),
            ({"memory": "lots"}, "memory is 'lots', but must be bytes, or a size such as 10GiB"),
            ({"memory": float("nan")}, "memory is nan, but must be"),
            ({"memory": -5}, "memory is -5, but must be"),
            ({"parallel": "two"}, "parallel is 'two', but must be a number of sequences"),
            ({"cache": "-1GiB"}, "cache is '-1GiB', but must be bytes, or a size such as 2GiB"),
            ({"cache_dir": 5}, "cache_dir is 5, but must be a folder"),
            ({"cache_disk": 0}, "cache_disk is 0, but must be a size such as 20GiB"),
            ({"dtype": "float16"}, "dtype is 'float16', but must be bfloat16 or float32"),
            ({"dtype": ["float32"]}, "dtype is ['float32'], but must be"),
            ({"kv_bits": 4}, "kv_bits is 4, but must be 8"),
            ({"embedding": "here"}, "embedding is 'here', but must be file or resident"),
            ({"model": 5}, "model is 5, but must be a folder, an id or tiny"),
            ({"model": b"tiny"}, "model is b'tiny', but must be"),
        ],
    )
    def test_a_wrong_argument_is_one_line(self, options: dict[str, Any], line: str) -> None:
        with pytest.raises(OptionError) as raised:
            gptoss_mlx.load(**({"model": "tiny"} | options))
        assert str(raised.value).startswith(line)
        assert len(str(raised.value)) < 200
        assert isinstance(raised.value, ValueError)

    @pytest.mark.parametrize("options", [{"backend": [1]}, {"device": 5}, {"device": "x" * 999}])
    def test_a_wrong_device_too(self, options: dict[str, Any]) -> None:
        with pytest.raises(DeviceError) as raised:
            gptoss_mlx.load("tiny", **options)
        assert len(str(raised.value)) < 200

    def test_a_path_and_sizes_as_text(self, tiny_folder: Path) -> None:
        with gptoss_mlx.load(tiny_folder, context="1k", memory="4GiB") as engine:
            assert engine.context == 1024
            assert repr(engine) == f"<Engine {str(tiny_folder)!r}, context 1024>"

    @pytest.mark.slow
    def test_a_progress_that_raises_at_any_call_leaves_nothing(self, tiny_folder: Path) -> None:
        calls = 0

        def progress(done: int, total: int) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyError("mine")

        at, calls = 0, 0
        gptoss_mlx.load(tiny_folder, progress=progress).close()
        for at in (1, 2, calls // 2, calls):  # noqa: B007
            calls = 0
            with pytest.raises(KeyError, match="mine"):
                gptoss_mlx.load(tiny_folder, progress=progress)
        at = calls = 0
        with gptoss_mlx.load(tiny_folder, progress=progress) as engine:
            assert engine.generate("hi", max_tokens=2).token_ids


@pytest.fixture(scope="module")
def tiny_folder() -> Path:
    from gptoss_mlx.models.hub import locate

    return locate("tiny", None)


class TestClosing:
    def test_all_of_it_is_given_back(self, tiny_folder: Path) -> None:
        engine = gptoss_mlx.load(tiny_folder, context=512)
        engine.generate("hi", max_tokens=3)
        network = weakref.ref(engine.model)
        engine.close()
        gc.collect()
        assert network() is None

    def test_a_closed_engine_says_so_in_every_method(self) -> None:
        with Scripted([64]).engine as engine:
            assert repr(engine) == "<Engine '', context 4096>"
        engine.close()
        assert repr(engine) == "<Engine '', context 4096, closed>"
        uses: list[Any] = [
            lambda: engine.stream("hi"),
            lambda: engine.generate("hi"),
            lambda: engine.stream_many(["hi"]),
            lambda: engine.generate_many(["hi"]),
            lambda: engine.logits([1]),
            lambda: engine.logits_parts([1]),
            lambda: engine.stats(),
            lambda: engine.model,
        ]
        for use in uses:
            with pytest.raises(ClosedError, match=r"^the engine is closed$"):
                use()

    @pytest.mark.parametrize("events", [0, 1, 4, 7])
    def test_open_streams_say_so_too_and_give_back_what_they_held(self, events: int) -> None:
        scripted = Scripted([64] * 9, [65] * 9)
        streams = [
            scripted.engine.stream([5, 6, 7], raw=True),
            scripted.engine.stream_many([[5, 6]], raw=True),
        ]
        for stream in streams:
            for _ in range(events):
                next(stream)
        scripted.engine.close()
        for stream in streams:
            with pytest.raises(ClosedError):
                list(stream)
            assert list(stream) == []
        assert scripted.engine._loop._idle is None


class TestCallbacks:
    @pytest.mark.parametrize("call", range(1, 9))
    def test_a_cancel_that_raises_leaves_the_engine_usable(self, call: int) -> None:
        calls = 0

        def cancel() -> bool:
            nonlocal calls
            calls += 1
            if calls == call:
                raise KeyError("mine")
            return False

        scripted = Scripted([64] * 5, [70, 71], [72], chunk=13)
        with pytest.raises(KeyError, match="mine"):
            list(scripted.engine.stream(list(range(100, 140)), raw=True, cancel=cancel))
        if call <= 3:  # while the prompt was read, before there was a sampler
            scripted.replies.pop(0)
        result = scripted.engine.generate(list(range(100, 140)), raw=True, max_tokens=2)
        assert result.token_ids == (70, 71)
        assert scripted.held() == [*range(100, 140), 70]


class TestAnswersGoBackIn:
    def test_the_channel_final_is_the_answer_and_nothing_else(self) -> None:
        reply = ANALYSIS + "hm" + AGAIN + PREAMBLE + "so" + AGAIN + FINAL + "the answer<|return|>"
        for stop in ((), ["zzz"]):
            events = list(Scripted(reply).engine.stream("hi", tools=[F], stop=stop))
            tokens = [event for event in events if isinstance(event, TokenEvent)]
            assert "".join(e.text for e in tokens if e.channel == "final") == "the answer"
            assert "".join(e.text for e in tokens) == "hmsothe answer"
            assert "".join(e.text + e.markup for e in tokens) == reply
            assert all((e.kind == "header") == bool(e.markup) for e in tokens if e.text + e.markup)

    @pytest.mark.parametrize(
        "reply",
        [
            FINAL + "hi<|return|>",
            ANALYSIS + "hm" + AGAIN + FINAL + "hi<|return|>",
            ANALYSIS + "hm" + AGAIN + TO_F + '{"a": 1}<|call|>',
            PREAMBLE + "I look." + AGAIN + TO_F + '{"b":[2]}<|call|>',
        ],
    )
    def test_a_message_renders_as_it_was_written(self, reply: str) -> None:
        result = Scripted(reply).engine.generate([USER], tools=[F], constrain_headers=False)
        ids = render(encoding(), [USER, result.message], tools=[F])
        begun = render(encoding(), [USER], tools=[F])
        written = reply.replace("<|return|>", "<|end|>")
        if FINAL in reply:  # what led to an answer is not read again
            written = written[written.index(FINAL) :]
        assert encoding().decode(ids[len(begun) :]) == written + "<|start|>assistant"

    def test_calls_are_taken_as_they_are_or_as_objects_of_json(self) -> None:
        reply = TO_F + '{"a": 1}<|call|>'
        result = Scripted(reply).engine.generate([USER], tools=[F], constrain_headers=False)
        answer = {"role": "tool", "tool_call_id": result.tool_calls[0].id, "content": "1"}
        forms = [
            result.message,
            {"role": "assistant", "tool_calls": result.tool_calls},
            {"role": "assistant", "tool_calls": [call.message for call in result.tool_calls]},
        ]
        ids = [render(encoding(), [USER, form, answer]) for form in forms]
        assert ids[0] == ids[1] == ids[2]

    def test_an_answer_without_anything_is_a_message_too(self) -> None:
        message = Scripted("<|return|>").engine.generate("hi", constrain_headers=False).message
        assert message == {"role": "assistant", "content": ""}
        assert render(encoding(), [USER, message, USER])


@pytest.mark.parametrize("prompts", ["Hi", b"Hi", USER, 5, None])
@pytest.mark.parametrize("method", ["generate_many", "stream_many"])
def test_one_prompt_is_not_taken_for_several(prompts: Any, method: str) -> None:
    with pytest.raises(MessageError, match=r"^prompts is .*, but must be a list of prompts$"):
        getattr(Scripted([64]).engine, method)(prompts)


def test_logits_come_in_parts_of_bounded_size(tiny_folder: Path) -> None:
    with gptoss_mlx.load(tiny_folder, context=512) as engine:
        ids = list(range(1000, 1075))
        parts = list(engine.logits_parts(ids))
        assert [len(part) for part in parts] == [32, 32, 11]
        whole = engine.logits(ids)
        assert whole.shape == (75, engine.config.vocab_size)
        assert (whole[32:64] == parts[1]).all()
        with pytest.raises(GptOssError):
            engine.logits_parts([-1])
