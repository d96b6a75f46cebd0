"""The tools that a command gives the model: its options, and the tools that they open."""

from __future__ import annotations

import importlib.util
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gptoss_mlx.cli.open_tools import Interpreters, OpenTools
from gptoss_mlx.cli.options import Parsed
from gptoss_mlx.cli.shared_servers import SharedServers
from gptoss_mlx.cli.terminal import Bar
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
    from gptoss_mlx.tools.guard.guard import Guard
    from gptoss_mlx.tools.mcp.config import ServerConfig
    from gptoss_mlx.tools.models.endpoint import Endpoint
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
    """A name and its rule, of NAME or NAME=RULE."""
    name, _, rule = text.rpartition("=")
    return (
        (name, "ask" if rule == "ask" else "allow") if rule in RULES and name else (text, "allow")
    )


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
    click.option(
        "--search",
        metavar="URL",
        help="What the browser searches on the web: a SearXNG server, or a URL with {query} in it.",
    ),
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
    click.option(
        "--mcp",
        type=click.Path(path_type=Path),
        help="JSON file of MCP servers, as Claude Desktop and VS Code have it.",
    ),
    click.option(
        "--ask-models",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="JSON file of other models, at OpenAI-compatible URLs, that this one may ask.",
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

    documents, search: what the browser searches. files: None for a new folder. models: others that
    are asked. servers: of MCP.
    """

    rules: Mapping[str, Rule] = field(default_factory=dict)
    documents: Path | None = None
    search: str | None = None
    files: Path | None = None
    is_unsafe: bool = False
    most_calls: int = MOST_CALLS
    models: Sequence[Endpoint] = ()
    servers: Sequence[ServerConfig] = ()

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
        seconds of reading documents, or of starting servers. note: tells a person where files are
        that were made, and what has become of a server."""
        with ExitStack() as stack:
            servers: Sequence[Tool] = ()
            if self.servers:
                with Bar("Starting servers", "servers", shown=bar_shown, after=after) as bar:
                    started = self._started(bar.update, note)
                    servers = stack.enter_context(started)
            python = source = None
            if "python" in self.rules:
                python = Interpreters(self.files, note, is_unsafe=self.is_unsafe)
                stack.callback(python.close)
            if "browser" in self.rules:
                with Bar("Reading documents", "files", shown=bar_shown, after=after) as bar:
                    source = self._source(bar.update)
                stack.callback(source.close)
            yield OpenTools(python, source, self.models, servers)

    @contextmanager
    def kit(
        self, *, bar_shown: bool, after: float, note: Callable[[str], None], allows_urls: bool
    ) -> Iterator[Toolkit]:
        """What a server makes the tools of its conversations of, until the block ends. files: each
        conversation has a folder of its own there. note: tells a person what has become of an MCP
        server. allows_urls: whether clients may name further ones. Raises GptOssError."""
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
            shared = SharedServers(self.servers, self.models, note, allows_urls=allows_urls)
            stack.callback(shared.close)
            yield Toolkit(
                makers,
                self.rules,
                self.most_calls,
                self.files,
                is_offline=self.search is None,
                servers=shared.by_name,
                addresses=shared.addresses,
                connect=shared.connect,
            )

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
        guard: Guard | None = None,
    ) -> Iterator[AgentEvent]:
        """The answer to a prompt, by the engine alone where there are neither tools nor a guard.

        options: `Engine.stream`'s, with `cancel`. Raises MessageError for a model without Harmony.
        """
        if not self and guard is None:
            return engine.stream(prompt, **options)
        from gptoss_mlx.tools.agent import Agent

        approval = Approval(self.rules, partial(agrees, cancel=options["cancel"]))
        tools = opened.tools(engine) if self else ()
        agent = Agent(
            engine, tools, approval=approval, most_calls=self.most_calls, guard=guard, **options
        )
        return agent.run(prompt)

    @contextmanager
    def _started(
        self, progress: Callable[[int, int], None], note: Callable[[str], None]
    ) -> Iterator[Sequence[Tool]]:
        from gptoss_mlx.tools.mcp.servers import McpServers

        with closing(McpServers(self.servers, progress)) as servers:
            try:
                for text in servers.notes():
                    note(text)
                yield servers.tools
            finally:
                for text in servers.notes():
                    note(text)

    def _source(self, progress: Callable[[int, int], None]) -> PageSource:
        from gptoss_mlx.tools.browser.documents.documents import Documents
        from gptoss_mlx.tools.browser.web.search_address import QUERY, SearchAddress
        from gptoss_mlx.tools.browser.web.searxng import SearXNG

        if self.search is not None:
            return (SearchAddress if QUERY in self.search else SearXNG)(self.search)
        assert self.documents is not None, "one of both is given"
        return Documents(self.documents, progress)


def _browser(source: PageSource, folder: Path, encoding: Encoding) -> Tool:
    from gptoss_mlx.tools.browser.browser import BrowserTool

    return BrowserTool(source, encoding)


def take_tools(given: dict[str, Any], *, on_terminal: bool = True) -> AskedTools:
    """Take the tools' options out of a command's. on_terminal: whether a person is asked there.

    Raises click.UsageError, and OptionError or McpFileError for a file that is wrong.
    """
    servers = _read_mcp(given.pop("mcp", None))
    models = _read_models(given.pop("ask_models", None))
    rules: dict[str, Rule] = {server.name: "allow" for server in servers}
    for name in (f"ask_{model.name}" for model in models):
        if name in rules:
            raise click.UsageError(f"--mcp and --ask-models both have {name!r}: rename one")
    rules |= {f"ask_{model.name}": model.rule for model in models}
    rules |= _known_rules(given.pop("tool_rules"), [*sorted(BUILTIN), *rules])
    box = AskedTools(
        rules,
        given.pop("documents"),
        given.pop("search"),
        given.pop("files"),
        given.pop("unsafe_python"),
        given.pop("max_tool_calls"),
        models,
        servers,
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
    has_terminal = all(stream and stream.isatty() for stream in (sys.stdin, sys.stderr))
    if on_terminal and box.asks and not has_terminal:
        asked = ", ".join(name for name, rule in rules.items() if rule == "ask")
        raise click.UsageError(f"=ask needs a terminal, to show calls of {asked} and to answer on")
    return box


def _read_models(file: Path | None) -> tuple[Endpoint, ...]:
    if file is None:
        return ()
    from gptoss_mlx.tools.models.endpoint import read_endpoints

    return read_endpoints(file, os.environ)


def need_mcp(option: str) -> None:
    """Raises click.UsageError where the package is missing."""
    if importlib.util.find_spec("mcp") is None:
        raise click.UsageError(f"{option} needs a package: pip install 'gptoss-mlx[mcp]'")


def _read_mcp(path: Path | None) -> Sequence[ServerConfig]:
    """Raises click.UsageError and McpFileError."""
    if path is None:
        return ()
    need_mcp("--mcp")
    from gptoss_mlx.tools.mcp.config import read_servers

    return read_servers(path)


def _known_rules(given: Sequence[tuple[str, Rule]], known: Sequence[str]) -> dict[str, Rule]:
    """The rules that were given, of tools that are known. Raises click.UsageError."""
    for name, _ in given:
        if name not in known:
            text = " or ".join(known)
            raise click.UsageError(f"--tool {name[:80]!r} is not {text}, or one of them with =ask")
    return dict(given)
