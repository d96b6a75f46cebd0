"""A runtime for OpenAI's gpt-oss models; importing it loads no tensor library.

`load` opens a model; the errors it and the engine raise are named here.
"""

from gptoss_mlx import launch

if launch.is_command():  # before any other import, `__future__` included
    launch.begin(__path__[0])

from typing import TYPE_CHECKING

from gptoss_mlx.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    ContextError,
    DeviceError,
    GptOssError,
    MemoryBudgetError,
    MessageError,
    ModelNotFoundError,
    SamplingError,
    VocabularyError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptoss_mlx.engine import Engine

__version__ = "0.1.0"

__all__ = [
    "CapacityError",
    "CheckpointError",
    "ConfigError",
    "ContextError",
    "DeviceError",
    "GptOssError",
    "MemoryBudgetError",
    "MessageError",
    "ModelNotFoundError",
    "SamplingError",
    "VocabularyError",
    "__version__",
    "load",
]


def load(
    model: str = "openai/gpt-oss-20b",
    *,
    backend: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    context: int | None = None,
    memory: int | str | None = None,
    embedding: str | None = None,
    kv_bits: int | None = None,
    batch: int | None = None,
    progress: "Callable[[int, int], None] | None" = None,
) -> "Engine":
    """Open a model: a folder, a Hugging Face id, or "tiny".

    backend: "mlx", "torch" or "cuda", which is torch on an NVIDIA card; by default MLX where it has
    a GPU, else a card that PyTorch can use, else MLX on the CPU.
    device: of PyTorch, "cpu", "cuda" or such as "cuda:1"; by default a card if one can be used.
    dtype: "bfloat16" or "float32"; by default bfloat16 on a GPU and float32 on a CPU.
    context: the most tokens a sequence may have; by default what the plan has room for.
    memory: the most bytes to use, or a text such as "10GiB"; by default what the machine has for a
    model. Experts that do not fit are read from the file when they are chosen.
    embedding: "file" reads the embedding's rows from the file, "resident" keeps it in memory; by
    default the plan decides.
    kv_bits: 8 keeps the keys and values of full-attention layers in 8 bits, in 0.56 of the room
    that bfloat16 takes; by default they are kept as computed.
    batch: sequences at a time (`Engine.stream_many`), 1 to 32, with PyTorch; by default 1, and on a
    card up to 4 where there is room.
    progress: called with (bytes read, bytes in all) while the weights are read.
    Raises GptOssError (ModelNotFoundError, CheckpointError, ...) in one line.
    """
    from gptoss_mlx.engine import open_engine

    return open_engine(
        model,
        backend=backend,
        device=device,
        dtype=dtype,
        context=context,
        memory=memory,
        embedding=embedding,
        kv_bits=kv_bits,
        batch=batch,
        progress=progress,
    )
