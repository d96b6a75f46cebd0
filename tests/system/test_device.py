"""This machine, asked; and control groups of both versions, from folders made by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from gptoss_mlx.system import device
from tests.root import ROOT

GiB = 2**30


def group(folder: Path, **values: object) -> None:
    """Files of a control group; dots in their names are written __."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def membership(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "cgroup"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_this_machine_has_memory_and_a_limit_below_it() -> None:
    machine = device.this_machine()
    assert machine.memory is not None
    assert machine.limit is not None
    assert 0 < machine.limit <= machine.memory
    assert machine.gpu == device.device_info()["gpu"]


def test_on_a_gpu_the_limit_is_what_metal_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"device_name": "Apple M2", "max_recommended_working_set_size": 12_713_115_648}
    monkeypatch.setattr(device, "device_info", lambda: {**info, "gpu": True})
    machine = device.this_machine()
    assert (machine.gpu, machine.limit) == (True, 12_713_115_648)
    monkeypatch.setattr(device, "device_info", lambda: {"gpu": True})
    assert device.this_machine().limit is None


def test_free_memory_is_the_least_of_what_the_machine_and_its_group_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = SimpleNamespace(available=5 * GiB)
    monkeypatch.setattr(device.psutil, "virtual_memory", lambda: memory)
    for left, free in ((None, 5 * GiB), (3 * GiB, 3 * GiB), (9 * GiB, 5 * GiB)):
        monkeypatch.setattr(device, "group_bytes", lambda left=left: left)
        assert device.free_bytes() == free


def test_version_2(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    group(groups / "a", memory__max=8 * GiB, memory__current=3 * GiB)
    group(groups / "a" / "b", memory__max=4 * GiB, memory__current=1 * GiB)
    (groups / "a" / "b" / "memory.stat").write_text(f"anon 5\nfile {GiB // 2}\nshmem 100\n")
    where = membership(tmp_path, "0::/a/b")
    assert device.group_bytes(groups, where) == 3 * GiB + GiB // 2 - 100
    group(groups / "a", memory__max=4 * GiB)
    assert device.group_bytes(groups, where) == 1 * GiB
    group(groups / "a", memory__max="max")
    group(groups / "a" / "b", memory__max="max")
    assert device.group_bytes(groups, where) is None


def test_version_1(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    group(groups / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=5)
    group(
        groups / "memory" / "box",
        memory__limit_in_bytes=4 * GiB,
        memory__usage_in_bytes=3 * GiB,
        memory__stat=f"cache 1\ntotal_cache {2 * GiB}\ntotal_shmem {GiB}",
    )
    group(groups / "memory" / "others", memory__limit_in_bytes=GiB, memory__usage_in_bytes=0)
    where = membership(tmp_path, "9:cpu,cpuacct:/others", "4:memory:/box", "0::/")
    assert device.group_bytes(groups, where) == 2 * GiB
    assert device.group_bytes(groups, membership(tmp_path, "4:memory:/", "0::/")) is None


def test_in_a_container_only_the_root_of_the_groups_is_seen(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    group(groups, memory__max=2 * GiB, memory__current=GiB)
    where = membership(tmp_path, "0::/docker/0123/not/here")
    assert device.group_bytes(groups, where) == GiB


def test_a_group_that_is_full_has_nothing_left(tmp_path: Path) -> None:
    group(tmp_path / "groups", memory__max=GiB, memory__current=2 * GiB)
    assert device.group_bytes(tmp_path / "groups", membership(tmp_path, "0::/")) == 0


def test_where_there_are_no_groups(tmp_path: Path) -> None:
    assert device.group_bytes(tmp_path, tmp_path / "nothing") is None
    assert device.group_bytes(tmp_path / "nothing", membership(tmp_path, "0::/")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("option", ["-v", "-d"])
def test_what_a_process_was_limited_to_is_refused_in_one_line(option: str) -> None:
    """Where the limit lets Python start; MLX ends by a signal where it is refused memory."""
    line = f'ulimit {option} 900000; exec "$@"'
    words = ("-m", "gptoss_mlx.generate", "--model", "tiny", "-n", "1", "hi")
    for memory in ([], ["--memory", "600MiB"]):
        result = subprocess.run(
            ["bash", "-c", line, "bash", sys.executable, *words, *memory],
            cwd=ROOT,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1


def test_the_peak_is_in_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    usage = SimpleNamespace(ru_maxrss=300 << 20)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(device, "_peak_footprint", lambda: None)
    for platform, nbytes in (("darwin", 300 << 20), ("linux", 300 << 30)):
        monkeypatch.setattr(device.sys, "platform", platform)
        assert device.peak_bytes() == nbytes
    monkeypatch.undo()
    assert 10 << 20 < device.peak_bytes() < psutil.virtual_memory().total


def test_the_limit_of_a_group_is_what_it_may_have_in_all(tmp_path: Path) -> None:
    group(tmp_path / "groups", memory__max=2 * GiB, memory__current=GiB)
    assert device.group_limit(tmp_path / "groups", membership(tmp_path, "0::/")) == 2 * GiB
