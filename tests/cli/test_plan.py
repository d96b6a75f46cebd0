"""`gptoss-mlx plan`: tables and JSON from a config alone, and refusals in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gptoss_mlx.cli.plan import main
from gptoss_mlx.plan.memory import make_plan
from gptoss_mlx.settings import Settings
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.recipe import RECIPES, quantization
from gptoss_mlx.spec.released import CONFIGS
from gptoss_mlx.system.machine import CARDS, MACHINES, mac
from gptoss_mlx.system.units import show_bytes
from tests.root import ROOT
from tests.support.checkpoints import SHAPES, config_json

GiB = 2**30


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.stdout


def read(*arguments: str) -> Any:
    return json.loads(shown("--json", *arguments))


def refused(*arguments: str, code: int = 1) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    line = result.stderr.strip()
    assert code == 2 or "\n" not in line
    return line


def test_the_table_adds_up_and_says_what_is_left() -> None:
    plan = make_plan(ModelConfig.from_file(CONFIGS["openai/gpt-oss-20b"]), mac(16))
    text = shown("--machine", "16 gb mac")
    assert "openai/gpt-oss-20b on 16GB Mac, bfloat16" in text
    for buffer in plan.buffers:
        assert buffer.name in text
    assert f"{plan.total / GiB:.2f} GiB" in text
    assert f"of {show_bytes(mac(16).budget or 0)}" in text
    assert f"{plan.slots} of 32 in each layer" in text


def test_what_fits_is_shown_for_every_mac_and_both_models() -> None:
    rows = [line for line in shown("--machine", "64GB Mac").splitlines() if line[:2] == "│ "]
    rows = [row for row in rows if row.split("│")[1].strip() in MACHINES]
    assert [row.split("│")[1].strip() for row in rows] == list(MACHINES)
    assert rows[-1].count("all, 128k") == 4


def test_json_is_the_plan_itself() -> None:
    found = read("--machine", "16GB Mac", "--bits", "8", "--context", "16k", "--memory", "10GiB")
    values = config_json(SHAPES["20b"])
    section = quantization(RECIPES["8"], ModelConfig.from_values(values, Path("x")))
    config = ModelConfig.from_values({**values, "quantization": section}, Path("x"))
    plan = make_plan(config, mac(16), Settings(memory=10 * GiB, context=16384))
    assert found["machine"]["memory"] == 16 * GiB
    assert found["plan"]["buffers"] == {b.name: b.nbytes for b in plan.buffers}
    assert found["plan"]["total"] == plan.total <= 10 * GiB
    assert found["plan"]["left"] == plan.left
    assert (found["plan"]["slots"], found["plan"]["context"]) == (plan.slots, 16384)


def test_json_says_what_fits_and_what_does_not() -> None:
    found = read("--machine", "8GB Mac", "--model", "openai/gpt-oss-20b")["fits"]
    assert len(found) == 9 * 2 * 2
    assert {row["bits"] for row in found} == {"bf16", "mixed"}
    fitting = [row for row in found if row["fits"]]
    assert len(fitting) == len(found) - 1  # the 120b, unconverted, on 8 GB
    assert all(row["bytes"] <= (MACHINES[row["machine"]].budget or 0) for row in fitting)
    long = read("--machine", "96GB Mac", "--context", "128k")["fits"]
    small = [row for row in long if row["machine"] == "8GB Mac" and row["model"][-4:] == "120b"]
    assert [row["fits"] for row in small] == [False, False]
    assert "131072 tokens" in small[0]["why"]


@pytest.mark.slow
def test_bits_are_of_an_imagined_conversion() -> None:
    weights = {
        bits: read("--machine", "24GB Mac", "--bits", bits)["plan"]["buffers"]["weights"]
        for bits in RECIPES
    }
    assert weights["bf16"] > weights["8"] > weights["6"] > weights["5"] > weights["4"]
    asked = {row["bits"] for row in read("--machine", "24GB Mac", "--bits", "4")["fits"]}
    assert asked == {"bf16", "4"}


def test_options_reach_the_plan() -> None:
    found = read(
        *("--machine", "32GB Mac", "--embedding", "file", "--dtype", "float32"),
        *("--kv-bits", "8", "--context", "2k"),
    )["plan"]
    assert found["embedding"] == "file"
    assert found["dtype"] == "float32"
    assert (found["kv_bits"], found["context"]) == (8, 2048)


def test_a_folder_is_planned_by_its_config(small_checkpoint: Path) -> None:
    found = read("--model", str(small_checkpoint), "--machine", "16GB Mac")["plan"]
    assert (found["slots"], found["experts"]) == (4, 4)
    assert found["buffers"]["embedding"] == 8192 * 64 * 2


def test_a_folder_name_cannot_style_the_terminal(tmp_path: Path, small_checkpoint: Path) -> None:
    folder = tmp_path / "[red]x"
    folder.mkdir()
    (folder / "config.json").write_bytes((small_checkpoint / "config.json").read_bytes())
    assert "[red]x" in "".join(shown("--model", str(folder)).split())


def test_a_folder_that_is_converted_is_not_converted_once_more(tmp_path: Path) -> None:
    values = config_json(SHAPES["mini"])
    values["quantization"] = {"group_size": 64, "bits": 8}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert "plan it without --bits" in refused("--model", str(tmp_path), "--bits", "8")
    assert read("--model", str(tmp_path), "--machine", "16GB Mac")["plan"]["experts"] == 8


def test_what_cannot_fit_is_refused_with_the_sum() -> None:
    line = refused("--memory", "4GiB", "--machine", "16GB Mac", "--context", "32k")
    assert line.startswith("error: a context of 32768 tokens with 4 of 32 experts a layer takes ")
    assert "tokens would fit" in line


def test_a_model_that_is_neither_here_nor_known() -> None:
    assert "openai/gpt-oss-20b" in refused("--model", "somebody/something")
    assert "is not on this machine" in refused("--model", "no such folder")


def test_a_card_is_planned_for_by_name_with_the_host_beside_it() -> None:
    plan = make_plan(ModelConfig.from_file(CONFIGS["openai/gpt-oss-120b"]), CARDS["80GB card"])
    arguments = ("--machine", "80 gb card", "--model", "openai/gpt-oss-120b")
    text = shown(*arguments)
    assert "openai/gpt-oss-120b on 80GB card, bfloat16" in text
    assert "4 x 65536 tokens" in text
    assert text.count("beside it, of the host") == len(plan.host)
    assert text.count("an estimate") == 4
    found = read(*arguments)
    assert (found["machine"]["backend"], found["plan"]["backend"]) == ("torch", "torch")
    assert found["plan"]["host"] == {b.name: b.nbytes for b in plan.host}
    assert found["plan"]["total"] == plan.total


def test_what_fits_is_shown_for_cards_too() -> None:
    text = shown("--machine", "RTX 4090")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    cards = {row[0]: row[1:] for row in rows if row and row[0] in CARDS}
    assert list(cards) == list(CARDS)
    assert cards["80GB card"] == ["all, 4 x 128k", "all, 4 x 128k", "all, 4 x 64k", "all, 4 x 128k"]
    assert cards["24GB card"][2].endswith("of 128, 8k")


def test_json_says_what_fits_cards() -> None:
    found = read("--machine", "H100", "--parallel", "32", "--context", "2k")
    assert found["plan"]["rows"] == 32
    assert len(found["cards"]) == len(CARDS) * 2 * 2
    assert {row["bits"] for row in found["cards"]} == {"bf16", "8"}
    fitting = [row for row in found["cards"] if row["fits"]]
    assert {row["rows"] for row in fitting} == {32}
    assert all(row["bytes"] <= (CARDS[row["machine"]].limit or 0) for row in fitting)
    assert "keys and values" in found["fits"][0]["why"]
    quantized = read("--machine", "16GB Mac", "--kv-bits", "8")["cards"]
    assert all("are MLX's alone" in row["why"] for row in quantized)


@pytest.mark.torch
def test_a_backend_is_planned_for_where_it_is() -> None:
    pytest.importorskip("torch")
    found = read("--model", "tiny", "--backend", "torch", "--device", "cpu")
    assert (found["machine"]["backend"], found["machine"]["gpu"]) == ("torch", False)
    assert found["plan"]["embedding"] == "resident"
    assert refused("--backend", "mlx", "--device", "cuda:7").startswith("error: MLX computes on")


def test_a_named_machine_has_its_own_backend() -> None:
    line = refused("--machine", "H100", "--backend", "mlx", code=2)
    assert "--machine says what computes" in line


@pytest.mark.parametrize(
    "arguments",
    [("--memory", "10"), ("--context", "many"), ("--machine", "16GB PC"), ("--bits", "7")],
)
def test_what_cannot_be_read_is_a_usage_error(arguments: tuple[str, str]) -> None:
    line = refused(*arguments, code=2)
    assert f"Invalid value for '{arguments[0]}'" in line
    assert arguments[1] in line


def test_without_a_machine_this_one_is_asked() -> None:
    found = read("--model", "tiny", "--context", "1k")
    assert found["machine"]["name"] == "this machine"
    assert found["plan"]["budget"] <= found["machine"]["limit"]


def test_planning_for_a_named_machine_loads_no_tensor_library() -> None:
    code = (
        "import sys\n"
        "from gptoss_mlx.cli.plan import main\n"
        "main(['--machine', '16GB Mac', '--json'], standalone_mode=False)\n"
        "print(sorted({'mlx', 'torch'} & {name.split('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_more_memory_than_this_machine_has_is_planned_too() -> None:
    found = read("--model", "openai/gpt-oss-120b", "--memory", "900GiB", "--context", "8k")
    assert (found["plan"]["slots"], found["plan"]["budget"]) == (128, 900 * GiB)
    assert found["machine"]["name"] == "a machine with 900.00 GiB"
    assert read("--machine", "16GB Mac", "--memory", "64GiB")["plan"]["slots"] == 32


def test_what_memory_s_bandwidth_allows_is_said_of_a_chip() -> None:
    arguments = ("--machine", "M4 Max 64GB", "--bits", "8")
    found = read(*arguments)
    # 2.56 GB a token in 8 bits; see the sizes of the weights
    assert found["most_tokens_per_second"] == pytest.approx(546 / 2.56, rel=0.02)
    assert "GB/s that Apple states; not measured" in shown(*arguments)
    assert read("--machine", "64GB Mac")["most_tokens_per_second"] is None
    assert read("--machine", "M1 8GB")["most_tokens_per_second"] is None  # from the disk


@pytest.mark.parametrize(
    ("name", "id"),
    [
        *((name, "openai/gpt-oss-20b") for name in ("gpt-oss:20b", "gpt-oss-20b", "20b")),
        *((name, "openai/gpt-oss-120b") for name in ("gpt-oss:120b", "GPT-OSS-120B", "120b")),
        ("gpt-oss", "openai/gpt-oss-20b"),
        ("gpt-oss:latest", "openai/gpt-oss-20b"),
        ("openai/gpt-oss-20b", "openai/gpt-oss-20b"),
        ("openai/gpt-oss:120b", "openai/gpt-oss-120b"),
    ],
)
def test_a_model_has_the_names_that_others_give_it(name: str, id: str) -> None:
    asked = ("--machine", "96GB Mac")
    assert read("-m", name, *asked)["plan"] == read("-m", id, *asked)["plan"]


def test_a_folder_of_such_a_name_comes_first(
    tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt-oss-20b").symlink_to(small_checkpoint)
    assert read("-m", "gpt-oss-20b", "--machine", "16GB Mac")["plan"]["experts"] == 4


def test_the_table_of_macs_is_that_of_the_plan() -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    found = {row[0]: row[1:] for row in rows if row and row[0] in MACHINES}
    text = shown("--machine", "16GB Mac")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert found == {row[0]: row[1:] for row in cells if row and row[0] in MACHINES}
    assert list(found) == list(MACHINES)
