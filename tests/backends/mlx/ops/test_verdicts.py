"""Verdicts on kernels in their file: kept whole, and believed only where they hold."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.backends.mlx.ops.metal import Pipeline
from gptoss_mlx.backends.mlx.ops.verdicts import Verdict, Verdicts, this_machine

MACHINE = {"chip": "Apple M1 Pro", "system": "macOS-15.1", "mlx": "0.32.4", "source": "ab"}
PIPELINE = Pipeline("moe_decode_down", (mx.bfloat16, 2880, True))
SLOW = Verdict(0, "it takes 2.00 times its reference's time")


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_they_are_there_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    Verdicts(MACHINE, folder).add({PIPELINE: Verdict(512)})
    Verdicts(MACHINE, folder).add({PIPELINE._replace(kernel="router_topk"): SLOW})
    kept = Verdicts(MACHINE, folder)
    assert kept.of(PIPELINE) == Verdict(512)
    assert kept.rejected() == {"router_topk": SLOW.why}
    assert "moe_decode_down bfloat16 2880 True" in json.loads(only(folder).read_text())["verdicts"]


@pytest.mark.parametrize("field", MACHINE)
def test_of_another_machine_they_are_not_believed(tmp_path: Path, field: str) -> None:
    Verdicts(MACHINE, tmp_path).add({PIPELINE: Verdict(512)})
    other = MACHINE | {field: "another"}
    assert Verdicts(other, tmp_path).of(PIPELINE) is None
    Verdicts(other, tmp_path)._path.write_bytes(only(tmp_path).read_bytes())  # type: ignore[union-attr]
    assert Verdicts(other, tmp_path).of(PIPELINE) is None


@pytest.mark.parametrize(
    "entry",
    [
        None,
        512,
        {},
        {"threads": "512", "why": ""},
        {"threads": True, "why": ""},
        {"threads": -1, "why": ""},
        {"threads": 1 << 70, "why": ""},
        {"threads": 512, "why": None},
        {"threads": 512},
        {"threads": 512, "why": "", "more": 1},
    ],
)
def test_what_is_no_verdict_is_left_out(tmp_path: Path, entry: Any) -> None:
    Verdicts(MACHINE, tmp_path).add({PIPELINE: SLOW})
    path = only(tmp_path)
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"verdicts": {str(PIPELINE): entry, "other": vars(SLOW)}}))
    kept = Verdicts(MACHINE, tmp_path)
    assert kept.of(PIPELINE) is None
    assert kept.rejected() == {"other": SLOW.why}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_file_counts_as_none_and_is_replaced(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    Verdicts(MACHINE, folder).add({PIPELINE: Verdict(512)})
    path = only(folder)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    path.write_bytes(whole[:at] + (b"" if cut else data.draw(st.binary(max_size=3))))
    found = Verdicts(MACHINE, folder)
    assert found.of(PIPELINE) in (None, Verdict(512))
    found.add({PIPELINE: Verdict(256)})
    assert Verdicts(MACHINE, folder).of(PIPELINE) == Verdict(256)
    assert [p.name for p in folder.iterdir()] == [path.name]


def test_two_programs_keep_what_both_found(tmp_path: Path) -> None:
    one, two = Verdicts(MACHINE, tmp_path), Verdicts(MACHINE, tmp_path)
    other = PIPELINE._replace(kernel="decode_qkv")
    one.add({PIPELINE: Verdict(512)})
    two.add({other: Verdict(256)})
    kept = Verdicts(MACHINE, tmp_path)
    assert (kept.of(PIPELINE), kept.of(other)) == (Verdict(512), Verdict(256))


def test_where_nothing_can_be_kept_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    verdicts = Verdicts(MACHINE, tmp_path / "file" / "cache")
    verdicts.add({PIPELINE: Verdict(512)})
    assert verdicts.of(PIPELINE) == Verdict(512)


def test_a_write_cut_short_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Verdicts(MACHINE, tmp_path).add({PIPELINE: Verdict(512)})
    before = only(tmp_path).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    Verdicts(MACHINE, tmp_path).add({PIPELINE: Verdict(256)})
    assert only(tmp_path).read_bytes() == before


def test_a_machine_is_its_chip_system_mlx_and_source() -> None:
    machine = this_machine()
    assert set(machine) == set(MACHINE)
    assert machine == this_machine()
    assert machine["mlx"] == mx.__version__  # type: ignore[attr-defined]
