"""The `python` tool: a model's code, run as in a notebook, in a sandbox of its conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gptoss_mlx.errors import SandboxError
from gptoss_mlx.system.units import show_bytes
from gptoss_mlx.tools.python.folder import CopiedFolder, DirectFolder, Folder, make_folder
from gptoss_mlx.tools.python.interpreter import CellResult, Interpreter
from gptoss_mlx.tools.python.limits import Limits
from gptoss_mlx.tools.python.sandbox.choice import Mode, kinds, make_jail, refusal
from gptoss_mlx.tools.tool import Outcome, never

_LISTED = 20  # files named to the model
_STARTED = "a new interpreter was started: what earlier calls defined is gone"


class PythonTool:
    """One interpreter, started with the first call, and a folder of files.

    folder: of the conversation's files, outside; the code sees it as /mnt/data. sandbox: "required"
    or "none", which runs the code as the person. Raises OptionError, and SandboxError where no
    sandbox can be made; a call raises SandboxError where that shows only then.
    """

    def __init__(
        self, folder: Path, limits: Limits | None = None, sandbox: Mode = "required"
    ) -> None:
        self.folder, self.limits = folder.resolve(), limits or Limits()
        self._kinds: Sequence[str] = kinds(sandbox)
        self._interpreter: Interpreter | None = None
        self._files: Folder | None = None
        self._was_lost = False

    @property
    def name(self) -> str:
        return "python"

    @property
    def offers(self) -> Sequence[Mapping[str, object]]:
        return ({"type": "python"},)

    @property
    def kind(self) -> str:
        """Of the sandbox: "namespaces", "bubblewrap", "seatbelt" or "none"; the first one that is
        to be tried before the first call."""
        return self._kinds[0]

    def call(self, recipient: str, text: str, cancel: Callable[[], bool] = never) -> Outcome:
        """Run code; its output, the value of its last expression, or its traceback.

        Raises SandboxError.
        """
        if recipient != self.name:
            return Outcome(f"there is no {recipient[:80]}; code goes to python", failed=True)
        if self._interpreter is not None and not self._interpreter.is_alive:
            self._forget()
            self._was_lost = True
        notes = [_STARTED] if self._was_lost else []
        make_folder(self.folder)
        interpreter, files = self._running()
        files.bring()
        outcome = interpreter.run(
            text,
            lambda: "person" if cancel() else files.excess(),
        )
        fetched = files.fetch()
        notes += [*self._notes(outcome, fetched.files), *fetched.trouble]
        self._was_lost = outcome.lost is not None
        if self._was_lost:
            self._forget()
        said = [outcome.text.rstrip("\n"), *(f"[{note}]" for note in notes)]
        text = "\n".join(part for part in said if part)
        return Outcome(text or "[no output]", fetched.files, failed=outcome.failed)

    def resume(self) -> None:
        """Go on with a conversation whose interpreter has ended: the next call says so."""
        self._was_lost = True

    def close(self) -> None:
        """End the interpreter and all that it started; files stay. A later call starts another,
        and says so."""
        self._was_lost = self._was_lost or self._interpreter is not None
        self._forget()

    def _running(self) -> tuple[Interpreter, Folder]:
        """The interpreter and its folder, started with the first kind of sandbox that works."""
        if self._interpreter is not None and self._files is not None:
            return self._interpreter, self._files
        reasons = []
        for kind in self._kinds:
            try:
                interpreter = Interpreter(make_jail(kind, self.folder, self.limits))
            except SandboxError as error:
                reasons.append(str(error))
                continue
            direct = interpreter.data < 0
            files: Folder = (
                DirectFolder(self.folder, self.limits)
                if direct
                else CopiedFolder(self.folder, interpreter.data, self.limits)
            )
            self._kinds = (kind,)
            self._interpreter, self._files = interpreter, files
            return interpreter, files
        if self._kinds == ("none",):
            raise SandboxError(f"Python could not be started: {'; '.join(reasons)}")
        raise refusal(reasons)

    def _forget(self) -> None:
        interpreter, files = self._interpreter, self._files
        self._interpreter = self._files = None
        if interpreter is not None:
            interpreter.close()
        if files is not None:
            files.close()

    def _notes(self, outcome: CellResult, files: Sequence[Path]) -> list[str]:
        """What the model is told besides the output."""
        notes = [self._stop(outcome.stopped)] if outcome.stopped else []
        if outcome.lost:
            notes.append(f"the interpreter has ended: {outcome.lost}; its variables are lost")
        if files:
            names = [f"/mnt/data/{file.relative_to(self.folder)}" for file in files[:_LISTED]]
            more = [f"and {len(files) - _LISTED} more"] if len(files) > _LISTED else []
            notes.append(f"files written: {', '.join(names + more)}")
        return notes

    def _stop(self, limit: str) -> str:
        limits = self.limits
        return {
            "wall": f"interrupted: the limit of {limits.wall} seconds was reached",
            "cpu": f"interrupted: the limit of {limits.cpu} seconds of CPU time was reached",
            "output": "interrupted: it printed far more than is kept",
            "folder": f"interrupted: its files take more than {show_bytes(limits.folder)}",
            "files": f"interrupted: it made more than {limits.files} files",
            "person": "interrupted by the user",
        }[limit]
