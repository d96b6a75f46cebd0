"""A conversation on a model: prefill, the decode loop, prefix reuse, and the events they give.

The loop is pipelined: the step after a token is queued before the token is read. Where the header
grammar then turns out to change its mask, only the choice is made again, from the same logits.
The engine keeps the session of the last stream; a prompt that begins the same way goes on from it.
An engine serves one thread; its streams may be interleaved, each then has a session of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.checkpoint import Checkpoint, Progress
from gptoss_mlx.config import ModelConfig
from gptoss_mlx.errors import ContextError, MessageError, SamplingError
from gptoss_mlx.events import (
    Event,
    FinishEvent,
    FinishReason,
    PrefillEvent,
    Result,
    Timings,
    TokenEvent,
    ToolCall,
)
from gptoss_mlx.harmony import Headers, HeaderState, Parser, read_tools, render
from gptoss_mlx.harmony.encoding import CALL
from gptoss_mlx.hub import locate
from gptoss_mlx.jsonfile import read_json
from gptoss_mlx.sampling import MAX_SEED, Sampling
from gptoss_mlx.session import Model, Session
from gptoss_mlx.tokenizer import Tokenizer, load_tokenizer
from gptoss_mlx.writer import PlainText, Writer

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
NewSampler = Callable[[Sampling, int, Sequence[int], int], Any]


@dataclass(frozen=True)
class Request:
    """One stream, checked: what is read, how it goes on, and when it ends."""

    ids: list[int]
    max_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...]
    harmony: bool
    grammar: HeaderState | None
    cancel: Callable[[], bool]


class Engine:
    """A model with its tokenizer. `gptoss_mlx.load` makes one."""

    def __init__(
        self,
        model: Model,
        new_sampler: NewSampler,
        tokenizer: Tokenizer,
        config: ModelConfig,
        context: int,
        defaults: Mapping[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.context = context
        self.defaults = dict(defaults)
        self._new_sampler = new_sampler
        self._session: Session | None = None

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        raw: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        system: str | None = None,
        reasoning: str = "medium",
        response_format: Mapping[str, Any] | None = None,
        constrain_headers: bool = True,
        stop: Sequence[str] = (),
        cancel: Callable[[], bool] | None = None,
        **sampling: Any,
    ) -> Iterator[Event]:
        """Generate, as events.

        prompt: a user's message, a list of chat messages, or token ids.
        max_tokens: tokens to generate; by default until the context is full.
        raw: continue the text as it is, without Harmony.
        cancel: asked before every token; True ends the stream.
        sampling: the fields of `Sampling`; those left out are the checkpoint's defaults.
        Raises MessageError, ContextError or SamplingError before anything is computed.
        """
        harmony = self.tokenizer.harmony is not None and not raw
        ids = self._prompt_ids(prompt, harmony, tools, system, reasoning, response_format)
        options = self._options(sampling)
        request = Request(
            ids=ids,
            max_tokens=self._limit(len(ids), max_tokens),
            sampling=options,
            seed=secrets.randbelow(MAX_SEED) if options.seed is None else options.seed,
            stop=_stop_strings(stop),
            harmony=harmony,
            grammar=self._grammar(tools, response_format)
            if harmony and constrain_headers
            else None,
            cancel=cancel or (lambda: False),
        )
        return self._run(request)

    def generate(self, prompt: Prompt, **options: Any) -> Result:
        """`stream`, collected."""
        return collect(self.stream(prompt, **options))

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after every token of a sequence: float32 [tokens, vocabulary]."""
        self._check_ids(ids)
        state, chunk = self.model.new_state(), self.model.chunk
        parts = [self.model.evaluate(ids[i : i + chunk], state) for i in range(0, len(ids), chunk)]
        return np.concatenate(parts)

    def stats(self) -> dict[str, int]:
        """Bytes in use, by purpose, as the model's device reports them."""
        session = self._session
        return {
            **self.model.memory(),
            "kv_bytes": session.state.nbytes if session else 0,
            "snapshot_bytes": sum(s.nbytes for s in session.snapshots) if session else 0,
            "session_tokens": len(session.tokens) if session else 0,
        }

    def _run(self, request: Request) -> Iterator[Event]:
        """One stream, on the last session or, if another stream has that, on a new one."""
        session, self._session = self._session or Session(self.model), None
        clock = _Clock()
        try:
            yield from self._prefill(session, request, clock)
            reason = yield from self._write(session, request, clock)
        except GeneratorExit:
            self._session = session
            raise
        # After any other exception the state may be half-way through a step: it is let go.
        self._session = session
        yield FinishEvent(reason, len(request.ids), clock.tokens, request.seed, clock.timings())

    def _write(
        self, session: Session, request: Request, clock: _Clock
    ) -> Generator[TokenEvent, None, FinishReason]:
        """Generate text until something ends it; returns what that was."""
        reason: FinishReason = "length"
        writer = self._writer(request)
        for id, logprob, top in self._decode(session, request):
            clock.token()
            if request.cancel():
                reason = "cancelled"
                break
            yield from writer.push(id, logprob, top)
            if id in self.tokenizer.stop_ids or writer.stopped:
                reason = "tool_calls" if id == CALL and request.harmony else "stop"
                break
        yield from writer.finish()
        return "tool_calls" if reason == "stop" and writer.called else reason

    def _prefill(self, session: Session, request: Request, clock: _Clock) -> Iterator[PrefillEvent]:
        """Bring the session to the prompt's last token, which the first decode step reads.

        A snapshot is taken there: the next turn's prompt has the same beginning.
        """
        reused = session.resume(request.ids)
        total = len(request.ids)
        yield PrefillEvent(reused, total, reused)
        for done in session.prefill(request.ids[reused:-1]):
            yield PrefillEvent(reused + done, total, reused)
            if request.cancel():
                break
        else:
            session.mark()
        clock.prefilled(session.state.offset - reused, reused)

    def _decode(
        self, session: Session, request: Request
    ) -> Iterator[tuple[int, float | None, tuple[tuple[int, float], ...]]]:
        """Tokens, each read after the step behind it was queued."""
        if session.state.offset < len(request.ids) - 1:  # cancelled
            return
        sampler = self._new_sampler(
            request.sampling, request.seed, request.ids, self.config.vocab_size
        )
        grammar = request.grammar
        logits = session.decode(request.ids[-1:])
        session.note(request.ids[-1])
        choice = sampler.choose(logits, 0, grammar and grammar.mask)
        for step in count(1):
            if step < request.max_tokens:
                logits = session.decode(choice.token)
                sampler.accept(choice)
                ahead = sampler.choose(logits, step, grammar and grammar.mask)
            id, logprob, top = choice.read()
            if step < request.max_tokens:
                session.note(id)
            yield id, logprob, top
            if step == request.max_tokens:
                return
            choice = ahead
            if grammar is not None:
                before, grammar = grammar, grammar.advance(id)
                if grammar.mask is not before.mask:
                    choice = sampler.choose(logits, step, grammar.mask)

    def _writer(self, request: Request) -> Writer:
        encoding = self.tokenizer.harmony
        if request.harmony and encoding is not None:
            return Writer(Parser(encoding), request.stop)
        return Writer(PlainText(self.tokenizer.decoder(), self.tokenizer.stop_ids), request.stop)

    def _prompt_ids(
        self,
        prompt: Prompt,
        harmony: bool,
        tools: Sequence[Mapping[str, Any]],
        system: str | None,
        reasoning: str,
        response_format: Mapping[str, Any] | None,
    ) -> list[int]:
        encoding = self.tokenizer.harmony
        if not isinstance(prompt, str) and all(isinstance(id, int) for id in prompt):
            ids = [int(id) for id in prompt if isinstance(id, int)]
        elif harmony and encoding is not None:
            user = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            ids = render(
                encoding,
                [m for m in user if isinstance(m, Mapping)],
                tools=tools,
                system=system,
                reasoning=reasoning,
                response_format=response_format,
            )
        elif not isinstance(prompt, str):
            raise MessageError("raw mode continues a text: it takes no list of messages")
        elif tools or system or response_format:
            raise MessageError("raw mode knows no system message, tools or response format")
        else:
            ids = self.tokenizer.encode(prompt)
        self._check_ids(ids)
        return ids

    def _check_ids(self, ids: Sequence[int]) -> None:
        if len(ids) == 0:
            raise MessageError("the prompt is empty: give it at least one token")
        for id in (min(ids), max(ids)):
            if not 0 <= id < self.config.vocab_size:
                raise MessageError(
                    f"token id {id} is outside the model's vocabulary of {self.config.vocab_size}"
                )
        if len(ids) > self.context:
            raise ContextError(
                f"the prompt has {len(ids)} tokens, but the context holds {self.context}"
            )

    def _limit(self, prompt_tokens: int, max_tokens: int | None) -> int:
        room = self.context - prompt_tokens
        if room < 1:
            raise ContextError(
                f"the prompt has {prompt_tokens} tokens and leaves no room for an answer"
                f" in a context of {self.context}"
            )
        if max_tokens is not None and max_tokens < 1:
            raise SamplingError(f"max_tokens is {max_tokens}, but must be at least 1")
        return room if max_tokens is None else min(room, max_tokens)

    def _options(self, sampling: Mapping[str, Any]) -> Sampling:
        known = {field.name for field in fields(Sampling)}
        for name in sampling:
            if name not in known:
                raise TypeError(f"{name!r} is no sampling option: {', '.join(sorted(known))}")
        given = {name: value for name, value in sampling.items() if value is not None}
        options = Sampling(**{**self.defaults, **given})
        options.check_vocabulary(self.config.vocab_size)
        return options

    def _grammar(
        self, tools: Sequence[Mapping[str, Any]], response_format: Mapping[str, Any] | None
    ) -> HeaderState | None:
        encoding = self.tokenizer.harmony
        if encoding is None:
            return None
        named = read_tools(tools)
        headers = Headers(
            encoding,
            tools=[function.name for function in named.functions],
            builtin=named.builtin,
            response_format=response_format,
            vocab_size=self.config.vocab_size,
        )
        return headers.start()


class _Clock:
    """Seconds from the call on, and tokens."""

    def __init__(self) -> None:
        self.tokens = 0
        self._start = self._prefilled = self._first = self._last = perf_counter()
        self._prefill_tokens = self._reused = 0

    def prefilled(self, tokens: int, reused: int) -> None:
        self._prefilled = self._last = perf_counter()
        self._prefill_tokens, self._reused = tokens, reused

    def token(self) -> None:
        self._last = perf_counter()
        self.tokens += 1
        if self.tokens == 1:
            self._first = self._last

    def timings(self) -> Timings:
        return Timings(
            prefill=self._prefilled - self._start,
            decode=self._last - self._prefilled,
            first_token=self._first - self._start,
            prefill_tokens=self._prefill_tokens,
            reused_tokens=self._reused,
            decode_tokens=self.tokens,
        )


def collect(events: Iterable[Event]) -> Result:
    """A stream's events as one `Result`."""
    tokens: list[TokenEvent] = []
    finish: FinishEvent | None = None
    for event in events:
        if isinstance(event, TokenEvent):
            tokens.append(event)
        elif isinstance(event, FinishEvent):
            finish = event
    if finish is None:
        raise ValueError("the stream has not finished")
    text: dict[str, list[str]] = {"text": [], "reasoning": [], "preamble": []}
    calls: list[tuple[str, list[str]]] = []
    fresh = True
    for event in tokens:
        if event.kind == "header":
            fresh = True
            continue
        if event.recipient is not None:
            if fresh:
                calls.append((event.recipient.removeprefix("functions."), []))
            calls[-1][1].append(event.text)
        else:
            text[_PART.get(event.channel, "text")].append(event.text)
        fresh = fresh and not event.text
    return Result(
        text="".join(text["text"]),
        reasoning="".join(text["reasoning"]),
        preamble="".join(text["preamble"]),
        tool_calls=tuple(
            ToolCall(f"call_{secrets.token_hex(12)}", name, "".join(parts)) for name, parts in calls
        ),
        finish_reason=finish.reason,
        prompt_tokens=finish.prompt_tokens,
        completion_tokens=finish.completion_tokens,
        seed=finish.seed,
        timings=finish.timings,
        token_ids=tuple(event.id for event in tokens if event.id is not None),
        tokens=tuple(tokens),
    )


_PART: Mapping[str | None, str] = {"analysis": "reasoning", "commentary": "preamble"}


def _stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(strings):
        raise SamplingError("a stop string is empty")
    return strings


def open_engine(
    model: str,
    *,
    dtype: str | None = None,
    context: int | None = None,
    embedding: str = "mapped",
    progress: Progress | None = None,
) -> Engine:
    """Open a model argument (a folder, an id, "tiny") on this machine's device.

    Raises ModelNotFoundError, CheckpointError, VocabularyError or ContextError.
    """
    folder = locate(model, progress)
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    limit = config.max_position_embeddings
    if context is not None and not 1 < context <= limit:
        raise ContextError(f"a context of {context} tokens is not within 2 to the model's {limit}")
    defaults = _generation_defaults(folder)
    # The tensor library is imported here, when a model is opened, and not before.
    from gptoss_mlx.model import open_model
    from gptoss_mlx.sampler import Sampler

    tokenizer = load_tokenizer(folder, config)
    network = open_model(checkpoint, dtype=dtype, embedding=embedding, progress=progress)
    return Engine(network, Sampler, tokenizer, config, context or limit, defaults)


def _generation_defaults(folder: Path) -> dict[str, Any]:
    """The sampling a checkpoint asks for in generation_config.json."""
    path = folder / "generation_config.json"
    if not path.exists():
        return {}
    asked = read_json(path)
    if asked.get("do_sample") is False:
        return {"temperature": 0.0}
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {name: asked[name] for name in names if asked.get(name) is not None}
