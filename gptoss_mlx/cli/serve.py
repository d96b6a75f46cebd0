"""The command `gptoss-mlx serve`: models behind a local server, for every assistant at hand."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptoss_mlx.cli.asked_guard import guard_options, take_guard
from gptoss_mlx.cli.asked_tools import need_mcp, take_tools, tool_options
from gptoss_mlx.cli.exits import Command
from gptoss_mlx.cli.opening import take_settings
from gptoss_mlx.cli.options import (
    CACHE,
    CONTEXT_SETTINGS,
    Parsed,
    backend_options,
    loading_options,
)
from gptoss_mlx.cli.terminal import Bar, harmless
from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.files.paths import cache_folder
from gptoss_mlx.models.hub import DEFAULT_MODEL

if TYPE_CHECKING:
    from gptoss_mlx.cli.asked_guard import AskedGuard
    from gptoss_mlx.models.checkpoint import Progress
    from gptoss_mlx.server.policy import Policy
    from gptoss_mlx.server.registry import ServedModel
    from gptoss_mlx.server.toolkit import Toolkit

logger = logging.getLogger(__name__)

BAR_AFTER = 1.0  # seconds; shorter work shows no bar

KEY_FILE_BYTES = 1 << 16

_LEVELS = ("debug", "info", "warning", "error")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float | None:
    """ "90", "90s", "5m", "2h", "1d" -> seconds; "forever" -> None. Raises ValueError."""
    if text == "forever":
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd]?)", text, re.ASCII)
    if match is None:
        raise ValueError(f"{shown(text)} is no time such as 30s, 5m or forever")
    return float(match[1]) * _UNITS[match[2]]


def parse_origin(text: str) -> str:
    """A page's origin, or "*". Raises ValueError."""
    if text == "*" or re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", text):
        return text
    raise ValueError(f"{shown(text)} is no origin such as http://localhost:3000")


DURATION = Parsed("duration", parse_duration)
ORIGIN = Parsed("origin", parse_origin)


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS, epilog=CACHE)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("-m", "--model", multiple=True, help=f"As MODEL.  [default: {DEFAULT_MODEL}]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Others need --api-key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--api-key", multiple=True, help="One that callers may show. Repeatable.")
@click.option("--api-key-file", type=click.Path(path_type=Path), help="A key on each line.")
@click.option("--allow-origin", multiple=True, type=ORIGIN, help="Whose pages may read answers.")
@click.option("--allow-host", multiple=True, help="Another name of this machine. Repeatable.")
@click.option("--alias", multiple=True, metavar="NAME", help='Another name of MODEL; "gpt-4*".')
@backend_options
@click.option("--parallel", type=click.IntRange(1, 32), help="Answers written at a time.")
@click.option("--max-queue", type=click.IntRange(0), default=64, show_default=True)
@loading_options
@tool_options
@click.option(
    "--allow-mcp-urls", is_flag=True, help="Connect to MCP servers at public URLs of clients'."
)
@guard_options
@click.option("--no-cache-dir", is_flag=True, help="Nothing of prompts lasts on the disk.")
@click.option(
    "--keep-alive",
    type=DURATION,
    default="forever",
    show_default=True,
    help="Unload a model that was not asked for so long, such as 30m.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=10,
    show_default=True,
    help="Seconds to finish answers when told to end.",
)
@click.option("--log-level", type=click.Choice(_LEVELS), default="warning", show_default=True)
@click.option("--log-prompts", is_flag=True, help="Write what is asked to the log.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(
    models: tuple[str, ...],
    model: tuple[str, ...],
    host: str,
    port: int,
    api_key: tuple[str, ...],
    api_key_file: Path | None,
    allow_origin: tuple[str, ...],
    allow_host: tuple[str, ...],
    alias: tuple[str, ...],
    allow_mcp_urls: bool,
    max_queue: int,
    no_cache_dir: bool,
    keep_alive: float | None,
    grace: float,
    log_level: str,
    log_prompts: bool,
    debug: bool,
    **settings: Any,
) -> None:
    """Serve MODEL, and others on demand, to programs on this machine.

    It speaks OpenAI's, Anthropic's, Ollama's and LM Studio's APIs. The first MODEL is loaded at
    once; another one when it is asked for, in the place of one that nobody uses if there is no room
    beside it.
    """
    box, guard = take_tools(settings, on_terminal=False), take_guard(settings)
    if allow_mcp_urls:
        need_mcp("--allow-mcp-urls")
    keys = (*api_key, *_keys(api_key_file))
    if not all(keys):
        raise click.UsageError("--api-key is empty")
    if not keys and not _is_loopback(host):
        raise click.UsageError(
            f"--host {shown(host)} lets other machines in: give an --api-key as well"
        )
    if no_cache_dir and settings["cache_dir"]:
        raise click.UsageError("--no-cache-dir and --cache-dir exclude each other")
    names = _named(*models, *model)
    if not no_cache_dir and settings["cache_dir"] is None:
        settings["cache_dir"] = cache_folder() / "prefixes"

    from gptoss_mlx.server.policy import Policy

    policy = Policy(
        keys=keys,
        origins=allow_origin,
        hosts=allow_host,
        max_queue=max_queue,
        keep_alive=keep_alive,
        grace=grace,
        log_prompts=log_prompts,
    )
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s: %(message)s")
    if log_prompts:  # whatever else is logged
        logging.getLogger("gptoss_mlx.server.service").setLevel(logging.INFO)
    tty = sys.stderr is not None and sys.stderr.isatty()
    tell = partial(logger.warning, "%s")
    with box.kit(bar_shown=tty, after=BAR_AFTER, note=tell, allows_urls=allow_mcp_urls) as kit:
        _serve(names, alias, settings, policy, kit, (host, port), guard)


def _named(*models: str) -> tuple[str, ...]:
    """The models to serve. Raises click.UsageError."""
    if len(set(models)) < len(models):
        raise click.UsageError("a model is named twice")
    return models or (DEFAULT_MODEL,)


def _serve(
    names: tuple[str, ...],
    aliases: tuple[str, ...],
    settings: dict[str, Any],
    policy: Policy,
    kit: Toolkit,
    address: tuple[str, int],
    asked_guard: AskedGuard,
) -> None:
    from gptoss_mlx.server.app import App
    from gptoss_mlx.server.containers import Containers
    from gptoss_mlx.server.listener import Listener, bind
    from gptoss_mlx.server.registry import Alias, Registry, ServedModel
    from gptoss_mlx.server.service import Service
    from gptoss_mlx.settings import Settings

    chosen = Settings.of(parallel=settings.pop("parallel"), **take_settings(settings))
    entries = [ServedModel(name, chosen) for name in names]
    given = [Alias(name) for name in aliases]
    guard = asked_guard.serve(entries)
    registry = Registry(
        entries, given, policy.keep_alive, guard.opener, watch=_bar, judge=guard.judge
    )
    first = entries[0]
    needed = [first] if guard.judge is None else [guard.judge, first]

    def error() -> BaseException | None:
        return next((e.error for e in needed if e.error is not None and e.rows == 0), None)

    with bind(*address) as listening:
        app = App(Service(registry, policy, guard.texts), Containers(kit))
        listener = Listener(app, policy, lambda: error() is not None)
        click.echo(welcome(first.name, address[0], listening.getsockname()[1]), err=True)
        listener.run(sockets=[listening])
    if (found := error()) is not None:
        raise found


def welcome(model: str, host: str, port: int) -> str:
    """What a person needs to set up a client. An address, since some clients take `localhost` for
    another one; where the server listens on all of them, this machine's name."""
    here = socket.gethostname() if host in ("0.0.0.0", "::") else host
    base = f"http://{f'[{here}]' if ':' in here else here}:{port}"
    return "\n".join(
        (
            f"{harmless(model)} is served at {base}",
            f"  Chat in a browser   {base}",
            f"  OpenAI base URL     {base}/v1",
            f"  Anthropic base URL  {base}",
            f"  Ollama host         {base}",
            "  Ctrl-C ends it",
        )
    )


@contextmanager
def _bar(entry: ServedModel) -> Iterator[Progress]:
    shown_ = sys.stderr is not None and sys.stderr.isatty()
    with Bar(f"Loading {entry.name}", "bytes", shown=shown_, after=BAR_AFTER) as bar:
        yield bar.update


def _keys(path: Path | None) -> list[str]:
    """The keys in a file. Raises OptionError."""
    if path is None:
        return []
    try:
        with path.open("rb") as file:
            data = file.read(KEY_FILE_BYTES + 1)
        keys = [line.strip() for line in data.decode().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: no keys can be read from it: {error}") from error
    if len(data) > KEY_FILE_BYTES or not any(keys):
        raise OptionError(f"{path}: must hold a key on each line, {KEY_FILE_BYTES} bytes at most")
    return [key for key in keys if key]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
