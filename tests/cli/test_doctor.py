"""`gptoss-mlx doctor`: every fact by itself, whatever is missing."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.torch import device as cards
from gptoss_mlx.backends.torch.device import Card
from gptoss_mlx.cli import doctor
from gptoss_mlx.errors import DeviceError
from gptoss_mlx.system import device
from gptoss_mlx.system.machine import Machine
from gptoss_mlx.system.units import show_bytes

FACTS = [
    "chip",
    "cores",
    "computes_on",
    "backend",
    "memory",
    "limit",
    "free",
    "system",
    "python",
    "mlx",
    "torch",
    "torch_cuda",
    "triton",
    "cards",
    "gptoss_mlx",
    "kernels",
    "cache",
    "folder",
    "disk_read",
]


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(doctor.main, list(arguments), env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.stdout


def read(*arguments: str) -> Any:
    return json.loads(shown("--json", *arguments))


def fail(*arguments: object) -> Any:
    raise RuntimeError("nobody\nis there")


def test_a_cache_that_cannot_be_written_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path / "new" / "cache"))
    assert read()["cache"] == str(tmp_path / "new" / "cache")
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPTOSS_CACHE", str(tmp_path / "file" / "cache"))
    assert read()["cache"] is None
    said = " ".join(shown().replace("│", " ").split())
    assert "cannot be written: Not a directory; set GPTOSS_CACHE to another" in said


def test_every_fact_is_there_with_the_plan(small_checkpoint: Path) -> None:
    found = read("--model", str(small_checkpoint))
    assert list(found) == [*FACTS, "plan", "no_plan_because"]
    assert found["cores"] > 0
    assert found["memory"] >= found["limit"] > 0
    (kernels,) = set(found["kernels"].values())
    variants = () if library.why_missing() else library.variants()
    assert kernels in ("reference", *variants)
    assert found["folder"] == str(small_checkpoint)
    assert found["plan"]["total"] <= found["plan"]["budget"]
    assert found["no_plan_because"] is None


def _be(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Be a machine with 16 GiB, of which a model may have `limit` bytes."""

    def computer(backend: str = "mlx") -> Machine:
        return Machine("this machine", 16 << 30, limit, False, backend)

    monkeypatch.setattr(device, "this_computer", computer)


def test_the_table_shows_the_same(small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _be(monkeypatch, 12_713_115_648)
    monkeypatch.setattr(doctor, "read_speed", lambda path: 3.21e9)
    text = shown("--model", str(small_checkpoint))
    for words in ("16.00 GiB", show_bytes(12_713_115_648), "3.21 GB/s", "keys and values"):
        assert words in text


def test_a_plan_larger_than_what_is_free_is_pointed_out(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _be(monkeypatch, 10 << 30)
    monkeypatch.setattr(device, "free_bytes", lambda: 100 << 20)
    note = "100 MiB are free now: other programs would be pushed out"
    assert note in shown("--model", str(small_checkpoint))
    monkeypatch.setattr(device, "free_bytes", lambda: 10 << 30)
    assert "pushed out" not in shown("--model", str(small_checkpoint))


def test_the_largest_file_of_the_model_is_read(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []
    monkeypatch.setattr(doctor, "read_speed", lambda path: paths.append(path) or 1e9)
    assert read("--model", str(small_checkpoint))["disk_read"] == 1e9
    sizes = [path.stat().st_size for path in small_checkpoint.glob("*.safetensors")]
    assert paths[0].stat().st_size == max(sizes)


def test_memory_and_context_are_planned_with(small_checkpoint: Path) -> None:
    plan = read("--model", str(small_checkpoint), "--memory", "1GiB", "--context", "2k")["plan"]
    assert (plan["budget"], plan["context"]) == (1 << 30, 2048)


def test_a_model_that_is_not_here_is_planned_but_not_read() -> None:
    found = read("--model", "openai/gpt-oss-20b", "--memory", "8GiB")
    assert (found["folder"], found["disk_read"]) == (None, None)
    assert found["plan"] is not None or "experts" in found["no_plan_because"]
    text = shown("--model", "somebody/something")
    assert "not known: somebody/something is not on this machine" in text
    assert "no plan for somebody/something" in text


def test_a_plan_that_is_refused_is_a_line(small_checkpoint: Path) -> None:
    found = read("--model", str(small_checkpoint), "--memory", "50MiB")
    assert found["plan"] is None
    assert "50 MiB" in found["no_plan_because"]


@pytest.mark.parametrize("name", ["device_info", "this_computer", "free_bytes"])
def test_what_the_device_does_not_tell_is_said(
    name: str, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, name, fail)
    text = shown("--model", str(small_checkpoint))
    assert "not known: nobody is there" in text
    assert "kernels" in text


def test_nothing_at_all_may_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("device_info", "this_machine", "free_bytes"):
        monkeypatch.setattr(device, name, fail)
    for name in ("local_folder", "config_of", "version", "read_speed", "_built_for", "_cards"):
        monkeypatch.setattr(doctor, name, fail)
    found = read("--model", str(tmp_path))
    unknown = [name for name in FACTS if found[name] is None]
    always = {"cores", "system", "python", "gptoss_mlx", "kernels", "cache"}
    assert set(FACTS) - set(unknown) == always
    assert found["no_plan_because"] == "nobody is there"


def test_a_folder_without_weights_or_with_small_files(
    tmp_path: Path, small_checkpoint: Path
) -> None:
    assert "there are no weights" in shown("--model", str(tmp_path))
    assert "too small to tell" in shown("--model", str(small_checkpoint))


def test_cards_are_shown_with_what_keeps_them_from_use(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        0: Card(0, "Tesla T4", 75, 15 << 30, 14 << 30, "580.1"),
        1: Card(1, "NVIDIA L4", 89, 22 << 30, 20 << 30, None),
    }

    def check(card: Card) -> Card:
        if card.capability < 80:
            raise DeviceError("it is too old")
        return card

    monkeypatch.setattr(cards, "is_installed", lambda: True)
    monkeypatch.setattr(cards, "count_cards", lambda: len(found))
    monkeypatch.setattr(cards, "ask_card", found.__getitem__)
    monkeypatch.setattr(cards, "check_card", check)
    told = read("--model", "tiny")["cards"]
    assert [card["problem"] for card in told] == ["it is too old", None]
    assert told[1]["total"] == 22 << 30
    text = shown("--model", "tiny")
    assert "cuda:0 Tesla T4, capability 7.5, 14.00 GiB of 15.00 GiB free, driver 580.1; it" in text
    assert "cuda:1 NVIDIA L4, capability 8.9, 20.00 GiB of 22.00 GiB free " in text


def test_without_pytorch_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    monkeypatch.setattr(cards, "is_installed", lambda: False)
    text = shown("--model", "tiny")
    assert text.count("not known: it is not installed") == 3
    assert "not known: PyTorch is not installed" in text


@pytest.mark.torch
def test_another_backend_may_be_looked_at(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(device, "free_bytes", lambda: 3 << 30)
    arguments = ("--model", str(small_checkpoint), "--backend", "torch", "--device", "cpu")
    found = read(*arguments)
    assert found["backend"] == "PyTorch on the CPU"
    assert {"linear", "moe_down"} <= set(found["kernels"])
    assert found["plan"]["backend"] == "torch"
    assert found["memory"] > found["limit"] == found["plan"]["budget"] == 3 << 30


def test_a_backend_that_is_not_there_is_a_line(small_checkpoint: Path) -> None:
    found = read("--model", str(small_checkpoint), "--backend", "mlx", "--device", "cuda")
    assert (found["backend"], found["limit"], found["plan"]) == (None, None, None)
    assert found["no_plan_because"] == "MLX computes on the CPU here, not on 'cuda'"


def test_names_cannot_style_the_terminal() -> None:
    text = shown("--model", "[red]\x1b[31mx")
    assert "[red]" in text
    assert "\x1b" not in text


def test_kernels_are_shown_by_what_became_of_them() -> None:
    found = {"a": "metal", "b": "error: 1:2", "c": "metal", "d": "reference"}
    assert doctor._grouped(found) == "metal: a, c; error: 1:2: b; reference: d"


@pytest.mark.slow
def test_a_model_is_run_and_compared_with_its_plan_if_asked() -> None:
    arguments = ("--model", "tiny", "--context", "1k", "--backend", "mlx")
    measured = read(*arguments, "--measure", "--memory", "1GiB")["measured"]
    assert (measured["read"], measured["written"]) == (1016, 8)
    assert 0 < measured["device_bytes"] < measured["process_bytes"]
    assert "planned: " in measured["lines"][0]
    assert "at most in the process" in measured["lines"][1]
    assert measured["lines"][-1].startswith("after 1016 tokens read")
    assert "at most in the process" in shown(*arguments, "--measure")
