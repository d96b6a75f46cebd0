"""The tools that a command gives the model: its options, and the tools that they open."""

from __future__ import annotations

import select
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gptoss_mlx.cli.options import Parsed
from gptoss_mlx.cli.terminal import Bar
from gptoss_mlx.errors import MessageError
from gptoss_mlx.spec.recipients import BUILTIN
from gptoss_mlx.tools.approval import MOST_CALLS, Approval, Rule

if TYPE_CHECKING:
    from gptoss_mlx.engine.engine import Engine
    from gptoss_mlx.engine.options import Message
    from gptoss_mlx.engine.result import ToolCall
    from gptoss_mlx.harmony.encoding import Encoding
    from gptoss_mlx.server.toolkit import Maker, Toolkit
    from gptoss_mlx.tools.browser.source import PageSource
    from gptoss_mlx.tools.events import AgentEvent
    from gptoss_mlx.tools.python.sandbox.choice import Mode
    from gptoss_mlx.tools.tool import Tool

RULES = ("allow", "ask")
_ASKED_AGAIN = 0.1  # seconds between two looks whether Ctrl-C was pressed

_F = TypeVar("_F", bound=Callable[..., Any])


def agrees(call: ToolCall, cancel: Callable[[], bool]) -> bool:
    """Whether the person at the terminal, who has just seen the call, lets it run."""
    click.echo(f"Run this call of {call.name}? [y/N] ", nl=False, err=True)
    while not select.select([sys.stdin], [], [], _ASKED_AGAIN)[0]:
        if cancel():
            return False
    return sys.stdin.readline().strip().lower() in ("y", "yes")


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

    @property
    def asks(self) -> bool:
        """Whether a person is asked about calls."""
        return "ask" in self.rules.values()

    @contextmanager
    def open(
        self, *, bar_shown: bool, after: float, note: Callable[[str], None]
    ) -> Iterator[OpenTools]:
        """What tools need besides a model, until the block ends. A bar is shown after so many
        seconds of reading documents. note: tells a person where files are that were made."""
        with ExitStack() as stack:
            python = stack.enter_context(self._python(note)) if "python" in self.rules else None
            source = None
            if "browser" in self.rules:
                with Bar("Reading documents", "files", shown=bar_shown, after=after) as bar:
                    source = self._source(bar.update)
                stack.callback(source.close)
            yield OpenTools(python, source)

    @contextmanager
    def kit(self, *, bar_shown: bool, after: float) -> Iterator[Toolkit]:
        """What a server makes the tools of its conversations of, until the block ends. files: each
        conversation has a folder of its own there. Raises GptOssError."""
        from gptoss_mlx.server.toolkit import Toolkit

        makers: dict[str, Maker] = {}
        with ExitStack() as stack:
            if "python" in self.rules:
                makers["python"] = self._python_maker()
            if "browser" in self.rules:
                with Bar("Reading documents", "files", shown=bar_shown, after=after) as bar:
                    source = self._source(bar.update)
                stack.callback(source.close)
                makers["browser"] = partial(_browser, source)
            offline = self.search is None
            yield Toolkit(makers, self.rules, self.most_calls, self.files, offline)

    def _python_maker(self) -> Maker:
        """Raises SandboxError where no sandbox can be made."""
        from gptoss_mlx.tools.python.sandbox.choice import kinds
        from gptoss_mlx.tools.python.tool import PythonTool

        mode: Mode = "none" if self.is_unsafe else "required"
        kinds(mode)
        return lambda folder, encoding: PythonTool(folder, sandbox=mode)

    def run(
        self,
        engine: Engine,
        opened: OpenTools,
        prompt: str | Sequence[Message],
        options: Mapping[str, Any],
    ) -> Iterator[AgentEvent]:
        """The answer to a prompt, by the engine alone where there are no tools.

        options: `Engine.stream`'s, with `cancel`. Raises MessageError for a model without Harmony.
        """
        if not self:
            return engine.stream(prompt, **options)
        from gptoss_mlx.tools.agent import Agent

        approval = Approval(self.rules, partial(agrees, cancel=options["cancel"]))
        tools = opened.tools(engine)
        agent = Agent(engine, tools, approval=approval, most_calls=self.most_calls, **options)
        return agent.run(prompt)

    @contextmanager
    def _python(self, note: Callable[[str], None]) -> Iterator[Tool]:
        from gptoss_mlx.tools.python.tool import PythonTool

        folder = self.files or Path(tempfile.mkdtemp(prefix="gptoss-files-"))
        try:
            tool = PythonTool(folder, sandbox="none" if self.is_unsafe else "required")
            with closing(tool):
                yield tool
        finally:
            if self.files is None and not any(folder.iterdir()):
                folder.rmdir()
            elif self.files is None:
                note(f"python's files are in {folder}")

    def _source(self, progress: Callable[[int, int], None]) -> PageSource:
        from gptoss_mlx.tools.browser.documents.documents import Documents
        from gptoss_mlx.tools.browser.web.searxng import SearXNG

        if self.documents is None:
            return SearXNG(str(self.search))
        return Documents(self.documents, progress)


@dataclass(frozen=True)
class OpenTools:
    """What was opened for the tools before there was a model. source: of the browser's pages."""

    python: Tool | None = None
    source: PageSource | None = None

    def tools(self, engine: Engine) -> list[Tool]:
        """The tools of one conversation. Raises MessageError for a model without Harmony."""
        found = [] if self.python is None else [self.python]
        encoding = engine.tokenizer.harmony
        if encoding is None:
            raise MessageError(f"{engine.name}: speaks no Harmony, which tools need")
        if self.source is not None:
            from gptoss_mlx.tools.browser.browser import BrowserTool

            found.append(BrowserTool(self.source, encoding))
        return found


def _browser(source: PageSource, folder: Path, encoding: Encoding) -> Tool:
    from gptoss_mlx.tools.browser.browser import BrowserTool

    return BrowserTool(source, encoding)


def take_tools(given: dict[str, Any], *, on_terminal: bool = True) -> AskedTools:
    """Take the tools' options out of a command's. on_terminal: whether a person is asked there.

    Raises click.UsageError.
    """
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
    if (
        on_terminal
        and box.asks
        and not all(stream and stream.isatty() for stream in (sys.stdin, sys.stderr))
    ):
        raise click.UsageError("=ask needs a terminal, to show calls and to answer on")
    return box
