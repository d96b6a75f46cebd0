"""What a call of a server's tool gave, as a model reads it: text, and the rest named in words."""

from __future__ import annotations

import binascii
import json
import tempfile
from contextlib import suppress
from pathlib import Path

from mcp_types import (
    AudioContent,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from gptoss_mlx.harmony.encoding import with_whole_characters
from gptoss_mlx.system.units import show_bytes
from gptoss_mlx.tools.tool import Outcome

TEXT_LIMIT = 50_000
"""Characters of a result; the rest is cut. They are some 12,000 tokens."""

_ENDINGS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/svg+xml": "svg",
}


class ImageFolder:
    """The images of a conversation. path: of the folder, which is made with the first; None for a
    new one. Files that are there already stay as they are."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._count = 0

    def save(self, data: bytes, kind: str) -> Path:
        """kind: its MIME type. Raises OSError."""
        if self.path is None:
            self.path = Path(tempfile.mkdtemp(prefix="gptoss-mcp-"))
        self.path.mkdir(parents=True, exist_ok=True)
        while True:
            self._count += 1
            path = self.path / f"image-{self._count}.{_ENDINGS.get(kind, 'bin')}"
            with suppress(FileExistsError), path.open("xb") as file:  # which follows no link
                file.write(data)
                return path


def read_result(result: CallToolResult, images: ImageFolder) -> Outcome:
    """The text of a result, and its images as files."""
    parts: list[str] = []
    files: list[Path] = []
    for block in result.content:
        if isinstance(block, ImageContent):
            parts.append(_image(block, images, files))
        else:
            parts.append(_words(block))
    has_text = any(isinstance(block, TextContent) for block in result.content)
    if not has_text and result.structured_content is not None:
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = cut(with_whole_characters("\n".join(parts)))
    return Outcome(text or "[no output]", tuple(files), failed=result.is_error)


def cut(text: str) -> str:
    """The text, or its beginning and how much it was."""
    if len(text) <= TEXT_LIMIT:
        return text
    return f"{text[:TEXT_LIMIT]}\n[cut: the first {TEXT_LIMIT} of {len(text)} characters]"


def _image(block: ImageContent, images: ImageFolder, files: list[Path]) -> str:
    try:
        data = binascii.a2b_base64(block.data)
    except (binascii.Error, ValueError):
        return f"[an image, {block.mime_type}, that is broken]"
    try:
        files.append(images.save(data, block.mime_type))
    except OSError as error:
        return f"[an image, {block.mime_type}, that could not be stored: {error.strerror}]"
    return f"[an image, {block.mime_type}, {show_bytes(len(data))}, that the user sees]"


def _words(block: TextContent | AudioContent | ResourceLink | EmbeddedResource) -> str:
    if isinstance(block, TextContent):
        return block.text
    if isinstance(block, AudioContent):
        return f"[sound, {block.mime_type}, that cannot be heard here]"
    if isinstance(block, ResourceLink):
        about = "".join(f", {said}" for said in (block.mime_type, block.description) if said)
        return f"[a resource: {block.name}, {block.uri}{about}]"
    resource = block.resource
    kind = f", {resource.mime_type}" if resource.mime_type else ""
    if isinstance(resource, TextResourceContents):
        return f"[a resource: {resource.uri}{kind}]\n{resource.text}"
    return f"[a resource that is no text: {resource.uri}{kind}]"
