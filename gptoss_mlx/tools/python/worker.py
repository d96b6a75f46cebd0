"""The interpreter of a conversation: runs one cell after another, as a notebook does.

A program by itself, which imports nothing of this package: it is run inside the sandbox. It trusts
the code no more than the code trusts it, and whatever it says may have been said by the code.

Requests are frames on descriptor 3, answers frames on 4: the length in four bytes, then JSON. All
that a person would read goes to 1 and 2, of which 5 is a copy.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.abc
import importlib.machinery
import inspect
import io
import json
import linecache
import os
import signal
import struct
import sys
import traceback
import types
from collections.abc import Sequence
from typing import Any

REQUESTS, ANSWERS, OUTPUT = 3, 4, 5
LONGEST_VALUE = 200_000  # characters of a value that is shown
FIGURES = "gptoss_figures"
_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


class Notebook:
    """Names that last from cell to cell, and what a cell may have broken put right again."""

    def __init__(self, folder: str, moved: bool) -> None:
        self.folder, self.moved = folder, moved
        self.count, self.is_running = 0, False
        self.module = types.ModuleType("__main__")
        self.names = self.module.__dict__
        self.loop: Any = None
        self.pid = os.getpid()
        sys.modules["__main__"] = self.module

    def run(self, source: str) -> bool:
        """Run a cell; whether it failed. What it shows is written to descriptor 1."""
        self._prepare()
        failed = True
        try:
            try:
                self.is_running = True
                self._execute(source)
                show_figures(self.folder)
                failed = False
            finally:
                self.is_running = False
                if os.getpid() != self.pid:  # a child that the cell forked has come to its end
                    flush_streams()
                    os._exit(0)
        except BaseException as error:  # SystemExit and KeyboardInterrupt end the cell only
            self._show(error)
        flush_streams()
        return failed

    def interrupt(self, number: int, frame: types.FrameType | None) -> None:
        if self.is_running:
            raise KeyboardInterrupt

    def _execute(self, source: str) -> None:
        name = f"<cell {self.count}>"
        source, tree = parse(source, name)
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        if self.moved:
            tree = ast.fix_missing_locations(Moved(self.folder).visit(tree))
        last = tree.body[-1] if tree.body else None
        if not isinstance(last, ast.Expr) or ends_in_semicolon(source, last):
            self._evaluate(compile(tree, name, "exec", _AWAIT, True))
            return
        tree.body.pop()
        self._evaluate(compile(tree, name, "exec", _AWAIT, True))
        value = self._evaluate(compile(ast.Expression(last.value), name, "eval", _AWAIT, True))
        if value is not None:
            self.names["_"] = value
            display(value)

    def _evaluate(self, code: types.CodeType) -> Any:
        value = eval(code, self.names)
        if not code.co_flags & inspect.CO_COROUTINE:
            return value
        import asyncio

        self.loop = self.loop or asyncio.new_event_loop()
        return self.loop.run_until_complete(value)

    def _prepare(self) -> None:
        """Streams, signals and names that the cell before may have replaced or closed."""
        self.count += 1
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, source in ((0, nothing), (1, OUTPUT), (2, OUTPUT)):
            os.dup2(source, descriptor)
        if nothing > 2:
            os.close(nothing)
        sys.stdin = open_stream(0, "r")
        sys.stdout, sys.stderr = open_stream(1, "w"), open_stream(2, "w")
        signal.signal(signal.SIGINT, self.interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self.names["__builtins__"], self.names["__name__"] = builtins, "__main__"
        self.names.setdefault("display", display)
        with contextlib.suppress(OSError):
            os.chdir(self.folder)

    def _show(self, error: BaseException) -> None:
        """The traceback, without the frames of this file."""
        told = traceback.TracebackException.from_exception(error)
        one: traceback.TracebackException | None = told
        while one is not None:
            one.stack[:] = [frame for frame in one.stack if frame.filename != __file__]
            one = one.__cause__ or one.__context__
        stream = open_stream(OUTPUT, "w")  # the cell may have closed any other
        stream.write("".join(told.format()))
        stream.flush()


class Moved(ast.NodeTransformer):
    """Puts the folder's real path in the place of /mnt/data where that cannot be mounted."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        value = node.value
        if isinstance(value, str) and (value == "/mnt/data" or value.startswith("/mnt/data/")):
            node.value = self.folder + value.removeprefix("/mnt/data")
        return node


class Figures(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A backend of matplotlib, made when it is asked for: Agg, whose show() saves the figures."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name == FIGURES else None

    def exec_module(self, module: types.ModuleType) -> None:
        agg = importlib.import_module("matplotlib.backends.backend_agg")
        vars(module)["FigureCanvas"] = agg.FigureCanvasAgg
        vars(module)["show"] = lambda *_, **__: show_figures(self.folder)


def parse(source: str, name: str) -> tuple[str, ast.Module]:
    """A cell as Python, and its tree. Lines such as `!ls` count where Python alone fails."""
    try:
        return source, ast.parse(source, name)
    except SyntaxError:
        translated = "\n".join(map(translate, source.split("\n")))
        if translated == source:
            raise
        return translated, ast.parse(translated, name)


def translate(line: str) -> str:
    bare = line.lstrip()
    indent = line[: len(line) - len(bare)]
    if bare.startswith(("!", "%pip ")):
        return f"{indent}__import__('subprocess').run({bare.lstrip('!%')!r}, shell=True);"
    return f"{indent}pass  # {bare}" if bare.startswith("%") else line


def ends_in_semicolon(source: str, last: ast.Expr) -> bool:
    """Whether one follows the last expression: a notebook then does not show its value."""
    line = source.split("\n")[(last.end_lineno or 1) - 1].encode("utf-8")
    return line[last.end_col_offset or 0 :].decode("utf-8", "replace").lstrip().startswith(";")


def display(*values: object) -> None:
    """Show values as a notebook does: a figure becomes a file, anything else its repr."""
    for value in values:
        if type(value).__name__ == "Figure" and "matplotlib.pyplot" in sys.modules:
            continue  # it is saved when the cell has ended
        text = repr(value)
        if len(text) > LONGEST_VALUE:
            half = LONGEST_VALUE // 2
            text = f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
        print(text)


def show_figures(folder: str) -> None:
    """Save matplotlib's open figures as PNG, and close them."""
    plt: Any = sys.modules.get("matplotlib.pyplot")
    for number in plt.get_fignums() if plt else ():
        figure = plt.figure(number)
        path = next(p for i in range(1, 10**6) if not os.path.lexists(p := figure_path(folder, i)))
        figure.savefig(path, format="png", bbox_inches="tight")
        plt.close(figure)
        print(f"[figure saved as {path}]")


def figure_path(folder: str, number: int) -> str:
    return os.path.join(folder, f"figure-{number}.png")


def open_stream(descriptor: int, mode: str) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, mode, closefd=False)
    buffered = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffered, "utf-8", errors="backslashreplace", line_buffering=mode == "w"
    )


def flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the cell may have put anything in their place
            stream.flush()


def read_frame() -> Any:
    """The next request. Raises EOFError at the end."""
    (length,) = struct.unpack(">I", _read_exactly(4))
    return json.loads(_read_exactly(length))


def _read_exactly(count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = os.read(REQUESTS, min(count - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def write_frame(answer: dict[str, object]) -> None:
    data = json.dumps(answer).encode("utf-8")
    os.write(ANSWERS, struct.pack(">I", len(data)) + data)


def main() -> None:
    """Answer requests until they end."""
    first = read_frame()
    sys.path[:] = first["paths"]
    add_builtins()
    sys.meta_path.append(Figures(first["folder"]))
    notebook = Notebook(first["folder"], first["moved"])
    signal.signal(signal.SIGINT, notebook.interrupt)
    write_frame({"call": first["call"], "failed": False})
    while True:
        request = read_frame()
        failed = notebook.run(request["code"])
        write_frame({"call": request["call"], "failed": failed})


def add_builtins() -> None:
    """exit, quit and help, which Python adds where it processes site folders."""
    import site

    site.setquit()
    site.sethelper()


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):
        main()
