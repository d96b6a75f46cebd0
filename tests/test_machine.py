"""The Macs by name, and what their GPUs may take."""

from __future__ import annotations

import pytest

from gptoss_mlx.machine import MACHINES, find_machine

GiB = 2**30


def test_the_known_macs() -> None:
    assert [m.memory for m in MACHINES.values()] == [
        gb * GiB for gb in (8, 16, 18, 24, 32, 36, 64, 96, 128)
    ]
    assert all(m.gpu for m in MACHINES.values())


@pytest.mark.parametrize(
    ("name", "mib"),
    [
        # as macOS has reported them on such machines, in MiB
        ("16GB Mac", 10922),
        ("32GB Mac", 21845),
        ("64GB Mac", 49152),
        ("128GB Mac", 98304),
    ],
)
def test_limits_are_those_macos_recommends_at_first(name: str, mib: int) -> None:
    limit = MACHINES[name].limit
    assert limit is not None
    assert limit >> 20 == mib


@pytest.mark.parametrize("name", ["16GB Mac", "16 gb mac", " 16GB ", "16", "16 GiB Mac", "16g"])
def test_names_are_read_leniently(name: str) -> None:
    assert find_machine(name) == MACHINES["16GB Mac"]


def test_a_mac_that_is_not_in_the_table_follows_its_rule() -> None:
    assert find_machine("48GB Mac").limit == 36 * GiB


@pytest.mark.parametrize("name", ["", "Mac", "4GB Mac", "2048GB Mac", "16GB PC", "16TB Mac"])
def test_what_is_no_mac_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="no Mac's memory"):
        find_machine(name)
