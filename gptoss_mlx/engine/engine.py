"""A model with its tokenizer: conversations on it, and the events they give.

The engine keeps the session of the last stream; a prompt that begins the same way goes on from it.
An engine serves one thread; its streams may be interleaved, each then has a session of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.backend import choose_backend, machine_of
from gptoss_mlx.engine.events import Event
from gptoss_mlx.engine.request import Preprocessor, Prompt, Request
from gptoss_mlx.engine.result import Result, collect
from gptoss_mlx.engine.session import Model, Session
from gptoss_mlx.engine.stream import Run, Stream, alone, together
from gptoss_mlx.errors import (
    CheckpointError,
    ClosedError,
    MessageError,
    OptionError,
    SamplingError,
)
from gptoss_mlx.files.jsonfile import read_json, shown
from gptoss_mlx.files.regular import is_named
from gptoss_mlx.harmony.tokenizer import Tokenizer, load_tokenizer
from gptoss_mlx.models.checkpoint import Checkpoint, Progress
from gptoss_mlx.models.hub import local_folder, locate
from gptoss_mlx.models.names import full_name
from gptoss_mlx.plan.memory import Plan, make_plan, wired_bytes
from gptoss_mlx.settings import Settings
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.released import CONFIGS
from gptoss_mlx.spec.sampling import Sampling, not_finite

LOGITS_AT_A_TIME = 32
T = TypeVar("T")
NewSampler = Callable[[Sampling, int, Sequence[int], int], Any]


class Engine:
    """A model with its tokenizer. `gptoss_mlx.load` makes one.

    `close` gives its memory back, as the end of a `with` block does; then every method, and every
    stream that is still open, raises ClosedError.
    """

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
        name: str = "",
    ) -> None:
        self.notes = tuple(notes)
        """What a person should know once of how the model was opened."""
        self.name = name
        self.tokenizer, self.config, self.plan = tokenizer, config, plan
        self.context, self.defaults = context, dict(defaults)
        self._model: Model | None = model
        self._preprocessor = Preprocessor(tokenizer, config, context, self.defaults)
        self._new_sampler = new_sampler
        self._session: Session | None = None

    def __repr__(self) -> str:
        state = ", closed" if self._model is None else ""
        return f"<Engine {shown(self.name)}, context {self.context}{state}>"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def model(self) -> Model:
        """The network. Raises ClosedError."""
        if self._model is None:
            raise ClosedError("the engine is closed")
        return self._model

    def close(self) -> None:
        """Give back the model's memory. May be called again, and while streams are open."""
        if self._session is not None:
            self._session.close()
        self._session = self._model = None

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Event]:
        """Generate, as events.

        prompt: a user's message, a list of chat messages, or token ids, which are read as they
        are: in Harmony they end after `<|start|>assistant`. options, all by name:
        max_tokens: tokens to generate; by default until the context is full.
        max_time: seconds to take at most, those for reading the prompt included.
        stop_repetition: False lets an answer go round in a circle: otherwise it ends when its last
        2048 tokens repeat the same 128 or fewer.
        raw: continue the text as it is, without Harmony.
        tools, system, reasoning, response_format: what Harmony tells the model.
        constrain_headers: False lets the model write any header.
        stop: a text that ends the answer, or several.
        cancel: asked before every token; True ends the stream.
        And the fields of `Sampling`; those left out are the checkpoint's defaults.
        Raises MessageError, ContextError or SamplingError before anything is computed.
        """
        return self._while_open(alone(self._run(self._request(prompt, options))))

    def generate(self, prompt: Prompt, **options: Any) -> Result:
        """`stream`, collected."""
        return collect(self.stream(prompt, **options))

    def stream_many(self, prompts: Sequence[Prompt], **options: Any) -> Iterator[tuple[int, Event]]:
        """Generate for several prompts side by side, as many at a time as the model has rows:
        events, each with the number of its prompt. One that ends makes room for the next.

        options and errors: as `stream`; they hold for every prompt.
        """
        if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Sequence):
            raise MessageError(f"prompts is {shown(prompts)}, but must be a list of prompts")
        requests = [self._request(prompt, options) for prompt in prompts]
        runs = [self._run(request) for request in requests]
        return self._while_open(together(runs, self.model.decode_many, self.model.rows))

    def generate_many(self, prompts: Sequence[Prompt], **options: Any) -> list[Result]:
        """`stream_many`, collected, in the prompts' order."""
        stream = self.stream_many(prompts, **options)
        events: list[list[Event]] = [[] for _ in prompts]
        for i, event in stream:
            events[i].append(event)
        return [collect(one) for one in events]

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after every token of a sequence: float32 [tokens, vocabulary].

        That is 0.8 MB a token beside all that is planned; `logits_parts` gives them bit by bit.
        """
        parts = self.logits_parts(ids)
        out = np.empty((len(ids), self.config.vocab_size), np.float32)
        done = 0
        for part in parts:
            out[done : done + len(part)] = part
            done += len(part)
        return out

    def logits_parts(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """`logits`, a few tokens at a time: float32 [up to 32, vocabulary].

        Raises MessageError, ContextError or, where they are not finite, NumericalError.
        """
        model = self.model
        self._preprocessor.check_ids(ids)
        return self._while_open(_evaluate(model, ids))

    def stats(self) -> dict[str, float]:
        """Bytes in use, by purpose, as the model's device reports them; and where experts are
        streamed, what that took (`streaming.Counts`).
        """
        model, session = self.model, self._session
        return {
            **model.stats(),
            "kv_bytes": session.state.nbytes if session else 0,
            "snapshot_bytes": sum(s.nbytes for s in session.snapshots) if session else 0,
            "session_tokens": len(session.tokens) if session else 0,
        }

    def _request(self, prompt: Prompt, options: Mapping[str, Any]) -> Request:
        _ = self.model  # which must be open
        return self._preprocessor.request(prompt, **options)

    def _while_open(self, items: Generator[T, None, None]) -> Iterator[T]:
        with closing(items):
            for item in items:
                yield item
                _ = self.model  # which must still be open

    def _run(self, request: Request) -> Run:
        """One stream, on the last session or, if another stream has that, on a new one."""
        session, self._session = self._session or Session(self.model), None
        vocab = self.config.vocab_size
        sampler = partial(self._new_sampler, request.sampling, request.seed, request.ids, vocab)
        try:
            finish = yield from Stream(session, request, self.tokenizer, sampler).run()
        except GeneratorExit:
            self._keep(session)
            raise
        except BaseException:
            session.close()  # it may be half-way through a step
            raise
        self._keep(session)
        yield finish

    def _keep(self, session: Session) -> None:
        """The next stream goes on from the session that ended last; one that waited is given up."""
        if self._session is not None:
            self._session.close()
        self._session = session
        if self._model is None:
            self.close()


def _evaluate(model: Model, ids: Sequence[int]) -> Generator[NDArray[np.float32], None, None]:
    state, step = model.new_state(), min(model.chunk, LOGITS_AT_A_TIME)
    try:
        for i in range(0, len(ids), step):
            part = model.evaluate(ids[i : i + step], state)
            finite = np.isfinite(part).all(-1)
            if not finite.all():
                raise not_finite(f"what follows token {i + int(finite.argmin()) + 1}")
            yield part
    finally:
        state.close()


def open_engine(
    model: str | os.PathLike[str], settings: Settings, progress: Progress | None = None
) -> Engine:
    """Open a model argument (a folder, an id, "tiny") on a device of this machine, by plan.

    Raises ModelNotFoundError, CheckpointError, VocabularyError, ContextError, KernelError or,
    before weights are read, OptionError, DeviceError and MemoryBudgetError.
    """
    chosen = choose_backend(settings.backend, settings.device)
    model = full_name(_name_of(model))
    if model in CONFIGS and local_folder(model) is None:  # refuse before downloading
        make_plan(ModelConfig.from_file(CONFIGS[model]), machine_of(chosen), settings)
    folder = locate(model, progress)
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    defaults = _generation_defaults(folder)
    plan = make_plan(config, machine_of(chosen), settings)
    tokenizer = load_tokenizer(folder, config)
    opened = _with_mlx if chosen.backend == "mlx" else partial(_with_torch, chosen.device)
    network, sampler, rejected = opened(checkpoint, plan, progress)
    notes = [] if chosen.note is None else [f"no card is used: {chosen.note}"]
    notes += [f"the kernel {name} is not used here: {why}" for name, why in rejected.items()]
    return Engine(network, sampler, tokenizer, config, plan.context, defaults, plan, notes, model)


Opened: TypeAlias = tuple[Model, NewSampler, Mapping[str, str]]
"""A model, what makes its samplers, and the kernels that it does without, and why."""


# A tensor library is imported when a model is opened, and not before.


def _with_mlx(checkpoint: Checkpoint, plan: Plan, progress: Progress | None) -> Opened:
    from gptoss_mlx.backends.mlx.model import open_model
    from gptoss_mlx.backends.mlx.sampler import Sampler

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
    return network, Sampler, network.kernels.rejected


def _with_torch(
    device: str, checkpoint: Checkpoint, plan: Plan, progress: Progress | None
) -> Opened:
    from gptoss_mlx.backends.torch.model import open_model
    from gptoss_mlx.backends.torch.sampler import Sampler

    network = open_model(
        checkpoint,
        device=device,
        dtype=plan.dtype,
        context=plan.context,
        rows=plan.rows,
        slots=plan.slots,
        chunk=plan.chunk,
        progress=progress,
    )
    return network, partial(Sampler, device=network.device), network.kernels.rejected


def _name_of(model: object) -> str:
    """A model argument as text: a path is that of a folder. Raises OptionError."""
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(name, str):
        raise OptionError(f"model is {shown(model)}, but must be a folder, an id or tiny")
    return name


def _generation_defaults(folder: Path) -> dict[str, Any]:
    """The sampling a checkpoint asks for in generation_config.json."""
    path = folder / "generation_config.json"
    if not is_named(path):
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
