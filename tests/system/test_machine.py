"""The Macs by name, and what their GPUs may take."""

from __future__ import annotations

import pytest

from gptoss_mlx.system.machine import CARDS, MACHINES, Machine, find_machine

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


@pytest.mark.parametrize(
    ("name", "memory", "bandwidth"),
    [
        ("M4 Max 64GB", 64, 546),
        ("m4 max, 36 gb", 36, 410),
        ("M3 Max 36GB", 36, 300),
        ("M3 Max 128GB", 128, 400),
        ("MacBook Pro M4 16GB", 16, 120),
        ("MacBook Air M2 24GB", 24, 100),
        ("Mac Studio M3 Ultra 512GB", 512, 819),
        ("Apple M1 8GB", 8, 68),
    ],
)
def test_a_mac_may_be_named_by_its_chip(name: str, memory: int, bandwidth: int) -> None:
    machine = find_machine(name)
    assert (machine.memory, machine.bandwidth) == (memory * GiB, bandwidth * 10**9)
    assert machine.limit == find_machine(f"{memory}GB Mac").limit


def test_every_chip_has_the_bandwidth_that_apple_states() -> None:
    """In GB/s, by generation: the chip itself, Pro, Max and Ultra."""
    stated = {
        "M1": (68, 200, 400, 800),
        "M2": (100, 200, 400, 800),
        "M3": (100, 150, 400, 819),
        "M4": (120, 273, 546),
        "M5": (153,),
    }
    for generation, numbers in stated.items():
        for kind, bandwidth in zip(("", " Pro", " Max", " Ultra"), numbers, strict=False):
            assert find_machine(f"{generation}{kind} 64GB").bandwidth == bandwidth * 10**9


@pytest.mark.parametrize("name", ["M9 16GB", "M4 Ultra 64GB"])
def test_a_chip_that_is_not_known_is_said(name: str) -> None:
    with pytest.raises(ValueError, match="the chips known here are M1, "):
        find_machine(name)


def test_a_share_of_a_mac_is_left_to_the_system_and_other_programs() -> None:
    for memory, mib in ((8, 512), (16, 682), (32, 1365), (64, 2048), (128, 2048)):
        machine = MACHINES[f"{memory}GB Mac"]
        assert machine.limit is not None
        assert machine.budget == machine.limit - machine.limit // 16 or memory in (8, 64, 128)
        assert (machine.limit - (machine.budget or 0)) >> 20 == mib
    for machine in (CARDS["24GB card"], Machine("this", 16 * GiB, 9 * GiB, False)):
        assert machine.budget == machine.limit
    assert Machine("this", 16 * GiB, None, True).budget is None
