"""Large pages as Linux's files in /proc and /sys tell of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptoss_mlx.system.pages import LARGE, SAMPLES, large_pages, mapped_large


@pytest.mark.parametrize(
    ("text", "given"),
    [("[always] madvise never", True), ("always [madvise] never", True), ("always [never]", False)],
)
def test_large_pages_are_given_unless_they_are_never(
    tmp_path: Path, text: str, given: bool
) -> None:
    path = tmp_path / "enabled"
    path.write_text(text)
    assert large_pages(path) is given


def test_a_system_without_the_file_gives_none(tmp_path: Path) -> None:
    assert not large_pages(tmp_path / "enabled")


@pytest.mark.parametrize(("share", "large"), [(1.0, True), (0.8, True), (0.5, False), (0.0, False)])
def test_the_share_of_a_mapped_file_in_large_pages(
    tmp_path: Path, share: float, large: bool
) -> None:
    memory = np.zeros(1 << 20, np.uint8)
    address, of_others = memory.ctypes.data, SAMPLES * LARGE >> 10
    entries = [(0, 16, of_others), (address, address + memory.size, int(share * of_others))]
    (tmp_path / "smaps").write_text(
        "".join(
            f"{start:x}-{end:x} r--s 00000000 fe:00 1   /weights\nRss: 4 kB\n"
            f"FilePmdMapped:   {kib} kB\nVmFlags: rd mr\n"
            for start, end, kib in entries
        )
    )
    assert mapped_large(memory, tmp_path / "smaps") is large
