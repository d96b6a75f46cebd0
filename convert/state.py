"""The state of a destination: nothing there, an unfinished conversion, or a finished one."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal, TypeGuard

from gptoss_mlx.errors import CheckpointError, ConversionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.files.regular import open_regular, read_regular
from gptoss_mlx.models.checkpoint import UNFINISHED

from . import folder as own
from . import journal
from .manifest import read_manifest, record, sizes, text
from .plan import File, Plan
from .source import MANIFEST, Source

State = Literal["new", "begun", "complete"]

_AGAIN = "delete its folder and convert once more, or choose another"
_SPARE_DISK = 64 << 20
_HASH = re.compile("[0-9a-f]{64}")


def state(source: Source, plan: Plan, folder: Path) -> State:
    """What a folder holds of this conversion.

    Raises ConversionError or CheckpointError for a folder that is not for this conversion.
    """
    try:
        if not folder.is_dir():
            _check_can_be_made(folder)
            return "new"
        names = own.names(folder)
        if not names or UNFINISHED in names:
            _check_writable(folder)
        if not names:
            return "new"
        if UNFINISHED in names:
            journal.recorded(folder, source, plan)
            return "begun"
        _check_finished(source, plan, folder, names)
    except OSError as error:
        raise ConversionError(
            f"{error.filename or folder}: cannot be read: {error.strerror}"
        ) from error
    return "complete"


def to_write(source: Source, plan: Plan, folder: Path) -> int:
    """Bytes that a run will write there, if all that is there is as it was written."""
    there = state(source, plan, folder)
    total = sum(sizes(source, plan).values())
    if there != "begun":
        return total if there == "new" else 0
    kept = journal.recorded(folder, source, plan)
    for task in plan.tasks:
        if all(output.name in kept for output in task.outputs):
            total -= task.nbytes
    return total - sum(len(file.head) for file in plan.files if _head_is_there(folder, file))


def check_room(source: Source, plan: Plan, folder: Path) -> None:
    """Raises ConversionError if the disk has no room for what is still to be written."""
    missing = 0
    for name, nbytes in sizes(source, plan).items():
        places = (folder / name, folder / (name + own.PARTIAL))
        blocks = sum(path.stat().st_blocks for path in places if path.exists())
        missing += max(0, nbytes - blocks * 512)
    needed, free = missing + _SPARE_DISK, free_bytes(folder)
    if free < needed:
        raise ConversionError(
            f"{folder}: takes {needed:,} more bytes, but its disk has {free:,} free"
        )


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that the folder is or will be on."""
    return shutil.disk_usage(_nearest(folder)).free


def _check_files(plan: Plan, folder: Path) -> None:
    """Raises ConversionError for the first file that is missing or has another size or beginning,
    or, if it holds no tensors, other contents.
    """
    for file in plan.files:
        _check_size(folder / file.name, file.nbytes)
        if not _head_is_there(folder, file):
            raise ConversionError(
                f"{folder / file.name}: begins otherwise than this conversion's; {_AGAIN}"
            )
    for name, data in plan.texts.items():
        _check_size(folder / name, len(data))
        if read_regular(folder / name, len(data)) != data:
            raise ConversionError(
                f"{folder / name}: differs from what this conversion writes; {_AGAIN}"
            )


def _check_finished(source: Source, plan: Plan, folder: Path, names: set[str]) -> None:
    is_ours = MANIFEST in names
    if plan.target == "release" and not is_ours:
        is_ours = any(file.name in names for file in plan.files)
    if not is_ours:
        raise ConversionError(f"{folder}: {journal.NOT_OURS}")
    if plan.target == "mlx":
        _check_manifest(source, plan, folder)
    elif MANIFEST in names:
        raise ConversionError(f"{folder}: holds a conversion, not a release; choose another folder")
    _check_files(plan, folder)


def _check_manifest(source: Source, plan: Plan, folder: Path) -> None:
    """Check that a manifest is of this source and recipe, with this plan's files and tensors.

    Raises ConversionError or CheckpointError.
    """
    found = read_manifest(folder)
    recorded = found.get("source")
    if not isinstance(recorded, dict) or not all(
        isinstance(text, str) for text in recorded.values()
    ):
        raise _damaged(folder, "source")
    if recorded.get("content") != source.content:
        raise ConversionError(
            f"{folder}: holds a conversion of another source, called {shown(recorded.get('name'))};"
            " choose another folder"
        )
    if found.get("recipe") != plan.recipe:
        raise ConversionError(
            f"{folder}: holds a conversion to --bits {shown(found.get('recipe'))},"
            f" not {plan.recipe}; choose another folder"
        )
    hashes = found.get("tensors")
    if not _are_hashes(hashes) or hashes.keys() != {output.name for output in plan.outputs}:
        raise _damaged(folder, "tensors")
    # Another version may have written it, and its source may have had another name.
    expected = {**record(source, plan, hashes), "source": recorded, "tool": str(found.get("tool"))}
    for key in sorted(expected.keys() | found.keys()):
        if found.get(key) != expected.get(key):
            raise _damaged(folder, key)
    _check_size(folder / MANIFEST, len(text(expected)))


def _are_hashes(value: Any) -> TypeGuard[dict[str, str]]:
    return isinstance(value, dict) and all(
        isinstance(text, str) and _HASH.fullmatch(text) for text in value.values()
    )


def _damaged(folder: Path, key: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / MANIFEST}: {shown(key)} is not what this conversion writes there; {_AGAIN}"
    )


def _check_size(path: Path, nbytes: int) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ConversionError(f"{path}: is missing; {_AGAIN}") from None
    if not path.is_file():
        raise ConversionError(f"{path}: is no file; {_AGAIN}")
    if size != nbytes:
        raise ConversionError(
            f"{path}: has {size:,} bytes, but this conversion's has {nbytes:,}; {_AGAIN}"
        )


def _head_is_there(folder: Path, file: File) -> bool:
    final = folder / file.name
    path = final if final.exists() else folder / (file.name + own.PARTIAL)
    if not path.exists():
        return False
    with open(open_regular(path), "rb") as opened:
        return opened.read(len(file.head)) == file.head


def _check_can_be_made(folder: Path) -> None:
    nearest = _nearest(folder)
    if not nearest.is_dir():
        raise ConversionError(f"{folder}: cannot be written: {nearest} is not a folder")
    if os.path.lexists(folder):
        raise ConversionError(f"{folder}: is a link that leads nowhere; choose another folder")
    _check_writable(nearest)


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConversionError(f"{folder}: cannot be written to; choose another folder")


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest of its parents, that exists."""
    return next(path for path in (folder, *folder.resolve().parents) if path.exists())
