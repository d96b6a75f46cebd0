"""A runtime for OpenAI's gpt-oss models; importing it loads no tensor library.

`load` opens a model and gives an `Engine`, which streams events and collects them into `Result`s.
The public names are listed here; the modules of the engine are imported on first use.
"""

from gptoss_mlx import launch

if launch.is_command():  # before any other import, `__future__` included
    launch.begin(__path__[0])

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gptoss_mlx.errors import (
    CapacityError,
    CheckpointError,
    ClosedError,
    ConfigError,
    ContextError,
    DeviceError,
    GptOssError,
    GrammarError,
    KernelError,
    MemoryBudgetError,
    MessageError,
    ModelNotFoundError,
    NumericalError,
    OptionError,
    SamplingError,
    VocabularyError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptoss_mlx.engine.engine import Engine
    from gptoss_mlx.engine.events import Event, FinishEvent, PrefillEvent, Timings, TokenEvent
    from gptoss_mlx.engine.result import Result, ToolCall
    from gptoss_mlx.spec.sampling import Sampling

__version__ = "0.1.0"

__all__ = [
    "CapacityError",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "ContextError",
    "DeviceError",
    "Engine",
    "Event",
    "FinishEvent",
    "GptOssError",
    "GrammarError",
    "KernelError",
    "MemoryBudgetError",
    "MessageError",
    "ModelNotFoundError",
    "NumericalError",
    "OptionError",
    "PrefillEvent",
    "Result",
    "Sampling",
    "SamplingError",
    "Timings",
    "TokenEvent",
    "ToolCall",
    "VocabularyError",
    "__version__",
    "load",
]

_HOMES = {
    "engine.engine": ("Engine",),
    "engine.events": ("Event", "FinishEvent", "PrefillEvent", "Timings", "TokenEvent"),
    "engine.result": ("Result", "ToolCall"),
    "spec.sampling": ("Sampling",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    model: "str | os.PathLike[str]" = "openai/gpt-oss-20b",
    *,
    backend: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    context: int | str | None = None,
    memory: int | str | None = None,
    embedding: str | None = None,
    kv_bits: int | None = None,
    parallel: int | None = None,
    cache: int | str | None = None,
    cache_dir: "str | os.PathLike[str] | None" = None,
    cache_disk: int | str | None = None,
    threads: int | None = None,
    progress: "Callable[[int, int], None] | None" = None,
) -> "Engine":
    """Open a model: a folder, a Hugging Face id, or "tiny".

    backend: "mlx", "torch", "cuda", which is torch on an NVIDIA card, or "cpu", our own kernels; by
    default MLX where it has a GPU, else a card that PyTorch can use, else the kernels on the CPU.
    device: PyTorch's, "cpu", "cuda" or one such as "cuda:1"; by default a card if one can be used.
    dtype: "bfloat16" or "float32"; by default bfloat16 on a GPU and float32 on a CPU.
    context: the most tokens a sequence may have, or a text such as "32k"; by default what the plan
    has room for.
    memory: the most bytes to use, or a text such as "10GiB"; by default what the machine has for a
    model. Experts that do not fit are read from the file when the router chooses them.
    embedding: "file" reads the embedding's rows from the file, "resident" keeps it in memory; by
    default the plan decides.
    kv_bits: 8 quantizes the KV cache of full-attention layers to 8 bits, 0.56 of the bytes that
    bfloat16 takes, on MLX and on the CPU's kernels; by default it stays in the compute dtype.
    parallel: sequences decoded at the same time, 1 to 32; by default 1, and on a card up to 4 where
    there is room.
    cache: bytes of the prefix store, which keeps what conversations have in common, or a text such
    as "2GiB"; 0 for none; by default up to 1 GiB of what the plan leaves.
    cache_dir: a folder in which the prefix store lasts; by default it ends with the engine.
    cache_disk: the most bytes of its files, or a text such as "20GiB", the default.
    threads: of the kernels for CPUs; by default one for each core that computes fast.
    progress: called with (bytes read, bytes in all) while the weights are read.
    Raises GptOssError (OptionError, ModelNotFoundError, CheckpointError, ...), whose text is one
    line.
    """
    from gptoss_mlx.engine.engine import open_engine
    from gptoss_mlx.settings import Settings

    settings = Settings.of(
        backend=backend,
        device=device,
        dtype=dtype,
        context=context,
        memory=memory,
        embedding=embedding,
        kv_bits=kv_bits,
        parallel=parallel,
        cache=cache,
        cache_dir=cache_dir,
        cache_disk=cache_disk,
        threads=threads,
    )
    return open_engine(model, settings, progress)
