"""A model argument -> the folder that holds it: "tiny", a folder, or a Hugging Face id.

Downloads go through huggingface_hub: its cache, its resuming, HF_HUB_OFFLINE and HF_TOKEN as
everywhere else. Only the files a checkpoint is opened from are asked for.
"""

from __future__ import annotations

import os
import re
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptoss_mlx.errors import ModelNotFoundError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.files.paths import expanded
from gptoss_mlx.models.names import full_name

DEFAULT_MODEL = "openai/gpt-oss-20b"
TINY = "tiny"

FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
NOT_FILES = ("*/*", "*\\*", "*:*", ".*")
"""Patterns that are never downloaded: a checkpoint's files lie in one folder, so a name that leads
elsewhere is not asked for, whatever the server lists."""

_RECEIVED = "Downloading bytes"
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_ID = re.compile(f"{_PART}/{_PART}", re.ASCII)
_REASON = 100  # characters of a library's message
_HINT = f"--model {TINY} runs the small model that ships with this package"

Progress = Callable[[int, int], None]


def locate(model: str, progress: Progress | None = None, also: tuple[str, ...] = ()) -> Path:
    """The local folder of a model, downloaded first if it must be.

    also: patterns of files to download besides those that a checkpoint is opened from.

    progress: called with (bytes done, bytes in all) while something is written; a download
    shows huggingface_hub's own bars on stderr if it is None.
    Raises ModelNotFoundError in one line that says what to do.
    """
    model = full_name(model)
    if model == TINY:
        from gptoss_mlx.models.tiny import materialise

        return materialise(progress=progress)
    folder = expanded(model)
    if model and os.path.isdir(folder):
        return folder
    if folder.suffix == ".gguf" and os.path.exists(folder):
        command = shlex.join(["gptoss-convert", model, folder.stem])
        raise ModelNotFoundError(f"{model}: is a GGUF file; `{command}` makes a folder of it")
    if model and os.path.exists(folder):
        raise ModelNotFoundError(f"{model}: is a file; give the folder it is in, or {_HINT}")
    if not _is_id(model):
        raise ModelNotFoundError(
            f"{shown(model)}: is neither a folder nor a Hugging Face id like {DEFAULT_MODEL};"
            f" {_HINT}"
        )
    return _download(model, progress, (*FILES, *also))


def local_folder(model: str) -> Path | None:
    """The folder of a model that is on this machine, in the Hugging Face cache or not, else None.

    In the cache only the model's config.json is sure to be there.
    """
    model = full_name(model)
    if model == TINY or (model and os.path.isdir(expanded(model))):
        return locate(model)
    if not _is_id(model):
        return None
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(model, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _is_id(model: str) -> bool:
    """Whether the Hub would take it as a model's name."""
    marks = "..", "--"
    return (
        _ID.fullmatch(model) is not None
        and not any(mark in model for mark in marks)
        and not model.endswith(".git")
    )


def _download(model: str, progress: Progress | None, patterns: tuple[str, ...]) -> Path:
    # Imported here: it takes a while, and a local folder needs none of it.
    import huggingface_hub
    from huggingface_hub import errors

    options: dict[str, Any] = {}
    if progress is not None:
        options["tqdm_class"] = _bar_class(progress)
    try:
        folder = huggingface_hub.snapshot_download(
            model, allow_patterns=list(patterns), ignore_patterns=list(NOT_FILES), **options
        )
    except errors.GatedRepoError as error:
        raise ModelNotFoundError(
            f"{model}: access must be asked for at huggingface.co, then log in with"
            f" `hf auth login`; {_HINT}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"{model}: is neither a folder nor a model on Hugging Face; {_HINT}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelNotFoundError(_not_cached(model)) from error
    except Exception as error:
        # What else a failed transfer raises depends on the library's HTTP client and version.
        reason = " ".join(str(error).split())[:_REASON] or type(error).__name__
        raise ModelNotFoundError(f"{model}: download failed: {reason}; {_HINT}") from error
    return Path(folder)


def _not_cached(model: str) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE is set; unset it to download"
    else:
        why = "huggingface.co cannot be reached; connect to download"
    return (
        f"{model}: is neither a folder nor (completely) in the Hugging Face cache, and {why},"
        f" or {_HINT}"
    )


def _bar_class(progress: Progress) -> Any:
    """A tqdm class that shows nothing; its bar of bytes written reports to `progress`."""
    from huggingface_hub.utils.tqdm import tqdm

    lock = threading.Lock()

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # Beside the bytes written there is a bar of bytes received, which are fewer.
            self._counts = options.get("unit") == "B" and options.get("desc") != _RECEIVED
            self._done = 0
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if self._counts:
                with lock:
                    self._done += int(n or 0)
                    progress(self._done, max(self._done, int(self.total or 0)))

    return Bar
