"""Fixtures shared by all tests: small random checkpoints, an own cache, and no network."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before anything imports triton: its kernels then run on the CPU, in its interpreter.
os.environ["TRITON_INTERPRET"] = "1"

# Before anything imports numpy or torch: beside other workers a thread waits for a busy core at the
# end of every product.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("GPTOSS_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

# A shell lets its background jobs ignore Ctrl-C, nohup a hang-up, and what they start does, too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

from tests.support.checkpoints import Shape, write_checkpoint

settings.register_profile("no deadline", deadline=None)  # a timing is never a test
settings.load_profile("no deadline")

SMALL = Shape(
    layers=2,
    hidden=64,
    intermediate=96,
    experts=4,
    active=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab=8192,
)
"""Odd enough that no two sizes are equal; each embedding takes a megabyte."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Last, what was skipped for want of what."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason, count in Counter(wanting(report.longrepr[2]) for report in skipped).most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


def wanting(reason: str) -> str:
    """What a skipped test says it wants, the same for all that want the same."""
    reason = reason.removeprefix("Skipped: ")
    library = re.search(r"could not import '(\w+)|\b(torch|transformers) is not installed", reason)
    if library is not None:
        return f"{library[1] or library[2]} is not installed (pip install -e '.[oracles]')"
    return "there is no NVIDIA card" if re.search("NVIDIA|CUDA", reason) else reason


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Files the package makes go to a folder of this run, in subprocesses too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTOSS_CACHE", str(folder))
        patch.setenv("GPTOSS_DATA", str(folder / "data"))
        yield folder


@pytest.fixture(autouse=True, scope="session")
def on_the_cpu() -> None:
    """The oracles are float32 and float64: in process, tests run on the CPU on every machine."""
    import mlx.core as mx

    mx.set_default_device(mx.Device(mx.cpu))


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """A connection to anywhere but this machine fails the test that asks for it."""
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: Any) -> None:
        if not isinstance(address, tuple) or address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test connects to {address!r}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", only_here)
        yield


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(shape, seed=0, shard_bytes=...) -> a random checkpoint's folder, made once; read-only."""
    made: dict[object, Path] = {}

    def make(shape: Shape, seed: int = 0, shard_bytes: int = 1 << 20) -> Path:
        key = (shape, seed, shard_bytes)
        if key not in made:
            folder = tmp_path_factory.mktemp("checkpoint") / "random"
            made[key] = write_checkpoint(folder, shape, seed=seed, shard_bytes=shard_bytes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def small_checkpoint(checkpoint_of: Callable[..., Path]) -> Path:
    """The folder of a random checkpoint of shape SMALL in several shards; read-only."""
    return checkpoint_of(SMALL)


@pytest.fixture
def breakable(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of `small_checkpoint` for a test to break."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "broken"))
