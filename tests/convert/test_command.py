"""The command: what it shows, what it says, how it ends."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convert import __main__ as command
from convert import weights
from convert.conversion import Conversion
from gptoss_mlx.files.jsonfile import read_json
from gptoss_mlx.models.checkpoint import UNFINISHED, Checkpoint
from tests.convert.layouts import write_gguf, write_mlx_lm
from tests.convert.results import contents, convert, refusal, run
from tests.root import ROOT


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table in one line a row."""
    monkeypatch.setenv("COLUMNS", "100")


def _rows(output: str) -> dict[str, tuple[str, int, int]]:
    """Part -> (format, bytes before, bytes after), from the table."""
    cells = [re.split(r"\s*[│|]\s*", line.strip("│| ")) for line in output.splitlines()]
    return {
        row[0]: (row[1], int(row[2].replace(",", "")), int(row[3].replace(",", "")))
        for row in cells
        if len(row) == 4 and row[3][:1].isdigit()
    }


def test_a_dry_run_writes_nothing_and_shows_the_sums(release: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shown = run(release, made, "--bits", "mixed", "--dry-run")
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    rows = _rows(shown.stdout)
    parts = ["experts", "expert biases", "embedding", "attention", "router", "head"]
    assert list(rows) == [*parts, "norms, sinks", "other files", "in all"]
    assert {part: rows[part][0] for part in parts} == {
        "experts": "mxfp4",
        "expert biases": "bf16",
        "embedding": "8-bit",
        "attention": "8-bit, bf16",
        "router": "bf16",
        "head": "6-bit",
    }
    whole = rows.pop("in all")
    assert whole[1] == sum(before for _, before, _ in rows.values())
    data = sum(after for _, _, after in rows.values())
    convert(release, made, "mixed")
    assert whole[0] == f"{len(contents(made))} files"
    assert whole[2] == data == sum(map(len, contents(made).values()))
    embedding = 256 * (128 * 8 // 8 + 128 // 64 * 4)
    assert rows["embedding"] == ("8-bit", 256 * 128 * 2, embedding)
    assert f"still to write: {whole[2]:,} bytes; free there: " in shown.stdout
    assert f"{release.name} (released) -> mlx, mixed" in shown.stdout


def test_a_dry_run_counts_bytes_of_a_gguf_once(release: Path, tmp_path: Path) -> None:
    model = write_gguf(release, tmp_path / "model.gguf")
    rows = _rows(run(model, tmp_path / "made", "--to", "release", "--dry-run").stdout)
    assert rows["experts"][1] == rows["experts"][2]
    assert rows["router"][1] == 2 * rows["router"][2]  # float32 there
    assert rows["in all"][1] <= model.stat().st_size


def test_a_dry_run_changes_nothing_of_what_is_complete(release: Path, tmp_path: Path) -> None:
    made = convert(release, tmp_path / "made", "8")
    before = contents(made)
    shown = run(release, made, "--bits", "8", "--dry-run")
    assert shown.exit_code == 0
    assert contents(made) == before


def test_words_go_to_stderr_and_quiet_has_none(release: Path, tmp_path: Path) -> None:
    loud = run(release, tmp_path / "loud", "--verify")
    nbytes = sum(map(len, contents(tmp_path / "loud").values()))
    assert (loud.exit_code, loud.stdout) == (0, "")
    first, second = loud.stderr.splitlines()
    assert first == f"{tmp_path / 'loud'}: {nbytes:,} bytes written"
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path / 'loud'))}: \d+ tensors equal their source", second
    )
    quiet = run(release, tmp_path / "quiet", "--verify", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert contents(tmp_path / "quiet") == contents(tmp_path / "loud")
    assert run(release, tmp_path / "quiet", "--quiet").output == ""


NOTE = re.compile(
    r"source: holds weights in (\d+\.\d) bits each that become larger here;"
    r" their quality stays that of the source"
)


@pytest.mark.parametrize(
    ("source_bits", "bits", "told"),
    [(4, "8", "4.5"), (4, "bf16", "4.5"), (8, "bf16", "8.5"), (8, "6", None), (4, "4", None)],
)
def test_what_becomes_larger_than_its_source_is_said_to_be_no_better(
    source_bits: int, bits: str, told: str | None, release: Path, tmp_path: Path
) -> None:
    source = write_mlx_lm(release, tmp_path / "source", rest=source_bits)
    shown = run(source, tmp_path / "made", "--bits", bits, "--dry-run")
    made = run(source, tmp_path / "made", "--bits", bits)
    for words in (shown.stdout, made.stderr):
        notes = [match[1] for match in map(NOTE.fullmatch, words.splitlines()) if match]
        assert notes == ([] if told is None else [told])


def test_a_release_becomes_no_larger_without_loss(release: Path, tmp_path: Path) -> None:
    for i, source in enumerate((release, write_gguf(release, tmp_path / "model.gguf"))):
        for bits in ("bf16", "8"):
            assert "quality" not in run(source, tmp_path / f"{i} {bits}", "--bits", bits).stderr


def test_the_default_is_mixed_to_mlx(release: Path, tmp_path: Path) -> None:
    assert run(release, tmp_path / "made").exit_code == 0
    assert read_json(tmp_path / "made" / "conversion.json")["recipe"] == "mixed"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("source",),
        ("source", "made", "more"),
        ("source", "made", "--bits", "7"),
        ("source", "made", "--bits"),
        ("source", "made", "--to", "gguf"),
        ("source", "made", "--fast"),
    ],
)
def test_a_usage_error_ends_with_2(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_recipe() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "[bf16|8|6|5|4|mixed]" in result.stdout
    assert "default: mixed" in result.stdout


@pytest.mark.parametrize("source", ["nothing/here/at-all", "nothing.gguf", "../up"])
def test_a_source_that_is_not_there(source: str, tmp_path: Path) -> None:
    assert source in refusal(source, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no model", encoding="utf-8")
    assert "empty" in refusal(tmp_path / "empty", tmp_path / "made")
    assert "text.txt: is not a folder" in refusal(tmp_path / "text.txt", tmp_path / "made")


def test_debug_shows_where_before_the_line(release: Path, tmp_path: Path) -> None:
    result = run(release, release, "--debug")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    last = result.stderr.splitlines()[-1]
    assert last == refusal(release, release).join(("error: ", ""))


def test_an_id_is_located_and_recorded_under_its_name(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []

    def locate(model: str, progress: Any, also: tuple[str, ...]) -> Path:
        asked.append((model, also))
        return release

    monkeypatch.setattr(command.hub, "locate", locate)
    made = tmp_path / "made"
    assert run("openai/gpt-oss-20b", made).exit_code == 0
    assert asked == [("openai/gpt-oss-20b", ("LICENSE*", "README.md", "USAGE*"))]
    recorded = read_json(made / "conversion.json")["source"]
    content = recorded.pop("content")
    assert recorded == {"kind": "released", "name": "openai/gpt-oss-20b"}
    assert re.fullmatch("[0-9a-f]{64}", content)
    for source in ("openai/gpt-oss-20b", release):  # it is the same, whatever it is called
        assert run(source, made).stderr == f"{made}: is complete already\n"


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, count = tmp_path / "made", 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 20:
            raise KeyboardInterrupt
        return real(*arguments)

    real = weights.made
    with monkeypatch.context() as patch:
        patch.setattr(weights, "made", interrupted)
        result = run(release, made, "--bits", "8")
    assert (result.exit_code, result.stdout) == (130, "")
    again = f"python -m convert {release} {made} --bits 8"
    assert result.stderr == f"{made}: is unfinished; `{again}` goes on\n"
    assert (made / UNFINISHED).exists()
    shown = run(release, made, "--bits", "8", "--dry-run")
    left = re.search(r"still to write: ([\d,]+) bytes", shown.stdout)
    assert left is not None
    plan = Conversion.prepare(release, made, target="mlx", recipe="8").plan
    assert int(left[1].replace(",", "")) <= plan.nbytes
    assert run(release, made, "--bits", "8", "--verify").exit_code == 0
    assert contents(made) == contents(convert(release, tmp_path / "whole", "8"))


def test_it_runs_as_a_module(release: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(release, tmp_path / "source"))
    (source / "LICENSE").write_text("mine", encoding="utf-8")
    made = tmp_path / "made"
    result = subprocess.run(
        [sys.executable, "-m", "convert", str(source), str(made), "--bits", "4", "--verify"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "")
    assert len(result.stderr.splitlines()) == 2
    assert (made / "LICENSE").read_text(encoding="utf-8") == "mine"
    Checkpoint.open(made).close()
