"""The text of the Seatbelt profile and the command. Neither has run on a Mac."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from gptoss_mlx.errors import SandboxError
from gptoss_mlx.tools.python.limits import Limits
from gptoss_mlx.tools.python.sandbox import choice, macos
from gptoss_mlx.tools.python.sandbox.jail import Jail

OPERATIONS = {
    *("file-ioctl", "file-map-executable", "file-read*", "file-read-data", "file-read-metadata"),
    *("file-write*", "file-write-data", "file-write-setugid", "ipc-posix-sem"),
    *("ipc-posix-shm-read*", "ipc-posix-shm-write*", "process-exec", "process-fork"),
    *("process-info*", "signal", "sysctl-read", "system-socket"),
}
"""Names that Apple's own profiles use."""


def rules(text: str) -> list[str]:
    """The expressions of the outermost level."""
    found, depth, start = [], 0, 0
    plain = re.sub(r";[^\n]*", "", text)
    for i, letter in enumerate(plain):
        if letter == "(":
            start = i if depth == 0 else start
            depth += 1
        elif letter == ")":
            depth -= 1
            assert depth >= 0
            found += [plain[start : i + 1]] if depth == 0 else []
    assert depth == 0
    assert plain.count('"') % 2 == 0
    return found


def test_what_is_not_allowed_is_denied() -> None:
    first, second, *others = rules(macos.profile(3))
    assert (first, second) == ("(version 1)", "(deny default)")
    named = {name for rule in others for name in re.findall(r"[a-z*-]+", rule.split("\n")[0])}
    operations = {n for n in named if n.startswith(("file-", "ipc-", "process-", "sys", "mach"))}
    assert operations - {"ipc-posix-name-prefix"} <= OPERATIONS
    assert [rule for rule in others if "network" in rule or "mach-lookup" in rule] == []


def test_only_its_folder_can_be_written_and_no_user_s_can_be_read() -> None:
    written = [rule for rule in rules(macos.profile(2)) if "file-write*" in rule]
    assert written == ['(allow file-read* file-write* (subpath (param "FOLDER")))']
    text = macos.profile(2)
    assert [path for path in re.findall(r'"(/[^"]*)"', text) if path.startswith("/Users")] == []
    assert '(subpath "/")' not in text
    assert re.findall(r"READABLE_\d", text).count("READABLE_1") == 2


def test_a_path_is_a_parameter_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / 'a") (allow default) ("'
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    command = macos.wrapper(["/usr/lib"], str(tmp_path / "link"))
    assert command[:2] == ["/usr/bin/sandbox-exec", "-p"]
    assert "allow default" not in command[2]
    assert command[3:] == ["-D", "READABLE_0=/usr/lib", "-D", f"FOLDER={folder.resolve()}", "--"]


def test_the_interpreter_is_what_is_confined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper stays outside, from where it stops and ends it."""
    jail = choice.make_jail("seatbelt", tmp_path, Limits())
    assert Jail.unpacked(jail.packed()) == jail
    assert jail.command[0] == macos.PROGRAM
    separator = jail.command.index("--")
    assert jail.command[separator + 1 :] == [
        jail.python,
        "-I",
        "-S",
        "-B",
        "-X",
        "utf8",
        jail.worker,
    ]
    places = [os.path.realpath(path) for path in jail.readable]
    assert {f"READABLE_{i}={path}" for i, path in enumerate(places)} <= set(jail.command)
    assert jail.folder == str(tmp_path)
    keeper = choice.keeper_command(jail, [3, 4, 5])
    assert keeper[0] == sys.executable
    assert macos.PROGRAM not in keeper
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(macos, "PROGRAM", str(tmp_path / "missing"))
    with pytest.raises(SandboxError, match=r"missing is missing; or run .*--unsafe-python"):
        choice.kinds("required")
    (tmp_path / "missing").touch()
    assert choice.kinds("required") == ("seatbelt",)
