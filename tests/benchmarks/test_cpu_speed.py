"""The speed of the CPU's kernels is measured and printed; how fast it is, is no matter here."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from benchmarks.cpu import speed
from gptoss_mlx.backends.cpu import library


@pytest.mark.skipif(library.why_missing() is not None, reason="the kernels were not built")
def test_every_figure_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "READ", 1 << 20)
    arguments = ["--prompts", "20", "--streams", "1,2", "--contexts", "300", "--steps", "3"]
    result = CliRunner().invoke(speed.main, arguments)
    assert result.exit_code == 0, result.output
    ours = json.loads(result.stdout.splitlines()[-1])["ours"]
    assert ours["variant"] in library.variants()
    for name, numbers in (
        ("decode_tok_s", {"1", "2"}),
        ("decode_at_tok_s", {"300"}),
        ("prefill_tok_s", {"20"}),
    ):
        assert ours[name].keys() == numbers
        assert all(rate > 0 for rate in ours[name].values())
    assert ours["peak_gib"] > 0
    assert min(ours["bandwidth_gb_s"]) > 0
