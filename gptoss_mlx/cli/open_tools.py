"""The tools that were opened for a command, and those of each of its conversations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_mlx.errors import MessageError

if TYPE_CHECKING:
    from gptoss_mlx.engine.engine import Engine
    from gptoss_mlx.tools.browser.source import PageSource
    from gptoss_mlx.tools.models.endpoint import Endpoint
    from gptoss_mlx.tools.python.sandbox.choice import Mode
    from gptoss_mlx.tools.python.tool import PythonTool
    from gptoss_mlx.tools.tool import Tool


class Interpreters:
    """The python tools of conversations, one after another.

    files: the folder of all of them; None for a new one each, of which those with files stay. note:
    tells a person where. Raises SandboxError.
    """

    def __init__(
        self, files: Path | None, note: Callable[[str], None], *, is_unsafe: bool = False
    ) -> None:
        self._files, self._note = files, note
        self._sandbox: Mode = "none" if is_unsafe else "required"
        self._tool = self._make()  # what is wrong shows before the model is loaded
        self._is_taken = False

    def take(self, *, resumes: bool) -> Tool:
        """The tool of the next conversation; the one before it is closed. resumes: whether an
        interpreter that has ended has run calls of it."""
        if self._is_taken:
            self.close()
            self._tool = self._make()
        self._is_taken = True
        if resumes:
            self._tool.resume()
        return self._tool

    def close(self) -> None:
        self._tool.close()
        folder = self._tool.folder
        if self._files is not None:
            return
        with suppress(FileNotFoundError):  # a person has removed it
            if any(folder.iterdir()):
                self._note(f"python's files are in {folder}")
            else:
                folder.rmdir()

    def _make(self) -> PythonTool:
        from gptoss_mlx.tools.python.tool import PythonTool

        folder = self._files or Path(tempfile.mkdtemp(prefix="gptoss-files-"))
        try:
            return PythonTool(folder, sandbox=self._sandbox)
        except BaseException:
            if self._files is None:
                folder.rmdir()
            raise


@dataclass(frozen=True)
class OpenTools:
    """What was opened for the tools before there was a model. source: of the browser's pages.
    servers: a tool for each MCP server."""

    python: Interpreters | None = None
    source: PageSource | None = None
    models: Sequence[Endpoint] = ()
    servers: Sequence[Tool] = ()

    def tools(self, engine: Engine, *, resumes: bool = False) -> list[Tool]:
        """The tools of one conversation, in place of those of the one before. resumes: whether code
        has run in it before. Raises MessageError for a model without Harmony."""
        found: list[Tool] = []
        if self.python is not None:
            found.append(self.python.take(resumes=resumes))
        encoding = engine.tokenizer.harmony
        if encoding is None:
            raise MessageError(f"{engine.name}: speaks no Harmony, which tools need")
        if self.source is not None:
            from gptoss_mlx.tools.browser.browser import BrowserTool

            found.append(BrowserTool(self.source, encoding))
        if self.models:
            from gptoss_mlx.tools.models.tool import ModelTool

            found += map(ModelTool, self.models)
        return [*found, *self.servers]
