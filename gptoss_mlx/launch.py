"""The first steps of a command's process, taken before anything else is imported.

Only modules that are part of the interpreter are imported here, and no `__future__`: while the
current folder is on sys.path, any other import might load a file from a model's folder.
"""

import os
import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_PACKAGES = ("gptoss_mlx", "gptoss_convert", "convert")
_SCRIPTS = ("gptoss-mlx", "gptoss-convert")


def is_command() -> bool:
    """Whether this process is `python -m` of one of our packages, or a script that pip made.

    Called while the package is being imported, when `python -m` has set `sys.argv[0]` to "-m".
    """
    if sys.argv[:1] != ["-m"]:
        script = os.path.basename(sys.argv[0]) if sys.argv else ""
        return script.removesuffix(".exe").removesuffix("-script.py") in _SCRIPTS
    module = sys.orig_argv[-len(sys.argv)]
    if module.startswith("-"):  # -mMODULE, in one word
        module = module.partition("m")[2]
    return module.partition(".")[0] in _PACKAGES


def begin(package: str) -> None:
    """Set up the process: nothing from the current folder, a quiet Ctrl-C, all streams open.

    package: the folder of the package; its parent stays on sys.path.
    """
    leave_current_folder(os.path.dirname(package))
    _end_quietly()
    _open_streams()


def leave_current_folder(root: str) -> None:
    """Take the current folder, which `python -m` puts first, off sys.path, unless it is `root`."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted, so nothing can be imported from it
        return
    if here != root:
        sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]


def end_at_once(number: int, frame: object) -> None:
    """SIGINT handler that ends the process at once, for phases with nothing to finish or report."""
    if os.isatty(2):
        try:  # noqa: SIM105 (contextlib would be imported)
            os.write(2, b"\n")  # the terminal has shown ^C
        except OSError:
            pass
    os._exit(INTERRUPTED)


def _end_quietly() -> None:
    import _signal  # type: ignore[import-not-found]  # signal is Python, slow to import

    if _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, end_at_once)


def _open_streams() -> None:
    """Open /dev/null for every standard stream that was closed.

    Otherwise the next files opened would get their descriptors, and libraries would print into
    them.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
