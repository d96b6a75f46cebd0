"""The file system that the code sees, as the kernel lists it."""

from __future__ import annotations

import sys

import pytest

from gptoss_mlx.tools.python.sandbox.root import DEVICES
from gptoss_mlx.tools.python.tool import PythonTool

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="Linux's mounts"),
]


def mounts(tool: PythonTool) -> dict[str, set[str]]:
    """Where something is mounted -> its options."""
    lines = tool.call("python", "print(open('/proc/self/mountinfo').read())").text.splitlines()
    return {line.split()[4]: set(line.split()[5].split(",")) for line in lines}


def test_all_is_read_only_but_its_own(walled: PythonTool) -> None:
    found = mounts(walled)
    own = {"/mnt/data", "/tmp", "/dev/shm", "/proc", *(f"/dev/{name}" for name in DEVICES)}
    assert {"/", "/usr", "/mnt/data", "/tmp", "/proc"} <= set(found)
    assert {path for path, options in found.items() if "ro" not in options} <= own


def test_no_device_and_no_other_s_rights_are_given(walled: PythonTool) -> None:
    devices = {f"/dev/{name}" for name in DEVICES}
    found = {path: options for path, options in mounts(walled).items() if path not in devices}
    assert [path for path, options in found.items() if not {"nosuid", "nodev"} <= options] == []
    assert "noexec" in found["/proc"]


def test_the_root_has_only_what_is_needed(walled: PythonTool) -> None:
    code = (
        "import os\nprint(sorted(os.listdir('/dev')))\nprint(sorted(os.listdir('/mnt')))\n"
        "print([name for name in os.listdir('/proc') if not name.isdigit()])\n"
        "sorted({'home', 'var', 'run', 'sys', 'boot', 'media', 'srv'} & set(os.listdir('/')))"
    )
    devices, data, processes, others = walled.call("python", code).text.splitlines()
    expected = sorted([*DEVICES, "fd", "stdin", "stdout", "stderr", "shm"])
    assert (devices, data, others) == (str(expected), "['data']", "[]")
    if walled.kind == "namespaces":
        assert processes == "['self', 'thread-self']"
