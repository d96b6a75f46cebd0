"""The tools that a command gives the model: its options, and the tools that they open."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gptoss_mlx.cli.options import Parsed
from gptoss_mlx.errors import MessageError
from gptoss_mlx.spec.recipients import BUILTIN

if TYPE_CHECKING:
    from gptoss_mlx.engine.engine import Engine
    from gptoss_mlx.engine.options import Message
    from gptoss_mlx.engine.result import ToolCall
    from gptoss_mlx.tools.agent import Rule
    from gptoss_mlx.tools.browser.source import PageSource
    from gptoss_mlx.tools.events import AgentEvent
    from gptoss_mlx.tools.tool import Tool

RULES = ("allow", "ask")
MOST_CALLS = 50

_F = TypeVar("_F", bound=Callable[..., Any])


def _agrees(call: ToolCall) -> bool:
    """Whether the person at the terminal, who has just seen the call, lets it run."""
    return click.confirm(f"Run this call of {call.name}?", err=True)


def _parse_tool(text: str) -> tuple[str, Rule]:
    """A tool and its rule, of NAME or NAME=RULE. Raises ValueError."""
    name, equals, rule = text.partition("=")
    if name not in BUILTIN or (equals and rule not in RULES):
        known = " or ".join(sorted(BUILTIN))
        raise ValueError(f"{text[:80]!r} is not {known}, or one of them with =ask")
    return name, "ask" if rule == "ask" else "allow"


_OPTIONS = (
    click.option(
        "--tool",
        "tool_rules",
        multiple=True,
        type=Parsed("name[=ask]", _parse_tool),
        help="Run what the model calls: python or browser. With =ask each call is asked about.",
    ),
    click.option(
        "--documents",
        type=click.Path(path_type=Path),
        help="Folder that the browser searches.",
    ),
    click.option("--search", metavar="URL", help="SearXNG that the browser searches, on the web."),
    click.option(
        "--files",
        type=click.Path(path_type=Path),
        help="Folder of the files that python reads and writes; by default a new one.",
    ),
    click.option("--unsafe-python", is_flag=True, help="Run python without a sandbox."),
    click.option(
        "--max-tool-calls",
        type=click.IntRange(0),
        default=MOST_CALLS,
        show_default=True,
        help="Calls after which the model has to answer.",
    ),
)


def tool_options(command: _F) -> _F:
    """Give a click command every option that `take_tools` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class AskedTools:
    """What a person has asked for. rules: of each tool, by its name; none: the model has no tools.

    documents, search: what the browser searches. files: None for a new folder.
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)
    documents: Path | None = None
    search: str | None = None
    files: Path | None = None
    is_unsafe: bool = False
    most_calls: int = MOST_CALLS

    def __bool__(self) -> bool:
        return bool(self.rules)

    @contextmanager
    def open(
        self, engine: Engine, progress: Callable[[int, int], None], note: Callable[[str], None]
    ) -> Iterator[list[Tool]]:
        """The tools, until the block ends. progress: of files read and to read. note: tells a
        person where files are that were made."""
        with ExitStack() as stack:
            tools: list[Tool] = []
            if "python" in self.rules:
                tools.append(stack.enter_context(self._python(note)))
            if "browser" in self.rules:
                tools.append(stack.enter_context(self._browser(engine, progress)))
            yield tools

    def run(
        self,
        engine: Engine,
        tools: Sequence[Tool],
        prompt: str | Sequence[Message],
        options: Mapping[str, Any],
    ) -> Iterator[AgentEvent]:
        """The answer to a prompt, by the engine alone where there are no tools."""
        if not tools:
            return engine.stream(prompt, **options)
        from gptoss_mlx.tools.agent import Agent, Approval

        approval = Approval(self.rules, _agrees)
        agent = Agent(engine, tools, approval=approval, most_calls=self.most_calls, **options)
        return agent.run(prompt)

    @contextmanager
    def _python(self, note: Callable[[str], None]) -> Iterator[Tool]:
        from gptoss_mlx.tools.python.tool import PythonTool

        folder = self.files or Path(tempfile.mkdtemp(prefix="gptoss-files-"))
        tool = PythonTool(folder, sandbox="none" if self.is_unsafe else "required")
        try:
            yield tool
        finally:
            tool.close()
            if self.files is None and not any(folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
            elif self.files is None:
                note(f"python's files are in {folder}")

    @contextmanager
    def _browser(self, engine: Engine, progress: Callable[[int, int], None]) -> Iterator[Tool]:
        from gptoss_mlx.tools.browser.browser import BrowserTool
        from gptoss_mlx.tools.browser.documents.documents import Documents
        from gptoss_mlx.tools.browser.web.searxng import SearXNG

        encoding = engine.tokenizer.harmony
        if encoding is None:
            raise MessageError(f"{engine.name}: speaks no Harmony, which tools need")
        source: PageSource = (
            SearXNG(str(self.search))
            if self.documents is None
            else Documents(self.documents, progress)
        )
        try:
            yield BrowserTool(source, encoding)
        finally:
            source.close()


def take_tools(given: dict[str, Any]) -> AskedTools:
    """Take the tools' options out of a command's. Raises click.UsageError."""
    rules = dict(given.pop("tool_rules"))
    box = AskedTools(
        rules,
        given.pop("documents"),
        given.pop("search"),
        given.pop("files"),
        given.pop("unsafe_python"),
        given.pop("max_tool_calls"),
    )
    for name, option, value in (
        ("browser", "--documents", box.documents),
        ("browser", "--search", box.search),
        ("python", "--files", box.files),
        ("python", "--unsafe-python", box.is_unsafe),
    ):
        if value and name not in rules:
            raise click.UsageError(f"{option} is for --tool {name}")
    if "browser" in rules and (box.documents is None) == (box.search is None):
        raise click.UsageError("--tool browser searches --documents DIR, or --search URL")
    if "ask" in rules.values() and not (sys.stdin is not None and sys.stdin.isatty()):
        raise click.UsageError("=ask needs a terminal, to answer on")
    return box
