"""Files of a conversation's folder: `GET /v1/containers/{container_id}/files`, one of them, and
its bytes.

Only files of the container's own folder are read, and no link in it is followed. What they hold is
foreign: a browser is told to save it, and to run nothing of it.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from typing_extensions import TypedDict

from gptoss_mlx.files.below import FILE, FOLDER, open_below
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.containers import Container, containers_of
from gptoss_mlx.server.openai.paging import page_of
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.replies import JSONReply

MOST_FILES = 1000
"""Of a folder, which are listed."""

_PIECE = 1 << 18


class FileShown(TypedDict):
    """bytes: its size. created_at: when it was written last, in seconds since 1970. path: as python
    sees it."""

    id: str
    object: Literal["container.file"]
    bytes: int
    container_id: str
    created_at: int
    path: str
    source: Literal["assistant"]


async def index(request: Request) -> Response:
    """The files, the newest first; so many at most are looked at."""
    container = _container(request)
    found = await asyncio.to_thread(plain_files, container.folder)
    files = [_shown(container, name, status) for name, status in found]
    return JSONReply(page_of(files, request.query_params))


async def show(request: Request) -> Response:
    container = _container(request)
    name, (file, _) = _open(container, request.path_params["file_id"])
    with file:
        return JSONReply(_shown(container, name, os.fstat(file.fileno())))


async def content(request: Request) -> Response:
    """The bytes of a file."""
    name, (file, size) = _open(_container(request), request.path_params["file_id"])
    shown_name = quote(Path(name).name, safe="")
    return StreamingResponse(
        _pieces(file, size),
        media_type="application/octet-stream",
        headers={
            "content-length": str(size),
            "content-disposition": f"attachment; filename*=UTF-8''{shown_name}",
            "content-security-policy": "default-src 'none'; sandbox",
            "cache-control": "no-store",
        },
    )


def plain_files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """The files below a folder by their paths in it, the oldest first; none where a link leads."""
    found: list[tuple[str, os.stat_result]] = []
    for root, folders, names, descriptor in os.fwalk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name).relative_to(folder).as_posix()
            with suppress(OSError, UnicodeEncodeError):
                path.encode()  # a name that is no text cannot be told
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    found.append((path, status))
            if len(found) == MOST_FILES:
                break
        if len(found) == MOST_FILES:
            break
    return sorted(found, key=lambda one: (one[1].st_mtime, one[0]))


def open_plain(folder: Path, name: str) -> tuple[BinaryIO, int]:
    """A file below a folder, to be read, and its size. Raises OSError if it is no plain one."""
    root = os.open(folder, FOLDER)
    try:
        descriptor = open_below(root, PurePosixPath(name), FILE)
    finally:
        os.close(root)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise FileNotFoundError
    return os.fdopen(descriptor, "rb"), status.st_size


def _container(request: Request) -> Container:
    """Raises Problem."""
    id = request.path_params["container_id"]
    if (container := containers_of(request).find(id)) is None:
        said = f"no container has the id {shown(id)}, or not any more"
        raise Problem(404, said, param="container_id")
    return container


def _open(container: Container, id: str) -> tuple[str, tuple[BinaryIO, int]]:
    """A file's path in the folder, the file and its size. Raises Problem."""
    name = container.file_name(id)
    try:
        if name is None:
            raise FileNotFoundError
        return name, open_plain(container.folder, name)
    except OSError:
        raise Problem(404, f"no file has the id {shown(id)}", param="file_id") from None


def _shown(container: Container, name: str, status: os.stat_result) -> FileShown:
    return {
        "id": container.file_id(container.folder / name),
        "object": "container.file",
        "bytes": status.st_size,
        "container_id": container.id,
        "created_at": int(status.st_mtime),
        "path": f"/mnt/data/{name}",
        "source": "assistant",
    }


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """As many bytes as were promised, unless the file has become shorter."""
    with file:
        while size > 0 and (piece := file.read(min(size, _PIECE))):
            size -= len(piece)
            yield piece
