"""Files that python made: `GET /v1/containers/{container_id}/files/{file_id}/content`.

Only files of the container's own folder are read, and no link in it is followed. What they hold is
foreign: a browser is told to save it, and to run nothing of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gptoss_mlx.files.below import FILE, FOLDER, open_below
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.containers import containers_of
from gptoss_mlx.server.problems import Problem

_PIECE = 1 << 18


async def content(request: Request) -> Response:
    """The bytes of a file."""
    id, file_id = request.path_params["container_id"], request.path_params["file_id"]
    container = containers_of(request).find(id)
    if container is None:
        said = f"no container has the id {shown(id)}, or not any more"
        raise Problem(404, said, param="container_id")
    name = container.file_name(file_id)
    try:
        if name is None:
            raise FileNotFoundError
        file, size = open_plain(container.folder, name)
    except OSError:
        raise Problem(404, f"no file has the id {shown(file_id)}", param="file_id") from None
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


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """As many bytes as were promised, unless the file has become shorter."""
    with file:
        while size > 0 and (piece := file.read(min(size, _PIECE))):
            size -= len(piece)
            yield piece
