"""The generate and chat commands on an engine that follows a script instead of a model.

`python -m tests.support.scripted_engine SCRIPT ARGUMENT...` is generate in a process of its own, or
chat where COMMAND=chat, and SCRIPT is a JSON list of steps:
    ["analysis" | "commentary" | "final" | null, recipient | null, text]   a message
    ["prefill", done, total]    progress with the prompt
    ["load", done, total]       progress while loading
    "load key", "key"           wait for a key, while loading or in the stream
    "wait"                 wait until the stream is cancelled
    "deaf"                      say that it was cancelled, and go on for ever
    "stuck"                     load for ever
    "lingering"                 load for ever, and clean up for ever
    ["finish", reason, limit]   instead of stop, the limit if there is one
    "turn"                      what follows is for the next stream; after the last, it begins again
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gptoss_mlx.engine.events import Event, FinishEvent, PrefillEvent, Timings, TokenEvent

if TYPE_CHECKING:
    from gptoss_mlx.harmony.tokenizer import Tokenizer

TIMINGS = Timings(0.5, 2.0, 0.75, prefill_tokens=8, reused_tokens=2, decode_tokens=20)


class ScriptedEngine:
    """Plays its script at every stream, and remembers what it was asked."""

    def __init__(self, script: Sequence[Any]) -> None:
        self.script, self.plan = script, None
        self.notes: tuple[str, ...] = ()
        self.loads: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[tuple[Any, dict[str, Any]]] = []

    name, context = "scripted", 4096

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from gptoss_mlx.harmony.tokenizer import HarmonyTokenizer

        return HarmonyTokenizer()

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> ScriptedEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def load(self, model: str, *, progress: Callable[[int, int], None], **options: Any) -> Any:
        self.loads.append((model, options))
        for step in self.script:
            if isinstance(step, list) and step[0] == "load":
                progress(*step[1:])
            elif step == "stuck":
                wait_for(lambda: False)
            elif step == "lingering":
                try:
                    print("working", file=sys.stderr, flush=True)
                    wait_for(lambda: False)
                finally:
                    print("unwinding", file=sys.stderr, flush=True)
                    wait_for(lambda: False)
            elif step == "load key":
                sys.stdin.readline()
        return self

    def stream(self, prompt: Any, *, cancel: Callable[[], bool], **options: Any) -> Iterator[Event]:
        turns = _turns(self.script)
        turn = turns[len(self.asked) % len(turns)]
        self.asked.append((prompt, options))
        reason: Any = "stop"
        limit: Any = None
        for step in turn:
            if isinstance(step, Exception):
                raise step
            if step == "wait":
                if os.environ.get("SAY_READY"):
                    print("ready", file=sys.stderr, flush=True)
                wait_for(cancel)
                reason = "cancelled"
            elif step == "deaf":
                wait_for(cancel)
                yield from message(None, None, " deaf")
                wait_for(lambda: False)
            elif step == "key":
                sys.stdin.readline()
            elif step[0] == "prefill":
                yield PrefillEvent(step[1], step[2], 0)
            elif step[0] == "finish":
                reason, limit = step[1], step[2] if len(step) > 2 else None
            elif step[0] != "load" and step not in ("load key", "stuck", "lingering"):
                yield from message(*step)
        yield FinishEvent(reason, 10, 20, 1234, TIMINGS, limit)


def _turns(script: Sequence[Any]) -> list[list[Any]]:
    turns: list[list[Any]] = [[]]
    for step in script:
        if step == "turn":
            turns.append([])
        else:
            turns[-1].append(step)
    return turns


def message(channel: str | None, recipient: str | None, text: str) -> Iterator[TokenEvent]:
    """The events of one message, in pieces of up to three characters."""
    header = channel is not None
    if header:
        yield TokenEvent(200005, "")
        markup = f"<|channel|>{channel}<|message|>"
        yield TokenEvent(200008, "", channel, recipient, None, "header", markup=markup)
    for start in range(0, len(text), 3):
        yield TokenEvent(start, text[start : start + 3], channel, recipient, logprob=-0.5)
    if header:
        yield TokenEvent(200007, "", channel, recipient, None, "header", markup="<|end|>")


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        select.select([], [], [], 0.01)


def run() -> None:
    import gptoss_mlx

    engine = ScriptedEngine(json.loads(sys.argv.pop(1)))
    setattr(gptoss_mlx, "load", engine.load)  # noqa: B010 (its type is another)
    if os.environ.get("OWN_TERMINAL"):
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    if os.environ.get("COMMAND") == "chat":
        from gptoss_mlx.cli.chat.__main__ import main

        main()
    from gptoss_mlx import generate

    generate.BAR_AFTER = float(os.environ.get("BAR_AFTER", 1000))
    generate.main()


if __name__ == "__main__":
    run()
