"""Writes a plan into a folder, so that a run that is killed at any moment can be resumed.

Weights are written at their final offsets, into files with `.partial` names. When all are on the
disk the files get their names; the small files follow, the manifest last; only then the journal is
removed. While it is there, the runtime refuses the folder.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from gptoss_mlx.errors import CheckpointError, ConversionError
from gptoss_mlx.files import disk
from gptoss_mlx.models.checkpoint import Progress

from . import folder as own
from .journal import Journal
from .manifest import manifest
from .plan import File, Plan
from .source import MANIFEST, Source
from .weights import Weights


def write(source: Source, plan: Plan, folder: Path, progress: Progress | None = None) -> int:
    """Write a conversion, or finish it; returns the bytes written.

    progress: called with tensor bytes, from any thread. Raises ConversionError or CheckpointError;
    what has been written by then stays for the next run, unless it is not worth keeping.
    """
    with (
        _one_line_errors(folder),
        own.made(folder),
        closing(Journal(folder, source, plan)) as journal,
    ):
        try:
            return _write(source, plan, folder, journal, progress)
        except BaseException as error:
            if journal.is_new and (not journal.done or _is_refusal(error)):
                _withdraw(plan, folder, journal)
            raise


def _write(
    source: Source, plan: Plan, folder: Path, journal: Journal, progress: Progress | None
) -> int:
    descriptors: dict[str, int] = {}
    written = 0
    try:
        for file in plan.files:
            descriptors[file.name] = _opened(folder, file)
            written += _write_head(descriptors[file.name], file)
        weights = Weights(plan, journal, descriptors, progress)
        weights.write()
        # This includes files whose tensors were all kept but whose header was written anew.
        for descriptor in descriptors.values():
            disk.flush(descriptor)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)
    if source.stamp_now() != source.stamp:
        raise ConversionError(
            f"{source.name}: changed while it was converted; run the same command once more"
        )
    for file in plan.files:
        if os.path.lexists(partial := _partial(folder, file)):
            os.rename(partial, folder / file.name)
    written += _write_small_files(source, plan, folder, journal.done)
    disk.sync(folder)
    journal.remove()
    disk.sync(folder)
    return written + weights.written


def _opened(folder: Path, file: File) -> int:
    """A descriptor of a weight file, under its final name if it has that, else the partial one."""
    final, partial = folder / file.name, _partial(folder, file)
    if not os.path.lexists(final):
        return own.open_own(partial) if os.path.lexists(partial) else own.open_new(partial)
    with suppress(FileNotFoundError):
        os.unlink(partial)
    return own.open_own(final)


def _write_head(descriptor: int, file: File) -> int:
    """Set a file's size and first bytes, unless they are right; returns the bytes written."""
    if os.fstat(descriptor).st_size != file.nbytes:
        os.ftruncate(descriptor, file.nbytes)
    if os.pread(descriptor, len(file.head), 0) == file.head:
        return 0
    own.write_all(descriptor, memoryview(file.head), 0)
    return len(file.head)


def _partial(folder: Path, file: File) -> Path:
    return folder / (file.name + own.PARTIAL)


def _write_small_files(source: Source, plan: Plan, folder: Path, hashes: Mapping[str, str]) -> int:
    texts = dict(plan.texts)
    if plan.target == "mlx":
        texts[MANIFEST] = manifest(source, plan, hashes)
    for name, data in texts.items():
        own.write_whole(folder / name, data)
    return sum(map(len, texts.values()))


def _is_refusal(error: BaseException) -> bool:
    """Whether the error is about what the source holds; one of reading it may not come again."""
    return isinstance(error, CheckpointError) and not isinstance(error.__cause__, OSError)


def _withdraw(plan: Plan, folder: Path, journal: Journal) -> None:
    """Remove everything of a conversion that this run began."""
    with suppress(OSError):
        for name in own.names(folder) & {n + end for n in plan.names for end in ("", own.PARTIAL)}:
            os.unlink(folder / name)
        journal.remove()


@contextmanager
def _one_line_errors(folder: Path) -> Iterator[None]:
    """Turn the block's OSErrors into ConversionErrors of one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConversionError(
                f"{folder}: the disk is full; what is written stays, and the same command goes on"
                " when there is room"
            ) from error
        place = error.filename or folder
        raise ConversionError(f"{place}: cannot be written: {error.strerror}") from error
