"""The benchmark for Macs: whatever becomes of a measurement is a row, and nothing ends the run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from select import select
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks.mac import __main__ as command
from benchmarks.mac import kernels, plan, worker
from benchmarks.mac.plan import CASES, JOBS, TOKENS, Options, tasks
from benchmarks.mac.report import as_markdown, as_object
from benchmarks.mac.rows import Row, Task, run

ABOUT = {"job": "kernel", "case": "router", "tokens": 1, "by": "metal"}
HANGS = """
import signal, subprocess, sys
code = "import os, signal, sys; os.write(os.open(sys.argv[1], os.O_WRONLY), b'x'); signal.pause()"
subprocess.Popen([sys.executable, "-c", code, sys.argv[1]])
signal.pause()
"""
"""It and a child that has a pipe open until it ends."""


def task(code: str, limit: float = 20.0, about: Mapping[str, Any] = ABOUT) -> Task:
    return Task("a kernel", (sys.executable, "-c", code), limit, about)


@pytest.mark.parametrize(
    ("code", "state", "why"),
    [
        ("import os; os.abort()", "crashed", "killed by SIGABRT"),
        ("raise ValueError('it differs')", "failed", "ValueError: it differs"),
        ("import sys; sys.exit(3)", "failed", "exit code 3"),
        ("print('no figures')", "failed", "it gave no figures"),
        ("print('[1]')", "failed", "it gave no figures"),
        ("", "failed", "it gave no figures"),
        ('print(\'{"absent": "no such program"}\')', "absent", "no such program"),
    ],
)
def test_whatever_becomes_of_it_is_a_row(code: str, state: str, why: str) -> None:
    row = run(task(code))
    assert (row.state, row.why, dict(row.figures), row.about) == (state, why, {}, ABOUT)


def test_a_program_that_is_not_there_is_a_row() -> None:
    row = run(Task("it", ("/none/such",), 1.0, {}))
    assert (row.state, row.why) == ("failed", "/none/such: No such file or directory")


@pytest.mark.slow
def test_one_that_hangs_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    row = run(Task("a kernel", (sys.executable, "-c", HANGS, str(pipe)), 3.0, ABOUT))
    assert (row.state, row.why) == ("too long", "stopped after 3 s")
    assert os.read(reading, 9) == b"x"
    assert select([reading], [], [], 10)[0]
    assert os.read(reading, 9) == b""  # nobody has it open any more
    os.close(reading)


def test_figures_are_the_last_line_and_reasons_do_not_name_the_person() -> None:
    assert run(task("print('noise'); print('{\"us\": 2.5}')")).figures == {"us": 2.5}
    row = run(task(f"raise OSError({str(Path.home() / 'file')!r})"))
    assert row.why == "OSError: ~/file"


def test_the_report_of_rows_of_every_kind() -> None:
    def row(name: str, state: str = "ok", why: str = "", **figures: Any) -> Row:
        about = {"job": "kernel", "operation": "o", "case": "lm_head", "tokens": 1, "by": name}
        return Row(f"lm_head, {name}", state, 1.0, about, figures, why)

    copy = Row("copy", "ok", 1.0, {"job": "bandwidth"}, {"gb_s": 100.0})
    machine = Row("machine", "ok", 1.0, {"job": "machine"}, {"chip": "M4", "memory_bytes": 2**34})
    good = [row("metal", us=5.0, gb_s=80.0), row("mlx", us=12.5, gb_s=32.0)]
    page = as_markdown([machine, copy, *good], "now", {"model": "tiny"})
    assert "| lm_head | 1 | 5.0 | 80.0 | 80 % | 12.5 | 32.0 | 32 % | 2.50 |" in page
    assert "| chip | M4 |" in page
    assert "| memory_bytes | 16.00 GiB |" in page
    assert "Not measured" not in page
    bad = [row("metal", "crashed", "killed | by SIGABRT"), good[1]]
    page = as_markdown([*bad], "now", {})
    assert "| lm_head | 1 | crashed |  |  | 12.5 | 32.0 |  |  |" in page
    assert "| crashed | killed \\| by SIGABRT | lm_head, metal |" in page
    value = as_object([machine, *bad], "now", {"model": "tiny"})
    assert value["machine"] == {"chip": "M4", "memory_bytes": 2**34}
    assert [r["state"] for r in value["rows"]] == ["ok", "crashed", "ok"]
    assert json.loads(json.dumps(value)) == value


def test_everything_planned_can_be_done() -> None:
    options = Options(Path("out"), full=True, gguf="/home/a/b.gguf", model="/home/a/model")
    planned = tasks(options, ["moe_gate_up"])
    assert (
        {t.about["job"] for t in planned}
        == set(JOBS) - {"machine"}
        == set(worker.JOBS) - {"machine"}
    )
    assert set(kernels.CASES) == set(CASES)
    assert len({t.name for t in planned}) == len(planned)
    assert "/home" not in json.dumps([dict(t.about) for t in planned])
    checks = tasks(Options(Path("out"), jobs=("check",)), ["moe_gate_up", "moe_down"])
    assert [t.about["job"] for t in checks] == ["check"] * 4


@pytest.mark.parametrize(("operation", "case"), CASES)
def test_every_case_can_be_computed(operation: str, case: str) -> None:
    for tokens in TOKENS["small"] if operation.startswith("moe") else (1,):
        figures = kernels.measure(operation, case, tokens, "mlx", "small")
        assert figures["us"] > 0
        assert figures["bytes"] > 0


def test_the_bytes_of_a_case_by_hand() -> None:
    """The 20b's down projection for one token: four experts, their biases, vectors in and out."""
    built = kernels.CASES["moe_down", "experts, down"](kernels.SIZES["small"], 1, mx.float32)
    expert = 64 * 64 // 2 + 64 * 64 // 32 + 64 * 4
    assert built.nbytes == 2 * expert + (2 * 64 + 64) * 4
    head = kernels.CASES["quantized_matvec", "lm_head, 6 bits"]
    assert head(kernels.SIZES["small"], 1, mx.bfloat16).nbytes == (
        256 * 64 * 6 // 8 + 256 * 2 * 2 + (64 + 256) * 2
    )


@pytest.mark.slow
def test_a_run_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CASES", CASES[-1:])
    monkeypatch.setattr(plan, "DTYPES", plan.DTYPES[1:])
    monkeypatch.setattr(plan, "RUNTIMES", plan.RUNTIMES[:1])
    options = ["--out", str(tmp_path), "--device", "cpu", "--shape", "small", "--runs", "1"]
    options += ["--prompt-tokens", "4", "--decode-tokens", "3"]
    result = CliRunner().invoke(command.main, options)
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    report = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert (last["rows"], last["bad"]) == (len(report["rows"]), 0)
    assert report["machine"]["computes_on"] == "CPU"
    states = {row["name"]: row["state"] for row in report["rows"]}
    assert states["copy"] == states["launch"] == states["update of a cache"] == "ok"
    assert states["choice, 1 tokens, mlx"] == states["gptoss_mlx, run 1"] == "ok"
    assert states["choice, 1 tokens, metal"] == states["moe_down against its reference, float32"]
    assert states["choice, 1 tokens, metal"] == "absent"
    page = (tmp_path / "results.md").read_text("utf-8")
    assert "Metal kernels cannot run" in page
    assert str(tmp_path) not in page + json.dumps(report)


def test_an_interrupt_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_interrupts(given: Task) -> Row:
        if given.name != "machine":
            raise KeyboardInterrupt
        return Row("machine", "ok", 0.1, given.about, {"chip": "M4", "operations": []})

    monkeypatch.setattr(command, "run", second_interrupts)
    rows = command.measure(Options(tmp_path), Console(stderr=True, quiet=True))
    assert [row.name for row in rows] == ["machine"]
    report = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert report["machine"]["chip"] == "M4"
