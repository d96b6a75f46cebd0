"""What is measured, in which order and with which limits; no tensor library is imported for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mac.rows import Task, worker

LIMIT = 120.0  # seconds of a small measurement
MODEL_LIMIT = 900.0  # of a run of a whole model
MAKE_LIMIT = 7200.0  # of making a checkpoint of full size
RUNTIMES = ("gptoss_mlx", "gptoss_mlx without Metal kernels", "mlx-lm")
DTYPES = ("bfloat16", "float32")
CASES = (
    ("moe_gate_up", "experts, gate and up"),
    ("moe_down", "experts, down"),
    ("quantized_matvec", "lm_head, 8 bits"),
    ("quantized_matvec", "lm_head, 6 bits"),
    ("quantized_matvec", "lm_head, 4 bits"),
    ("quantized_matvec", "o, 8 bits"),
    ("decode_qkv", "qkv, 8 bits"),
    ("decode_attention", "attention, window"),
    ("decode_attention", "attention, 8192 tokens"),
    ("decode_router", "router"),
    ("router_topk", "choice"),
)
"""Operations, and what a model calls them for; kernels.py makes the calls."""
TOKENS = {"20b": (1, 2, 4, 8, 512), "small": (1, 16)}
"""Of a call of the experts: up to 8 are decoded one by one, more are grouped by expert."""
JOBS = (
    "machine",
    "bandwidth",
    "launches",
    "cache",
    "check",
    "kernel",
    "checkpoint",
    "generate",
    "llama-bench",
)


@dataclass(frozen=True)
class Options:
    """What was asked for. limit: seconds of a small measurement. jobs: those wanted; all if none.

    prompt and decode are tokens; recipe is what a full checkpoint is converted to.
    """

    out: Path
    model: str = "tiny"
    gguf: str | None = None
    full: bool = False
    recipe: str = "8"
    device: str | None = None
    shape: str = "20b"
    prompt: int = 512
    decode: int = 64
    runs: int = 3
    limit: float = LIMIT
    jobs: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Without paths, which name people."""
        names = ("recipe", "device", "shape", "prompt", "decode", "runs", "limit")
        model = f"random 20b, {self.recipe}" if self.full else Path(self.model).name
        return {"model": model, **{name: getattr(self, name) for name in names}}


def first(options: Options) -> Task:
    """The machine's facts, whatever jobs are wanted."""
    return _task(options, "machine", "machine")


def tasks(options: Options, operations: Sequence[str]) -> list[Task]:
    """All that follows the machine's facts. operations: those with a kernel to check."""
    every = [*_device(options), *_checks(options, operations), *_kernels(options)]
    every += _models(options)
    return [task for task in every if not options.jobs or task.about["job"] in options.jobs]


def _device(options: Options) -> Iterator[Task]:
    small = options.shape == "small"
    buffer = (4 << 20) if small else (1 << 30)
    yield _task(options, "copy", "bandwidth", nbytes=buffer)
    yield _task(options, "launch", "launches", count=100 if small else 2000)
    yield _task(options, "update of a cache", "cache", nbytes=buffer // 16, steps=50)


def _checks(options: Options, operations: Sequence[str]) -> Iterator[Task]:
    for operation in operations:
        for dtype in DTYPES:
            name = f"{operation} against its reference, {dtype}"
            yield _task(options, name, "check", operation=operation, dtype=dtype)


def _kernels(options: Options) -> Iterator[Task]:
    for operation, case in CASES:
        several = TOKENS[options.shape] if operation.startswith("moe") else (1,)
        for tokens in several:
            for by in ("metal", "mlx"):
                name = f"{case}, {tokens} tokens, {by}"
                about = {"operation": operation, "case": case, "tokens": tokens, "by": by}
                yield _task(options, name, "kernel", **about, shape=options.shape)


def _models(options: Options) -> Iterator[Task]:
    model = options.model
    if options.full:
        model = str((options.out / f"random-20b-{options.recipe}").resolve())
        made = {"folder": model, "recipe": options.recipe, "shape": "20b"}
        yield worker("random 20b", "checkpoint", MAKE_LIMIT, **made)
    sizes = {"prompt": options.prompt, "decode": options.decode}
    for number in range(1, options.runs + 1):
        for runtime in RUNTIMES:
            given = {"device": options.device, "model": model, "runtime": runtime, **sizes}
            yield worker(f"{runtime}, run {number}", "generate", MODEL_LIMIT, **given)
    given = {"gguf": options.gguf, "runs": options.runs, **sizes}
    yield worker("llama.cpp", "llama-bench", MODEL_LIMIT, **given)


def _task(options: Options, name: str, job: str, **given: Any) -> Task:
    return worker(name, job, options.limit, device=options.device, **given)
