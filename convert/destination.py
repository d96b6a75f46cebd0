"""Writes a plan into a folder, so that it can be killed at any moment and go on where it was.

Weights are written under `.partial` names at their final places. When all are there and on the disk
the files get their names, the small files follow, the manifest is the last of them, and only then
the journal goes, with which the runtime refuses the folder.
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
    """Write, or finish, a conversion; the bytes that were written.

    progress: called with tensor bytes, from any thread. Raises ConversionError or CheckpointError;
    what is written by then stays for the next try, unless it is nothing worth keeping.
    """
    with (
        _told(folder),
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
        # Also a beginning that was written anew where every tensor was kept.
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
    """A descriptor of a file's weights, under the one name it has."""
    final, partial = folder / file.name, _partial(folder, file)
    if not os.path.lexists(final):
        return own.open_own(partial) if os.path.lexists(partial) else own.open_new(partial)
    with suppress(FileNotFoundError):
        os.unlink(partial)
    return own.open_own(final)


def _write_head(descriptor: int, file: File) -> int:
    """Give a file its size and first bytes, if it has not; the bytes that were written."""
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
    """Whether it is for what the source holds; a disk that could not read it may yet."""
    return isinstance(error, CheckpointError) and not isinstance(error.__cause__, OSError)


def _withdraw(plan: Plan, folder: Path, journal: Journal) -> None:
    """Leave nothing of a conversion that this run began."""
    with suppress(OSError):
        for name in own.names(folder) & {n + end for n in plan.names for end in ("", own.PARTIAL)}:
            os.unlink(folder / name)
        journal.remove()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What the disk refuses, as one line."""
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
