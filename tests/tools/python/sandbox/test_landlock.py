"""Landlock alone, without the namespaces before it, and the limits of a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_mlx.tools.python.sandbox import landlock
from gptoss_mlx.tools.python.tool import PythonTool
from tests.root import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def python(code: str) -> str:
    """What code prints in a process of its own, which it may confine."""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return run.stdout.strip()


@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
@pytest.mark.parametrize("confined", [False, True])
def test_only_the_named_folders_can_be_read_and_written(confined: bool, tmp_path: Path) -> None:
    for name in ("readable", "writable", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x", encoding="utf-8")
    code = (
        "import os\nfrom gptoss_mlx.tools.python.sandbox.landlock import restrict\n"
        f"os.chdir({str(tmp_path)!r})\n"
        f"if {confined}: restrict(['readable'], ['writable'])\n"
        "def can(action, *arguments):\n"
        "    try:\n        action(*arguments)\n        return 1\n"
        "    except PermissionError:\n        return 0\n"
        "print(*(can(open, f'{n}/file') for n in ('readable', 'writable', 'other')),\n"
        "      *(can(open, f'{n}/file', 'a') for n in ('readable', 'writable', 'other')),\n"
        "      *(can(open, f'{n}/new', 'x') for n in ('readable', 'writable', 'other')),\n"
        "      *(can(os.listdir, n) for n in ('readable', 'writable', 'other')))"
    )
    everything = "1 1 1 1 1 1 1 1 1 1 1 1"
    assert python(code) == ("1 1 0 0 1 0 0 1 0 1 1 0" if confined else everything)


@pytest.mark.skipif(landlock.version() < 6, reason="this kernel's Landlock knows no signals")
def test_no_signal_leaves() -> None:
    code = (
        "import os\nfrom gptoss_mlx.tools.python.sandbox.landlock import restrict\n"
        "os.kill(os.getppid(), 0)\nrestrict(['/'], [])\n"
        "try:\n    os.kill(os.getppid(), 0)\nexcept PermissionError:\n    print('held')"
    )
    assert python(code) == "held"


@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
def test_an_interpreter_is_behind_it(walled: PythonTool) -> None:
    """In a file system that is not read-only, where the namespaces would let it write."""
    said = walled.call("python", "open('/proc/self/comm', 'w').write('x')")
    assert "PermissionError" in said.text


def test_a_limit_is_never_raised() -> None:
    code = (
        "import resource\nfrom gptoss_mlx.tools.python.limits import Limits\n"
        "from gptoss_mlx.tools.python.sandbox import rlimits\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 64))\n"
        "rlimits.limit(Limits(), separate=False)\n"
        "print(*(resource.getrlimit(getattr(resource, 'RLIMIT_' + name))\n"
        "        for name in ('NOFILE', 'FSIZE', 'DATA', 'CORE')))"
    )
    file, data = 256 << 20, (2 << 30) - (2 << 30) // 8
    assert python(code) == f"(64, 64) ({file}, {file}) ({data}, {data}) (0, 0)"
