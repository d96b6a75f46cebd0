"""Where no sandbox can be made nothing is run, and one line says what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from gptoss_mlx.errors import SandboxError
from gptoss_mlx.tools.python.sandbox import bubblewrap, choice, libc
from gptoss_mlx.tools.python.tool import PythonTool

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="Linux's refusals"),
]


@pytest.fixture
def forbidding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keeper that may not make namespaces; a folder that stands for /proc/sys."""
    broken = choice._BOOT.replace(
        "main()",
        "; from gptoss_mlx.tools.python.sandbox import libc"
        "\ndef refuse(flags): raise PermissionError(1, 'new namespaces: Operation not permitted')"
        "\nlibc.unshare = refuse; main()",
    ).replace("import main;", "import main")
    monkeypatch.setattr(choice, "_BOOT", broken)
    monkeypatch.setattr(bubblewrap, "program", lambda: None)
    monkeypatch.setattr(choice, "_SYSCTL", tmp_path)
    return tmp_path


def test_it_refuses_where_namespaces_are_refused(forbidding: Path) -> None:
    tool = PythonTool(forbidding / "folder")
    for _ in range(2):
        with pytest.raises(SandboxError) as caught:
            tool.call("python", "open('/mnt/data/ran', 'w')")
        line = str(caught.value)
        assert line.startswith("no sandbox for Python: namespaces: [Errno 1] new namespaces")
        assert "--unsafe-python" in line
        assert "\n" not in line
    assert list((forbidding / "folder").iterdir()) == []
    tool.close()


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "install bubblewrap with its AppArmor",
        ),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces above 0"),
    ],
)
def test_a_switch_that_forbids_them_is_named(
    name: str, value: str, advice: str, forbidding: Path
) -> None:
    (forbidding / name).parent.mkdir()
    (forbidding / name).write_text(f"{value}\n", encoding="ascii")
    with pytest.raises(SandboxError, match=advice):
        PythonTool(forbidding / "folder").call("python", "1")


@pytest.mark.parametrize(
    ("platform", "machine", "reason"),
    [
        ("win32", "x86_64", "there is none for win32"),
        ("linux", "riscv64", "no table of system calls for riscv64"),
    ],
)
def test_a_system_that_has_none_is_refused_at_once(
    platform: str, machine: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(libc, "architecture", lambda: machine)
    with pytest.raises(SandboxError, match=reason):
        PythonTool(tmp_path)


def test_bubblewrap_is_second_and_only_for_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "program", lambda: "/usr/bin/bwrap")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert choice.kinds("required") == ("namespaces", "bubblewrap")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert choice.kinds("required") == ("namespaces",)


@pytest.mark.skipif(
    shutil.which("bwrap") is None or os.geteuid() == 0,
    reason="bubblewrap is not installed, or would run as root",
)
def test_bubblewrap_makes_the_same_walls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_mlx.tools.python.tool.kinds", lambda mode: ("bubblewrap",))
    tool = PythonTool(tmp_path / "folder")
    said = tool.call(
        "python",
        "import os, socket\nopen('/mnt/data/a', 'w').write('a')\n"
        "print(os.getpid(), os.getuid(), sorted(os.listdir('/mnt')))\n"
        "status = open('/proc/self/status').read()\n"
        "lines = ('NoNewPrivs:\\t1', 'Seccomp:\\t2', 'CapEff:\\t' + '0' * 16)\n"
        "print(*(line in status for line in lines))\n"
        "for action in (lambda: socket.socket(), lambda: os.listdir('/proc/1/root'),\n"
        "               lambda: os.mkdir('/x')):\n"
        "    try: action()\n    except OSError as error: print(error.errno)",
    )
    lines = said.text.splitlines()
    assert lines[:5] == ["2 1000 ['data']", "True True True", "1", "13", "30"]
    assert lines[5] == "[files written: /mnt/data/a]"
    tool.close()
