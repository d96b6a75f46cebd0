"""The page about the tool says what is so: its tables are made of the code's."""

from __future__ import annotations

from gptoss_mlx.tools.python.limits import Limits
from gptoss_mlx.tools.python.sandbox.syscalls import REFUSED
from tests.root import ROOT
from tests.tools.python.attempts import ATTEMPTS, table

PAGE = ROOT / "docs" / "tools-python.md"


def rows() -> dict[str, str]:
    """The limits, as the page has them."""
    limits = Limits()
    memory = f"{limits.memory >> 30} GiB"
    return {
        "time of a call": f"{limits.wall:g} s",
        "CPU time of a call, of all processes": f"{limits.cpu:g} s",
        "memory of all processes": memory,
        "memory of one process": f"7/8 of {memory}",
        "processes and threads": f"{limits.processes}",
        "open files of a process": f"{limits.opened}",
        "`/mnt/data`, and `/tmp` again": f"{limits.folder >> 20} MiB",
        "a file": f"{limits.file >> 20} MiB",
        "files and folders in each of the two": f"{limits.files}",
        "text of a call": f"{limits.output} characters",
    }


def test_the_limits_are_the_defaults() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, value in rows().items():
        assert f"| {name} | {value} |" in page, name
    assert f"\n{Limits().grace:g} seconds more" in page


def test_the_attempts_are_those_that_are_tested() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert table() in page, "python -m tests.tools.python.attempts prints it"
    assert f"\n{len(ATTEMPTS)} attempts to get out" in page


def test_the_number_of_refused_calls_is_that_of_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"refuses {len(REFUSED['x86_64'])}\nsystem calls" in page
