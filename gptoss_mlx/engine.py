"""A conversation on a model: prefill, the decode loop, prefix reuse, and the events they give.

The loop is pipelined: the step after a token is queued before the token is read. Where the header
grammar then turns out to change its mask, only the choice is made again, from the same logits.
The engine keeps the session of the last stream; a prompt that begins the same way goes on from it.
An engine serves one thread; its streams may be interleaved, each then has a session of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backend import choose_backend, machine_of
from gptoss_mlx.checkpoint import Checkpoint, Progress
from gptoss_mlx.clock import Clock
from gptoss_mlx.config import ModelConfig
from gptoss_mlx.errors import CheckpointError, DeviceError, SamplingError
from gptoss_mlx.events import Event, FinishEvent, FinishReason, PrefillEvent, TokenEvent
from gptoss_mlx.harmony import Parser
from gptoss_mlx.hub import local_folder, locate
from gptoss_mlx.jsonfile import read_json
from gptoss_mlx.memory import Plan, make_plan, wired_bytes
from gptoss_mlx.released import CONFIGS
from gptoss_mlx.request import Desk, Prompt, Request
from gptoss_mlx.result import Result, collect
from gptoss_mlx.sampling import Sampling
from gptoss_mlx.session import Model, Session
from gptoss_mlx.tokenizer import Tokenizer, load_tokenizer
from gptoss_mlx.units import parse_bytes
from gptoss_mlx.writer import PlainText, Writer

NewSampler = Callable[[Sampling, int, Sequence[int], int], Any]


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
        plan: Plan | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.notes = tuple(notes)
        """What a person should know once of how the model was opened."""
        self.model, self.tokenizer, self.config, self.plan = model, tokenizer, config, plan
        self.context, self.defaults = context, dict(defaults)
        self._desk = Desk(tokenizer, config, context, self.defaults)
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
        stop: str | Sequence[str] | None = None,
        cancel: Callable[[], bool] | None = None,
        **sampling: Any,
    ) -> Iterator[Event]:
        """Generate, as events.

        prompt: a user's message, a list of chat messages, or token ids, which are read as they
        are: in Harmony they end after `<|start|>assistant`.
        max_tokens: tokens to generate; by default until the context is full.
        raw: continue the text as it is, without Harmony.
        cancel: asked before every token; True ends the stream.
        sampling: the fields of `Sampling`; those left out are the checkpoint's defaults.
        Raises MessageError, ContextError or SamplingError before anything is computed.
        """
        request = self._desk.take(
            prompt,
            max_tokens=max_tokens,
            raw=raw,
            tools=tools,
            system=system,
            reasoning=reasoning,
            response_format=response_format,
            constrain_headers=constrain_headers,
            stop=stop,
            cancel=cancel,
            sampling=sampling,
        )
        return self._run(request)

    def generate(self, prompt: Prompt, **options: Any) -> Result:
        """`stream`, collected."""
        return collect(self.stream(prompt, **options))

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after every token of a sequence: float32 [tokens, vocabulary]."""
        self._desk.check_ids(ids)
        state, chunk = self.model.new_state(), self.model.chunk
        parts = [self.model.evaluate(ids[i : i + chunk], state) for i in range(0, len(ids), chunk)]
        return np.concatenate(parts)

    def stats(self) -> dict[str, float]:
        """Bytes in use, by purpose, as the model's device reports them; and where experts are
        streamed, what that took (`streaming.Counts`).
        """
        session = self._session
        return {
            **self.model.stats(),
            "kv_bytes": session.state.nbytes if session else 0,
            "snapshot_bytes": sum(s.nbytes for s in session.snapshots) if session else 0,
            "session_tokens": len(session.tokens) if session else 0,
        }

    def _run(self, request: Request) -> Iterator[Event]:
        """One stream, on the last session or, if another stream has that, on a new one."""
        session, self._session = self._session or Session(self.model), None
        clock = Clock()
        try:
            reason: FinishReason = "cancelled"
            if (yield from self._prefill(session, request, clock)):
                reason = yield from self._write(session, request, clock)
        except GeneratorExit:
            self._session = session
            raise
        # After any other exception the state may be half-way through a step: it is let go.
        self._session = session
        yield FinishEvent(reason, len(request.ids), clock.tokens, request.seed, clock.timings())

    def _write(
        self, session: Session, request: Request, clock: Clock
    ) -> Generator[TokenEvent, None, FinishReason]:
        """Generate text until something ends it; returns what that was."""
        reason: FinishReason = "length"
        writer = self._writer(request)
        for id, logprob, top in self._decode(session, request):
            if request.cancel():
                reason = "cancelled"
                break
            clock.token()
            yield from writer.push(id, logprob, top)
            if id in self.tokenizer.stop_ids or writer.stopped:
                reason = "stop"
                break
        yield from writer.finish()
        return "tool_calls" if reason == "stop" and writer.called else reason

    def _prefill(
        self, session: Session, request: Request, clock: Clock
    ) -> Generator[PrefillEvent, None, bool]:
        """Bring the session to the prompt's last token, which the first decode step reads.

        A snapshot is taken there: the next turn's prompt has the same beginning.
        Returns False if the stream was cancelled on the way.
        """
        reused = session.resume(request.ids)
        total = len(request.ids)
        yield PrefillEvent(reused, total, reused)
        for done in session.prefill(request.ids[reused:-1], (*request.marks, total - 1)):
            yield PrefillEvent(reused + done, total, reused)
            clock.prefilled(done, reused)
            if request.cancel():
                return False
        clock.prefilled(session.state.offset - reused, reused)
        return True

    def _decode(
        self, session: Session, request: Request
    ) -> Iterator[tuple[int, float | None, tuple[tuple[int, float], ...]]]:
        """Tokens, each read after the step behind it was queued."""
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
        if request.encoding is not None:
            return Writer(Parser(request.encoding), request.stop)
        text = PlainText(self.tokenizer.decoder(), self.tokenizer.stop_ids)
        return Writer(text, request.stop)


def open_engine(
    model: str,
    *,
    backend: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    context: int | None = None,
    memory: int | str | None = None,
    embedding: str | None = None,
    kv_bits: int | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Open a model argument (a folder, an id, "tiny") on a device of this machine, by plan.

    backend, device: as `choose_backend` takes them.
    Raises ModelNotFoundError, CheckpointError, VocabularyError, ContextError, KernelError or,
    before weights are read, DeviceError and MemoryBudgetError.
    """
    if dtype not in (None, "bfloat16", "float32"):
        raise ValueError(f"dtype {dtype!r} is neither bfloat16 nor float32")
    if embedding not in (None, "file", "resident"):
        raise ValueError(f"embedding {embedding!r} is neither file nor resident")
    if kv_bits not in (None, 8):
        raise ValueError(f"kv_bits {kv_bits!r} is neither None nor 8")
    # A tensor library is imported here, when a model is opened, and not before.
    chosen = choose_backend(backend, device)
    if chosen.backend != "mlx":
        raise DeviceError(f"a model cannot be opened with {chosen.shown} yet")
    asked: dict[str, Any] = {
        "budget": parse_bytes(memory) if isinstance(memory, str) else memory and int(memory),
        "context": context,
        "dtype": dtype,
        "embedding": embedding,
        "kv_bits": kv_bits,
    }
    if model in CONFIGS and local_folder(model) is None:  # refuse before downloading
        make_plan(ModelConfig.from_file(CONFIGS[model]), machine_of(chosen), **asked)
    folder = locate(model, progress)
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    defaults = _generation_defaults(folder)
    from gptoss_mlx.model import open_model
    from gptoss_mlx.sampler import Sampler

    plan = make_plan(config, machine_of(chosen), **asked)
    tokenizer = load_tokenizer(folder, config)
    network = open_model(
        checkpoint,
        dtype=plan.dtype,
        embedding=plan.embedding,
        slots=plan.slots,
        kv_bits=plan.kv_bits,
        chunk=plan.chunk,
        cache_limit=plan.cache_limit,
        wired=wired_bytes(plan),
        progress=progress,
    )
    notes = [] if chosen.note is None else [f"no card is used: {chosen.note}"]
    notes += [
        f"the Metal kernel {name} is not used here: {why}"
        for name, why in network.kernels.left_out.items()
    ]
    return Engine(network, Sampler, tokenizer, config, plan.context, defaults, plan, notes)


def _generation_defaults(folder: Path) -> dict[str, Any]:
    """The sampling a checkpoint asks for in generation_config.json."""
    path = folder / "generation_config.json"
    if not path.exists():
        return {}
    asked = read_json(path)
    if asked.get("do_sample") is False:
        return {"temperature": 0.0}
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    defaults = {name: asked[name] for name in names if asked.get(name) is not None}
    try:
        Sampling(**defaults)
    except SamplingError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return defaults
