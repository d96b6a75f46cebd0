"""An engine within a budget: planned before it loads, the same answers, and counted."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from click.testing import CliRunner

import gptoss_mlx
from gptoss_mlx.engine import engine as engine_module
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.errors import MemoryBudgetError
from gptoss_mlx.generate import main
from gptoss_mlx.models.tiny import materialise
from gptoss_mlx.plan.memory import make_plan
from gptoss_mlx.settings import Settings
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.system.machine import Machine

QUESTION = "What is 27 + 58?"
CONTEXT = 1024


@pytest.fixture(scope="module", params=["mlx", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def budget(backend: str) -> int:
    """Bytes that hold some of tiny's experts, but not all."""
    config = ModelConfig.from_file(materialise() / "config.json")
    nobody = Machine("a machine", None, None, False, backend)
    nbytes = make_plan(config, nobody, Settings(context=CONTEXT)).total
    while make_plan(config, nobody, Settings(context=CONTEXT, memory=nbytes)).resident:
        nbytes -= 64 << 10
    return nbytes


@pytest.fixture(scope="module")
def little(backend: str, budget: int) -> Engine:
    return gptoss_mlx.load("tiny", backend=backend, memory=budget, context=CONTEXT)


def test_the_engine_follows_the_plan(little: Engine, budget: int) -> None:
    plan, model = little.plan, little.model
    assert plan is not None
    assert plan.budget == budget
    assert plan.total <= plan.budget
    assert 4 <= plan.slots < plan.experts
    assert (little.context, model.chunk) == (plan.context, plan.chunk)
    assert little.stats()["slots"] == plan.slots


@pytest.mark.slow
def test_fewer_slots_answer_alike(little: Engine) -> None:
    assert little.plan is not None
    whole = gptoss_mlx.load("tiny", backend=little.plan.backend, context=CONTEXT)
    assert whole.plan is not None
    assert whole.plan.resident
    options: dict[str, Any] = {"temperature": 1.2, "seed": 3, "max_tokens": 30}
    answers = [engine.generate(QUESTION, **options) for engine in (little, whole)]
    assert [t.id for t in answers[0].tokens] == [t.id for t in answers[1].tokens]


def test_what_cannot_fit_is_refused_before_anything_is_read() -> None:
    read: list[int] = []
    with pytest.raises(
        MemoryBudgetError, match=r"takes \d+ MiB \(.*weights .*, but there are 100 MiB"
    ):
        gptoss_mlx.load("tiny", memory="100MiB", progress=lambda done, total: read.append(done))
    assert read == []


def test_the_command_takes_sizes_and_shows_what_was_used(backend: str, budget: int) -> None:
    arguments = ["--model", "tiny", "--backend", backend, "--temperature", "0", "--stats"]
    result = CliRunner().invoke(
        main, [*arguments, "--memory", f"{budget}B", "--context", "1k", QUESTION]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == "27 + 58 = 85\n"
    lines = {
        line[:12].strip(): line[12:] for line in result.stderr.splitlines() if line[:12].strip()
    }
    whose = "MLX" if backend == "mlx" else "the process"
    assert re.search(rf"B at most in {whose}, \d+ MiB planned: [+-]", lines["memory"])
    assert "context 1024, " in result.stderr
    assert " of 8 a layer in memory, hits " in lines["experts"]
    if backend == "mlx":
        assert "early reads used" in result.stderr


def test_all_experts_in_memory_need_no_line() -> None:
    result = CliRunner().invoke(main, ["--model", "tiny", "--stats", "--context", "1k", QUESTION])
    assert "memory" in result.stderr
    assert "experts" not in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--memory", "lots", "'lots' is no size such as 10GiB or 8000MB"),
        ("--context", "32x", "'32x' is no number of tokens such as 8192 or 32k"),
    ],
)
def test_a_size_that_is_none_is_a_mistake_of_usage(option: str, value: str, line: str) -> None:
    result = CliRunner().invoke(main, ["--model", "tiny", option, value, QUESTION])
    assert result.exit_code == 2
    assert line in result.stderr


def test_json_output_stays_one_object(backend: str, budget: int) -> None:
    arguments = ["--model", "tiny", "--backend", backend, "--memory", f"{budget}B"]
    result = CliRunner().invoke(main, [*arguments, "--context", "1k", "--json", QUESTION])
    assert json.loads(result.stdout)["text"]


def test_a_released_model_is_refused_before_it_is_downloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("downloads before it has planned")

    monkeypatch.setattr(engine_module, "locate", download)
    monkeypatch.setattr(engine_module, "local_folder", lambda model: None)
    with pytest.raises(MemoryBudgetError, match=r"but there are 2\.00 GiB"):
        gptoss_mlx.load("openai/gpt-oss-20b", memory="2GiB")
