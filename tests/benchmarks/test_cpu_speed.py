"""The speed of the CPU's kernels is measured and printed; how fast it is, is no matter here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.cpu import curves, speed
from gptoss_mlx.backends.cpu import library

pytestmark = pytest.mark.skipif(
    library.why_missing() is not None, reason="the kernels were not built"
)

BENCH = """
import json, sys
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rows = [(int(p), 0, int(d)) for p in asked["-p"].split(",") for d in "0" if p != "0"]
if asked["-n"] != "0":
    rows = [(0, int(asked["-n"]), int(d)) for d in asked["-d"].split(",")]
print(json.dumps([
    {"build_commit": "abc", "n_prompt": p, "n_gen": n, "n_depth": d, "avg_ts": 1000.0 + p + d}
    for p, n, d in rows
]))
"""
BATCHED = """
import json, sys
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("not a figure")
for count in asked["-npl"].split(","):
    print(json.dumps({"pl": int(count), "speed_tg": 7.0 * int(count)}))
"""


def measured(*options: str) -> dict[str, object]:
    arguments = ["--prompts", "20", "--streams", "1,2", "--contexts", "300", "--steps", "3"]
    result = CliRunner().invoke(speed.main, [*arguments, *options])
    assert result.exit_code == 0, result.output
    report: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return report


@pytest.fixture(scope="module")
def ours() -> dict[str, object]:
    return measured("--threads", "2", "--scaling")


def test_every_figure_is_printed(ours: dict[str, object]) -> None:
    figures = ours["ours"]
    assert isinstance(figures, dict)
    assert figures["variant"] in library.variants()
    for name, numbers in (
        ("decode_tok_s", {"1", "2"}),
        ("decode_at_tok_s", {"300"}),
        ("prefill_tok_s", {"20"}),
        ("threads_decode_tok_s", {"1"}),
        ("threads_prefill_tok_s", {"1"}),
    ):
        assert figures[name].keys() == numbers
        assert all(rate > 0 for rate in figures[name].values())
    assert figures["peak_gib"] > 0
    assert min(figures["bandwidth_gb_s"]) > 0


def test_llama_cpp_is_asked_for_the_same(tmp_path: Path) -> None:
    for name, source in (("llama-bench", BENCH), ("llama-batched-bench", BATCHED)):
        path = tmp_path / name
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)
    file = tmp_path / "model.gguf"
    file.touch()
    peer = measured("--llama", str(tmp_path), str(file))["llama.cpp"]
    assert isinstance(peer, dict)
    assert peer.pop("peak_gib") > 0
    assert peer.pop("threads") >= 1
    assert peer == {
        "variant": "abc",
        "decode_tok_s": {"1": 1000.0, "2": 14.0},
        "decode_at_tok_s": {"300": 1300.0},
        "prefill_tok_s": {"20": 1020.0},
    }


def test_results_become_a_picture(ours: dict[str, object], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result, picture = tmp_path / "result.json", tmp_path / "picture.png"
    result.write_text(json.dumps({**ours, "llama.cpp": ours["ours"]}))
    drawn = CliRunner().invoke(curves.main, [str(result), "--plot", str(picture)])
    assert drawn.exit_code == 0, drawn.output
    assert picture.read_bytes().startswith(b"\x89PNG")
