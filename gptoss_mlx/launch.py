"""The first steps of a command's process, taken before anything else is imported.

Only modules that are part of the interpreter are imported here, and no `__future__`: until the
current folder is off the path, any other name may be that of a file in a model's folder.
"""

import os
import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_PACKAGES = ("gptoss_mlx", "gptoss_convert", "convert")
_SCRIPTS = ("gptoss-mlx", "gptoss-convert")


def is_command() -> bool:
    """Whether this process is `python -m` of one of our packages, or a script that pip made.

    Asked while the package is imported: then `sys.argv[0]` of `python -m` is "-m".
    """
    if sys.argv[:1] != ["-m"]:
        script = os.path.basename(sys.argv[0]) if sys.argv else ""
        return script.removesuffix(".exe").removesuffix("-script.py") in _SCRIPTS
    module = sys.orig_argv[-len(sys.argv)]
    if module.startswith("-"):  # -mMODULE, in one word
        module = module.partition("m")[2]
    return module.partition(".")[0] in _PACKAGES


def begin(package: str) -> None:
    """Nothing is imported from the current folder, Ctrl-C ends quietly, all streams are open.

    package: the folder of the package; the one that holds it stays on the path.
    """
    leave_current_folder(os.path.dirname(package))
    _end_quietly()
    _open_streams()


def leave_current_folder(root: str) -> None:
    """Take the current folder, which `python -m` puts first, off the path, unless it is `root`."""
    try:
        here = os.getcwd()
    except OSError:  # it is gone, and nothing can be imported from it
        return
    if here != root:
        sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]


def end_at_once(number: int, frame: object) -> None:
    """A handler of Ctrl-C where there is nothing to finish and nothing to say."""
    if os.isatty(2):
        try:  # noqa: SIM105 (contextlib would be imported)
            os.write(2, b"\n")  # the terminal has shown ^C
        except OSError:
            pass
    os._exit(INTERRUPTED)


def _end_quietly() -> None:
    import _signal  # type: ignore[import-not-found]  # signal itself is Python, and takes a while

    if _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, end_at_once)


def _open_streams() -> None:
    """Streams that were closed read or write nothing.

    Left closed, their numbers would go to the next files opened, and what libraries print with
    them.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
