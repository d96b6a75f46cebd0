"""The engine: a model with its tokenizer, which turns prompts into streams of events.

It keeps the sessions (the KV caches) of the last streams, and copies of others in a prefix store; a
prompt that begins the same goes on from there.
Streams may be interleaved, and read in several threads: each then has a session of its own, and
steps of the model are taken one after the other.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.backend import choose_backend, machine_of
from gptoss_mlx.backends.opening import open_model
from gptoss_mlx.backends.protocol import AnyModel
from gptoss_mlx.engine.events import Event
from gptoss_mlx.engine.inbox import Inbox
from gptoss_mlx.engine.loop import Loop
from gptoss_mlx.engine.options import Options, Prompt
from gptoss_mlx.engine.prefix import PrefixStore, root_name
from gptoss_mlx.engine.request import Preprocessor, Request
from gptoss_mlx.engine.result import Result, collect
from gptoss_mlx.engine.sequence import Outlet
from gptoss_mlx.engine.sequence import Sequence as Running
from gptoss_mlx.errors import CheckpointError, MessageError, OptionError, SamplingError
from gptoss_mlx.files.jsonfile import read_json, shown
from gptoss_mlx.files.regular import is_named
from gptoss_mlx.files.store import OWNER_DIGITS, FileStore
from gptoss_mlx.harmony.tokenizer import Tokenizer, load_tokenizer
from gptoss_mlx.models.checkpoint import Checkpoint, Progress
from gptoss_mlx.models.hub import local_folder, locate
from gptoss_mlx.models.identity import identity_of
from gptoss_mlx.models.names import full_name
from gptoss_mlx.plan.memory import Plan, make_plan
from gptoss_mlx.settings import Settings
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.released import CONFIGS
from gptoss_mlx.spec.sampling import Sampling, not_finite

LOGITS_AT_A_TIME = 32


class Engine:
    """A model with its tokenizer. `gptoss_mlx.load` makes one.

    `close` gives its memory back, as the end of a `with` block does; then every method, and every
    stream that is still open, raises ClosedError.
    """

    def __init__(
        self,
        model: AnyModel,
        tokenizer: Tokenizer,
        config: ModelConfig,
        context: int,
        defaults: Mapping[str, object],
        plan: Plan | None = None,
        notes: Sequence[str] = (),
        name: str = "",
        store: PrefixStore | None = None,
    ) -> None:
        self._notes, self.name = tuple(notes), name
        self.tokenizer, self.config, self.plan = tokenizer, config, plan
        self.context, self.defaults = context, dict(defaults)
        self._loop = Loop(model, store)
        self._files = None if store is None else store.files
        self.preprocessor = Preprocessor(tokenizer, config, context, self.defaults)

    def __repr__(self) -> str:
        state = ", closed" if self._loop.is_closed else ""
        return f"<Engine {shown(self.name)}, context {self.context}{state}>"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user: on how the model was opened, such as kernels that are not used, and
        on files of the prefix store."""
        trouble = () if self._loop.is_closed else self._loop.idle.store.trouble
        return (*self._notes, *trouble, *(() if self._files is None else self._files.notes))

    @property
    def model(self) -> AnyModel:
        """The network. Raises ClosedError."""
        return self._loop.model

    def close(self) -> None:
        """Give back the model's memory. May be called again, and while streams are open."""
        self._loop.close()

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[Event]:
        """Generate, as events.

        prompt: a user's message, a list of chat messages, or token ids, which are read as they
        are: in Harmony they end after `<|start|>assistant`. options, all by name:
        max_tokens: tokens to generate; by default until the context is full.
        max_time: the most seconds to take, prefill included.
        stop_repetition: end an answer whose last 2048 tokens repeat the same 128 or fewer; False
        lets it go on.
        raw: continue the text as it is, without Harmony.
        tools, system, reasoning, response_format: rendered into the Harmony prompt.
        response_format: the answer then satisfies it. grammar, regex: so the answer must be, in
        Lark or a regular expression; in raw mode all of the text.
        tool_choice: "auto", "required", "none" or the function to call, as OpenAI has it. Arguments
        satisfy the function's schema, or are any object where a schema that is not strict cannot be
        enforced.
        reasoning_budget: the most tokens of reasoning, which is ended then.
        constrain_headers: False lets the model write any Harmony header, and any answer.
        stop: a text that ends the answer, or several.
        cancel: called before every token; True ends the stream.
        And the fields of `Sampling`; those left out are the checkpoint's defaults.
        Raises MessageError, GrammarError, ContextError or SamplingError before anything is
        computed.
        """
        return _events(self._drive([self._request(prompt, options)]))

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Result:
        """`stream`, collected."""
        return collect(self.stream(prompt, **options))

    def stream_many(
        self, prompts: Sequence[Prompt], **options: Unpack[Options]
    ) -> Iterator[tuple[int, Event]]:
        """Generate for several prompts by continuous batching, up to the model's rows at a time.

        Yields events, each with the index of its prompt. A prompt that ends makes room for the
        next.

        options and errors: as `stream`; they hold for every prompt.
        """
        if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Sequence):
            raise MessageError(f"prompts is {shown(prompts)}, but must be a list of prompts")
        requests = [self._request(prompt, options) for prompt in prompts]
        return self._drive(requests)

    def generate_many(self, prompts: Sequence[Prompt], **options: Unpack[Options]) -> list[Result]:
        """`stream_many`, collected, in the prompts' order."""
        stream = self.stream_many(prompts, **options)
        events: list[list[Event]] = [[] for _ in prompts]
        for i, event in stream:
            events[i].append(event)
        return [collect(one) for one in events]

    def add(
        self, prompt: Prompt, outlet: Outlet, *, urgent: bool = False, **options: Unpack[Options]
    ) -> Running:
        """Queue a prompt beside those that run; an urgent one is before those that wait. Any thread
        may add one.

        From then on every `step` advances it and puts its events into the outlet, on the thread
        that takes the step.

        options and errors: as `stream`. The sequence that is returned can be cancelled, or given to
        `drop`.
        """
        sequence = Running(self._request(prompt, options), self.tokenizer, outlet, urgent)
        self._loop.add(sequence)
        return sequence

    def count(self, prompt: Prompt, **options: Unpack[Options]) -> int:
        """The tokens of a prompt with what its options render into it, even if the context holds
        fewer. Raises MessageError, or ContextError for more than the model allows at all."""
        _ = self.model  # raises if it is closed
        return self.preprocessor.count(prompt, options)

    def step(self) -> None:
        """Take a step: prefill a chunk of one prompt, decode a token of every one past its prompt.

        Reading a stream takes such steps as well. An error goes to the outlets of the sequences it
        concerns. Raises ClosedError.
        """
        self._loop.step()

    def drop(self, sequences: Collection[Running]) -> None:
        """Remove sequences that were added, whether they wait, run or have finished."""
        self._loop.drop(sequences)

    @property
    def is_closed(self) -> bool:
        return self._loop.is_closed

    @property
    def is_ready(self) -> bool:
        """Whether a step would do something now: not if all outlets under way are full. Raises
        ClosedError."""
        return self._loop.is_ready

    @property
    def finished(self) -> bool:
        """Whether there is nothing to do until a prompt is added."""
        return self._loop.finished

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after every token of a sequence: float32 [tokens, vocabulary].

        That is 0.8 MB a token, which the memory plan does not include; `logits_parts` gives them a
        few tokens at a time.
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
        _ = self.model
        self.preprocessor.check_ids(ids)
        return self._evaluate(ids)

    def stats(self) -> dict[str, float]:
        """Bytes in use, by purpose, as the model's device reports them; tokens that the prefix
        store has restored; and where experts are streamed, the counters of that
        (`streaming.Counts`).
        """
        model, idle = self.model, self._loop.idle
        snapshots = [s for session in idle.sessions for s in session.snapshots]
        return {
            **model.stats(),
            "kv_bytes": sum(session.state.nbytes for session in idle.sessions),
            "snapshot_bytes": sum(snapshot.nbytes for snapshot in snapshots),
            "session_tokens": sum(len(session.tokens) for session in idle.sessions),
            "store_bytes": idle.store.nbytes,
            "store_tokens": idle.store.tokens_restored,
        }

    def _request(self, prompt: Prompt, options: Options) -> Request:
        _ = self.model  # raises if it is closed
        return self.preprocessor.request(prompt, **options)

    def _drive(self, requests: Sequence[Request]) -> Generator[tuple[int, Event], None, None]:
        """Take steps until these requests have finished, and yield their events as they come."""
        inbox, loop = Inbox(len(requests)), self._loop
        pairs = zip(requests, inbox.outlets, strict=True)
        sequences = [Running(request, self.tokenizer, outlet) for request, outlet in pairs]
        try:
            for sequence in sequences:
                loop.add(sequence)
            while inbox.unfinished:
                loop.step()
                for event in inbox.take():
                    yield event
                    _ = self.model  # raises if it was closed meanwhile
        finally:
            loop.drop(sequences)

    def _evaluate(self, ids: Sequence[int]) -> Generator[NDArray[np.float32], None, None]:
        state = self._loop.run(self.model.new_state)
        step = min(self.model.chunk, LOGITS_AT_A_TIME)
        try:
            for i in range(0, len(ids), step):
                part = self._loop.run(partial(self.model.evaluate, ids[i : i + step], state))
                finite = np.isfinite(part).all(-1)
                if not finite.all():
                    raise not_finite(f"what follows token {i + int(finite.argmin()) + 1}")
                yield part
        finally:
            state.close()


def _events(numbered: Generator[tuple[int, Event], None, None]) -> Iterator[Event]:
    with closing(numbered):
        for _, event in numbered:
            yield event


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
    network = open_model(chosen, checkpoint, plan, progress, settings.threads)
    notes = [] if chosen.note is None else [chosen.note]
    notes += [
        f"the kernel {name} is not used here: {why}" for name, why in network.rejected.items()
    ]
    if settings.cache_dir is not None and settings.cache is None and not plan.store:
        notes.append("no memory is left for the prefix store: give it some with --cache")
    store = _open_store(network, checkpoint, plan, settings)
    return Engine(network, tokenizer, config, plan.context, defaults, plan, notes, model, store)


def _open_store(
    network: AnyModel, checkpoint: Checkpoint, plan: Plan, settings: Settings
) -> PrefixStore:
    """The prefix store of a model, as planned; a quarter of it is for what waits to be written."""
    if settings.cache_dir is None:
        return PrefixStore(network, plan.store)
    # What is computed differently is not the same to the last bit.
    computed = (plan.backend, plan.gpu, plan.dtype, plan.kv_bits)
    identity = f"{identity_of(checkpoint)} {computed}"
    waiting = plan.store // 4
    owner = root_name(identity)[:OWNER_DIGITS]
    files = FileStore(settings.cache_dir, settings.cache_disk, owner, waiting)
    return PrefixStore(network, plan.store - waiting, identity, files)


def _name_of(model: object) -> str:
    """A model argument as text: a path is that of a folder. Raises OptionError."""
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(name, str):
        raise OptionError(f"model is {shown(model)}, but must be a folder, an id or tiny")
    return name


def _generation_defaults(folder: Path) -> dict[str, object]:
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
        Sampling.of(defaults)
    except SamplingError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return defaults
