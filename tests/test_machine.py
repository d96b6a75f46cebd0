"""The Macs by name, and what their GPUs may take."""

from __future__ import annotations

import pytest

from gptoss_mlx.machine import CARDS, MACHINES, Machine, find_machine

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


def test_cards_are_found_by_memory_or_by_name() -> None:
    assert find_machine("24GB card") == find_machine(" 24 gb CARD ") == CARDS["24GB card"]
    for name in ("RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", "rtx-4090"):
        assert find_machine(name).name == "RTX 4090"
    assert find_machine("40GB card").memory == 40 * GiB
    assert {find_machine(name).kind for name in ("h100", "Tesla A100 80GB", "L40S")} == {"cuda"}


def test_a_card_s_limit_is_below_what_torch_finds_on_it() -> None:
    """GiB in all, as torch.cuda.get_device_properties shows them; a named machine promises less."""
    for name, found in (("H100", 79.1), ("H200", 139.8), ("RTX 4090", 23.6), ("L40S", 44.4)):
        machine = find_machine(name)
        assert machine.limit is not None
        assert 0.97 * found * GiB < machine.limit < found * GiB


def test_the_kind_is_the_backend_and_whether_a_gpu_computes() -> None:
    kinds = [
        Machine("x", None, None, gpu, b).kind for b in ("mlx", "torch") for gpu in (True, False)
    ]
    assert kinds == ["metal", "mlx cpu", "cuda", "torch cpu"]
    assert Machine("x", None, None, True).kind == "metal"


@pytest.mark.parametrize("name", ["RTX 1080", "2GB card", "card", "H", "80GB cards"])
def test_what_is_no_card_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="no card such as '24GB card' or 'RTX 4090'"):
        find_machine(name)
