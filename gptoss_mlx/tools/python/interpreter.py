"""An interpreter's process, seen from outside: started, given cells, interrupted, ended.

Nothing that comes from it is trusted. Output is text, whatever it says; an answer is a number and a
flag, of a bounded length, and one that was forged ends a call early and does nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from gptoss_mlx.errors import SandboxError
from gptoss_mlx.tools.python.keeper import FREEZE, INTERRUPT, RUN
from gptoss_mlx.tools.python.printout import Printout
from gptoss_mlx.tools.python.sandbox.choice import keeper_command
from gptoss_mlx.tools.python.sandbox.jail import DATA, Jail

_START = 30.0  # seconds
_FROZEN = 5.0
_TICK = 0.1  # seconds between two looks at what no descriptor tells
_LONGEST_ANSWER = 4096  # bytes; ours have less than a hundred
_LONGEST_LINE = 65536  # of the keeper
_PIECE = 1 << 16
_FLOOD = 1000  # times the output's limit, after which a call is interrupted


class LostError(Exception):
    """The interpreter has ended; its text says why."""


@dataclass(frozen=True)
class CellResult:
    """What a cell gave. stopped: the limit that it ran into, "person", or None; lost: why the
    interpreter has ended, or None."""

    text: str
    failed: bool
    stopped: str | None = None
    lost: str | None = None


class Interpreter:
    """One process, its keeper, and the pipes to them.

    Raises SandboxError unless it starts. data: the descriptor of its folder, if only it has that.
    """

    def __init__(self, jail: Jail) -> None:
        self.jail, self.data = jail, -1
        self._call = ""
        self._lines = self._frames = self._outgoing = b""
        self._pending: dict[str, object] = {}
        self._cpu_is_over = self._is_mute = False
        self._printout = Printout(jail.limits.output)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._control, theirs = socket.socketpair()
        request, self._requests = os.pipe()
        self._answers, answer = os.pipe()
        self._output, output = os.pipe()
        try:
            self._start_keeper((theirs.fileno(), request, answer), output)
            theirs.close()
            self._start()
        except BaseException:
            self.close()
            if self.data >= 0:
                os.close(self.data)
            raise
        finally:
            theirs.close()

    def _start_keeper(self, inherited: tuple[int, int, int], output: int) -> None:
        """Its ends of the pipes are closed here. Raises SandboxError."""
        command = keeper_command(self.jail, inherited)
        try:
            self._keeper = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=inherited,
                env={"LANG": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(f"{command[0]}: cannot be run: {error.strerror}") from error
        finally:
            for descriptor in (*inherited[1:], output):
                os.close(descriptor)
        for descriptor in (self._requests, self._answers, self._output):
            os.set_blocking(descriptor, False)

    @property
    def is_alive(self) -> bool:
        """Whether it waits for a cell."""
        if self._keeper is None:
            return False
        try:
            self._pump(0)
        except LostError:
            return False
        return self._keeper.poll() is None

    def run(self, code: str, ask: Callable[[], str | None]) -> CellResult:
        """Run a cell within the limits; afterwards all its processes are stopped.

        ask: a reason to interrupt it, or None; called several times a second.
        """
        limits = self.jail.limits
        self._cpu_is_over, stopped = False, None
        self._printout = printout = Printout(limits.output)
        deadline = time.monotonic() + limits.wall
        try:
            self._say(RUN)
            self._send({"code": code})
            while (failed := self._answer()) is None:
                left = deadline - time.monotonic()
                if left <= 0 and stopped:
                    raise LostError("it did not end when it was interrupted")
                if stopped is None and (stopped := self._reason(left, ask())):
                    deadline = time.monotonic() + limits.grace
                    self._say(INTERRUPT)
                self._pump(min(max(left, 0), _TICK))
            self._freeze()
        except LostError as error:
            self.close()
            return CellResult(printout.text(), True, stopped, str(error))
        except BaseException:  # Ctrl-C, which must not leave code running
            self.close()
            raise
        return CellResult(printout.text(), failed, stopped)

    def close(self) -> None:
        """End all processes. The folder's descriptor is the caller's to close."""
        self._control.close()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            try:
                keeper.wait(_FROZEN)
            except subprocess.TimeoutExpired:
                keeper.kill()
                keeper.wait()
            self._read_output()
        for descriptor in (self._requests, self._answers, self._output):
            if descriptor >= 0:
                os.close(descriptor)
        self._requests = self._answers = self._output = -1

    def _start(self) -> None:
        """Raises SandboxError."""
        packed = self.jail.packed()
        deadline = time.monotonic() + _START
        try:
            self._control.sendall(struct.pack(">I", len(packed)) + packed)
            while not self._said("ready"):
                self._pump(_TICK, deadline)
            first = {"paths": self.jail.paths, "folder": self.jail.folder}
            self._send({**first, "moved": self.jail.folder != DATA})
            while self._answer() is None:
                self._pump(_TICK, deadline)
            self._freeze()
        except (LostError, OSError) as error:
            said = " ".join(self._printout.text().split())[-300:]
            raise SandboxError(f"{self.jail.kind}: {error}{said and f' ({said})'}") from error

    def _reason(self, left: float, asked: str | None) -> str | None:
        """Why the cell must end now."""
        if asked is not None or left <= 0:
            return asked or "wall"
        if self._printout.nbytes > _FLOOD * self.jail.limits.output:
            return "output"
        return "cpu" if self._cpu_is_over else None

    def _freeze(self) -> None:
        """Stop all processes, and read what they have written. Raises LostError."""
        self._pending.pop("frozen", None)
        self._say(FREEZE)
        deadline = time.monotonic() + _FROZEN
        while not self._said("frozen"):
            self._pump(_TICK, deadline)
        self._read_output()

    def _say(self, order: bytes) -> None:
        try:
            self._control.sendall(order)
        except OSError as error:
            raise LostError(self._ending()) from error

    def _send(self, request: dict[str, object]) -> None:
        """Its answer has the same number, which code that ran before cannot have known."""
        self._call = secrets.token_hex(8)
        data = json.dumps({**request, "call": self._call}).encode("utf-8")
        self._outgoing = struct.pack(">I", len(data)) + data

    def _said(self, name: str) -> bool:
        return self._pending.pop(name, None) is not None

    def _answer(self) -> bool | None:
        """Whether the cell failed; None until it has answered. Raises LostError."""
        while len(self._frames) >= 4:
            (length,) = struct.unpack_from(">I", self._frames)
            if length > _LONGEST_ANSWER:
                raise LostError("it sent something that is no answer")
            if len(self._frames) < 4 + length:
                return None
            body, self._frames = self._frames[4 : 4 + length], self._frames[4 + length :]
            try:
                answer = json.loads(body)
                call, failed = answer["call"], answer["failed"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise LostError("it sent something that is no answer") from error
            if call == self._call and isinstance(failed, bool):
                return failed
        return None

    def _pump(self, seconds: float, deadline: float | None = None) -> None:
        """Wait for something to arrive, and take it. Raises LostError."""
        if deadline is not None and time.monotonic() > deadline:
            raise LostError("it does not answer")
        poll = select.poll()
        for descriptor in (self._control.fileno(), self._answers):
            poll.register(descriptor, select.POLLIN)
        if not self._is_mute:
            poll.register(self._output, select.POLLIN)
        if self._outgoing:
            poll.register(self._requests, select.POLLOUT)
        ready = dict(poll.poll(1000 * seconds))
        if self._output in ready:
            self._read_output(once=True)
        if self._answers in ready:
            self._read_answers()
        if self._requests in ready:
            self._write_request()
        if self._control.fileno() in ready:
            self._read_control()

    def _read_output(self, once: bool = False) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(1 if once else 64):
                data = os.read(self._output, _PIECE)
                self._printout.add(data)
                if not data:
                    self._is_mute = True  # the code has closed all that writes to it
                    return

    def _read_answers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._answers, _PIECE)
            self._frames += data
            if not data or len(self._frames) > 2 * _PIECE:
                self._wait_for_the_end()

    def _write_request(self) -> None:
        try:
            with contextlib.suppress(BlockingIOError):
                self._outgoing = self._outgoing[os.write(self._requests, self._outgoing) :]
        except BrokenPipeError:
            self._wait_for_the_end()

    def _wait_for_the_end(self) -> None:
        """The interpreter has let go of a pipe; its keeper knows why, if it has ended."""
        deadline = time.monotonic() + 1
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(1000 * left):
                self._read_control()
        raise LostError("it closed the pipes that it is spoken to through")

    def _read_control(self) -> None:
        """Take what the keeper says. Raises LostError."""
        try:
            if self.data < 0 and self.jail.folder == DATA:
                data, descriptors, _, _ = socket.recv_fds(self._control, _LONGEST_LINE, 1)
                self.data = descriptors[0] if descriptors else -1
            else:
                data = self._control.recv(_LONGEST_LINE)
        except OSError:
            data = b""
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            self._pending |= json.loads(line)
        if self._pending.get("over") == "cpu":
            self._cpu_is_over = bool(self._pending.pop("over"))
        if not data or self._pending.keys() & {"over", "ended", "failed"}:
            raise LostError(self._ending())

    def _ending(self) -> str:
        if over := self._pending.get("over"):
            return f"it used more {over} than it may"
        if failed := self._pending.get("failed"):
            return str(failed)
        code = self._pending.get("ended")
        if not isinstance(code, int):
            return "it was killed"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"it was killed by {signal.Signals(-code).name}"
        return f"it ended with exit code {code}"
