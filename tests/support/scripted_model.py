"""An engine whose model only remembers and whose sampler says what it is told to.

Every step is logged, so that a test sees in which order things are queued and read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gptoss_mlx.backends.protocol import SampledToken
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event, FinishEvent, TokenEvent
from gptoss_mlx.engine.prefix import PrefixStore, root_name
from gptoss_mlx.files.store import OWNER_DIGITS, FileStore
from gptoss_mlx.harmony import Encoding, Mask
from gptoss_mlx.harmony.tokenizer import HarmonyTokenizer, Tokenizer
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.released import CONFIGS
from gptoss_mlx.spec.sampling import Sampling
from tests.support.ring_model import RingModel, RingState

VOCAB = 201088
FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
AGAIN = "<|end|><|start|>assistant"
TO_F = " to=functions.f<|channel|>commentary <|constrain|>json<|message|>"
F = {"type": "function", "function": {"name": "f"}}
Step = tuple[str, Any]


@functools.cache
def tokenizer() -> HarmonyTokenizer:
    return HarmonyTokenizer()


def encoding() -> Encoding:
    return tokenizer().harmony


class Pending:
    """A token on its way; it is not known before `read`."""

    def __init__(self, id: int, step: int, hook: Callable[[str, Any], None]) -> None:
        self.id, self.step, self.hook = id, step, hook
        self.token = self

    def read(self) -> SampledToken:
        self.hook("read", self.step)
        return SampledToken(self.id)


class ScriptedSampler:
    """Chooses reply[step] whatever the logits and the mask."""

    def __init__(self, reply: Sequence[int], hook: Callable[[str, Any], None]) -> None:
        self.reply, self.hook = reply, hook

    def choose(self, logits: Any, step: int, mask: Mask | None) -> Pending:
        self.hook("choose", step)
        id = self.reply[step] if step < len(self.reply) else 0
        return Pending(id, step, self.hook)

    def accept(self, choice: Pending) -> None:
        self.hook("accept", choice.step)


class Scripted:
    """engine: plays one reply a stream, in order; log: what model and sampler did.

    `fail` raises an exception at the n-th entry of a kind, once.
    """

    def __init__(
        self,
        *replies: str | Sequence[int],
        window: int = 8,
        chunk: int = 16,
        context: int = 4096,
        defaults: Mapping[str, Any] | None = None,
        tokenizer_: Tokenizer | None = None,
        cache: int = 0,
        cache_dir: Path | None = None,
    ) -> None:
        self.replies = [
            encoding().encode_special(reply) if isinstance(reply, str) else list(reply)
            for reply in replies
        ]
        self.model = RingModel(window, chunk, sampler=self._new_sampler)
        self.model.log = cast(Any, _Log(self._happens))
        self.log: list[Step] = []
        self.samplings: list[tuple[Sampling, int, list[int]]] = []
        self._failure: tuple[str, int, BaseException] | None = None
        self._arguments = (
            cast(Any, self.model),
            tokenizer_ or tokenizer(),
            ModelConfig.from_file(CONFIGS["openai/gpt-oss-20b"]),
            context,
            defaults or {},
        )
        self.open(cache, cache_dir)

    def open(self, cache: int, cache_dir: Path | None = None) -> None:
        """Make an engine, with a prefix store of so many bytes."""
        files = None
        if cache_dir is not None:
            files = FileStore(cache_dir, 1 << 30, root_name("ring")[:OWNER_DIGITS], 1 << 20)
        self.store = PrefixStore(cast(Any, self.model), cache, "ring", files)
        self.engine = Engine(*self._arguments, store=self.store)

    def fail(self, kind: str, after: int, error: BaseException) -> None:
        self._failure = (kind, after, error)

    def held(self) -> list[int]:
        """The ids in the state of the session that became idle last."""
        *_, session = self.engine._loop.idle.sessions
        assert isinstance(session.state, RingState)
        ids = [t.id if isinstance(t, Pending) else t for t in session.state.held()]
        assert session.tokens == ids
        return ids

    def count(self, kind: str) -> int:
        return len([step for step in self.log if step[0] == kind])

    def _new_sampler(self, options: Sampling, seed: int, prompt: Sequence[int]) -> ScriptedSampler:
        self.samplings.append((options, seed, list(prompt)))
        return ScriptedSampler(self.replies.pop(0), self._happens)

    def _happens(self, kind: str, what: Any) -> None:
        if self._failure is not None and self._failure[0] == kind:
            kind_, after, error = self._failure
            self._failure = (kind_, after - 1, error) if after else None
            if after == 0:
                raise error
        self.log.append((kind, what))


class Endless(list[Any]):
    """Replies that do not run out."""

    def pop(self, index: Any = 0) -> Any:
        return self[0]


class _Log:
    def __init__(self, hook: Callable[[str, Any], None]) -> None:
        self._hook = hook

    def append(self, step: tuple[str, list[Any]]) -> None:
        kind, tokens = step
        self._hook(kind, [t.step if isinstance(t, Pending) else t for t in tokens])


def ids_of(events: Sequence[Event]) -> list[int]:
    return [e.id for e in events if isinstance(e, TokenEvent) and e.id is not None]


def text_of(events: Sequence[Event], channel: str | None = "final") -> str:
    return "".join(
        e.text
        for e in events
        if isinstance(e, TokenEvent) and e.kind == "content" and e.channel == channel
    )


def finish_of(events: Sequence[Event]) -> FinishEvent:
    """The last event; there is no other of its kind."""
    assert [isinstance(e, FinishEvent) for e in events].index(True) == len(events) - 1
    last = events[-1]
    assert isinstance(last, FinishEvent)
    return last
