"""A request: a prompt with its options, checked against the model before anything is computed."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import TypedDict, Unpack, cast

import numpy as np

from gptoss_mlx.engine.constraint import Constraint
from gptoss_mlx.engine.events import Limit
from gptoss_mlx.engine.marks import Marks, marks_of
from gptoss_mlx.engine.options import Message, Options, Prompt, SamplingOptions
from gptoss_mlx.errors import ContextError, MessageError, SamplingError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony import Encoding, render
from gptoss_mlx.harmony.compiler import Compiler
from gptoss_mlx.harmony.text_grammar import GrammarState
from gptoss_mlx.harmony.tokenizer import Tokenizer
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.sampling import DRAWN_SEEDS, Sampling

COUNTED = 4
"""Contexts up to which the tokens of too long a prompt are counted."""


class Head(TypedDict, total=False):
    """What is rendered into a Harmony prompt beside its messages."""

    tools: Sequence[Message]
    system: str | None
    reasoning: str
    response_format: Message | None


@dataclass(frozen=True)
class Request:
    """One checked request: the prompt's token ids, how to sample, and when to end.

    marks: positions in ids where a later prompt may diverge, at which snapshots are taken.
    limit: where max_tokens comes from, the option of that name or the room left in the context.
    max_time: seconds, from the beginning of the prefill.
    stop_repetition: end an answer that repeats itself (`Repetition`).
    encoding: Harmony's; None in raw mode. grammar: what may be sampled; None for anything.
    """

    ids: list[int]
    marks: Marks
    max_tokens: int
    limit: Limit
    max_time: float
    stop_repetition: bool
    sampling: Sampling
    seed: int
    stop: tuple[str, ...]
    encoding: Encoding | None
    grammar: GrammarState | None
    cancel: Callable[[], bool]


@dataclass(frozen=True)
class Preprocessor:
    """Makes requests from prompts and options, for one model.

    defaults: sampling options the checkpoint asks for.
    """

    tokenizer: Tokenizer
    config: ModelConfig
    context: int
    defaults: Mapping[str, object]

    def request(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        max_time: float | None = None,
        stop_repetition: bool = True,
        raw: bool = False,
        tools: Sequence[Message] = (),
        system: str | None = None,
        reasoning: str = "medium",
        response_format: Message | None = None,
        tool_choice: str | Message | None = None,
        grammar: str | None = None,
        regex: str | None = None,
        reasoning_budget: int | None = None,
        constrain_headers: bool = True,
        stop: str | Sequence[str] | None = None,
        cancel: Callable[[], bool] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Request:
        """The checked request. Options and errors: see `Engine.stream`.

        Raises MessageError, GrammarError, ContextError or SamplingError.
        """
        encoding = None if raw else self.tokenizer.harmony
        head: Head = {
            "tools": tools,
            "system": system,
            "reasoning": reasoning,
            "response_format": response_format,
        }
        ids = self.ids(prompt, raw=raw, **head)
        tokens, limit = self._limit(len(ids), max_tokens)
        options = self._options(sampling)
        constraint = Constraint(
            tools=tools,
            response_format=response_format,
            tool_choice=tool_choice,
            grammar=grammar,
            regex=regex,
            reasoning_budget=reasoning_budget,
            headers=constrain_headers,
        )
        return Request(
            ids=ids,
            marks=marks_of(ids, encoding is not None),
            max_tokens=tokens,
            limit=limit,
            max_time=_seconds(max_time),
            stop_repetition=stop_repetition,
            sampling=options,
            seed=secrets.randbelow(DRAWN_SEEDS) if options.seed is None else options.seed,
            stop=_stop_strings(stop),
            encoding=encoding,
            grammar=self._grammar(constraint, encoding),
            cancel=cancel or (lambda: False),
        )

    def ids(self, prompt: Prompt, *, raw: bool = False, **head: Unpack[Head]) -> list[int]:
        """The token ids that a prompt is read as. Raises MessageError or ContextError."""
        ids = self._read(prompt, raw, self.context, head)
        self.check_ids(ids)
        return ids

    def count(self, prompt: Prompt, options: Options) -> int:
        """The tokens of a prompt, which may be more than the context holds.

        Raises MessageError, or ContextError for more than the model allows at all.
        """
        head: Head = {
            "tools": options.get("tools", ()),
            "system": options.get("system"),
            "reasoning": options.get("reasoning", "medium"),
            "response_format": options.get("response_format"),
        }
        most = self.config.max_position_embeddings
        return len(self._read(prompt, options.get("raw", False), most, head))

    def _read(self, prompt: Prompt, raw: bool, most: int, head: Head) -> list[int]:
        encoding = None if raw else self.tokenizer.harmony
        if encoding is None and any(
            head.get(name) for name in ("tools", "system", "response_format")
        ):
            raise MessageError("raw mode knows no system message, tools or response format")
        if isinstance(prompt, bytes) or not isinstance(prompt, (str, Sequence, np.ndarray)):
            raise MessageError("the prompt must be a text, token ids or a list of messages")
        if not isinstance(prompt, str) and all(isinstance(id, Integral) for id in prompt):
            return [int(cast(int, id)) for id in prompt]
        # One that is too long is counted, as far as that takes little time.
        for limit in (most, most * COUNTED):
            try:
                if encoding is not None:
                    return render(encoding, _messages(prompt), most=limit, **head)
                if isinstance(prompt, str):
                    return self.tokenizer.encode(prompt, limit)
            except ContextError:
                continue
            raise MessageError("raw mode continues a text: it takes no list of messages")
        raise self._too_long(f"more than {most * COUNTED}", None)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises MessageError or ContextError if the model cannot read these tokens."""
        if len(ids) == 0:
            raise MessageError("the prompt is empty: give it at least one token")
        for id in (min(ids), max(ids)):
            if not 0 <= id < self.config.vocab_size:
                vocabulary = f"the model's vocabulary of {self.config.vocab_size}"
                raise MessageError(f"token id {shown(id)} is outside {vocabulary}")
        if len(ids) > self.context:
            raise self._too_long(str(len(ids)), len(ids))

    def _too_long(self, said: str, tokens: int | None) -> ContextError:
        return ContextError(
            f"the prompt has {said} tokens, but the context holds {self.context};"
            f" the model allows a context of {self.config.max_position_embeddings}",
            tokens=tokens,
            context=self.context,
        )

    def _limit(self, prompt_tokens: int, max_tokens: int | None) -> tuple[int, Limit]:
        """How many tokens may be generated, and what limits them."""
        room = self.context - prompt_tokens
        if room < 1:
            raise ContextError(
                f"the prompt has {prompt_tokens} tokens and leaves no room for an answer"
                f" in a context of {self.context}; the model allows"
                f" {self.config.max_position_embeddings}",
                tokens=prompt_tokens,
                context=self.context,
            )
        if max_tokens is not None and (not _is_whole(max_tokens) or max_tokens < 1):
            raise SamplingError(
                f"max_tokens is {shown(max_tokens)}, but must be a whole number above 0"
            )
        if max_tokens is None or max_tokens > room:
            return room, "context"
        return max_tokens, "max_tokens"

    def _options(self, sampling: SamplingOptions) -> Sampling:
        """The options given, else the checkpoint's, else the defaults; None counts as not given."""
        given = {name: value for name, value in sampling.items() if value is not None}
        options = Sampling.of({**self.defaults, **given})
        options.check_vocabulary(self.config.vocab_size)
        return options

    def _grammar(self, constraint: Constraint, encoding: Encoding | None) -> GrammarState | None:
        if encoding is None:
            return constraint.raw(self._compiler, sorted(self.tokenizer.stop_ids))
        return constraint.harmony(encoding, self._compiler, self.config.vocab_size)

    @cached_property
    def _compiler(self) -> Compiler:
        return Compiler(lambda: self.tokenizer.trie, self.config.vocab_size)


def _messages(prompt: Prompt) -> list[Message]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return list(cast(Sequence[Message], prompt))


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _seconds(max_time: float | None) -> float:
    """max_time in seconds, infinity for None. Raises SamplingError."""
    if max_time is None:
        return math.inf
    if isinstance(max_time, bool) or not isinstance(max_time, Real) or not 0 < max_time < math.inf:
        raise SamplingError(f"max_time is {shown(max_time)}, but must be seconds above 0")
    return max_time


def _stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) or not isinstance(stop, Iterable) else tuple(stop)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise SamplingError(
                f"a stop string is {shown(string)}, but must be a text and not empty"
            )
    return strings
