"""The benchmark of the card, tried on a CPU: its rows, its report, and the bytes it counts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch")

from benchmarks.cuda import __main__ as bench_cuda  # noqa: E402
from benchmarks.cuda import layers as cuda_layers  # noqa: E402
from benchmarks.cuda import pieces as cuda_pieces  # noqa: E402
from benchmarks.cuda.__main__ import SECTIONS, main, plain  # noqa: E402
from benchmarks.cuda.bytes import Sizes  # noqa: E402
from benchmarks.cuda.random import RandomLoader, random_model  # noqa: E402
from benchmarks.cuda.setup import LITTLE, Amounts, Bench, NoRoom, Section, at, config_of, twin  # noqa: E402
from benchmarks.cuda.speed import distinct_experts  # noqa: E402
from benchmarks.cuda.tables import goals  # noqa: E402
from gptoss_mlx.backends.torch import reference  # noqa: E402
from gptoss_mlx.backends.torch.cache import Cache  # noqa: E402
from gptoss_mlx.backends.torch.choice import MODULES, Kernels  # noqa: E402
from gptoss_mlx.backends.torch.model import Transformer  # noqa: E402

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
TIMED = set(MODULES) - {"router_topk", "group_pairs"}
"""Where every expert is resident, `route` does both."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*arguments: str | Path) -> Result:
    options = ["--device", "cpu", "--model", "tiny", *(str(a) for a in arguments)]
    return CliRunner().invoke(main, options)


def report_of(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def model_of(bits: int | None = None, dtype: torch.dtype = torch.float32) -> Transformer:
    config = config_of("tiny", None)
    return random_model(config, Kernels(), Cache(config, 3, 40, dtype, CPU), 16, bits)


def held(value: Any) -> int:
    """Bytes of all tensors in a part of the model, found by looking."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, (list, tuple)):
        return sum(held(item) for item in value)
    if type(value).__module__.startswith("gptoss_mlx.backends.torch") and not isinstance(
        value, (Cache, Kernels)
    ):
        return sum(held(item) for key, item in vars(value).items() if key != "periods")
    return 0


def test_every_section_has_its_rows_and_the_report_is_the_last_line(
    tmp_path: Path, small_checkpoint: Path
) -> None:
    path = tmp_path / "cuda.json"
    result = run("--json", path, "--folder", small_checkpoint)
    report = report_of(result)
    assert path.read_text() == result.stdout
    assert "without kernels of their own: {'linear': 'reference'" in result.stderr
    sections = report["sections"]
    assert list(sections) == list(SECTIONS)
    rows = {name: section["rows"] for name, section in sections.items()}
    assert not [row for section in rows.values() for row in section if "error" in row]
    assert all(math.isfinite(number) for number in numbers(report))
    assert [row["tokens"] for row in rows["prefill"]] == list(LITTLE.prefill)
    decoded = {(row["batch"], row["context"]) for row in rows["decode"] if "tok_s" in row}
    assert decoded == {(b, c) for b in LITTLE.batches for c in LITTLE.contexts}
    assert {row["fed"] for row in rows["decode"] if "tok_s" in row} == {"random", "argmax"}
    assert {row["operation"] for row in rows["pieces"]} == TIMED
    compared = [row["layer"] for row in rows["layers"] if isinstance(row["layer"], int)]
    assert sorted(compared) == sorted([*range(4)] * 2)
    assert all(row["off"] == 0 for row in rows["layers"])
    assert {row["streams"] for row in rows["engine"]} == set(LITTLE.streams)
    assert rows["folder"][0]["ready_s"] > 0
    without = [row["left_out"] for section in rows.values() for row in section if "left_out" in row]
    assert without == ["memory in use needs a card", "a CUDA graph needs a card"]


def test_a_section_that_fails_is_a_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(bench: Bench) -> Section:
        yield {"tokens": 512, "tok_s": math.inf}
        raise RuntimeError("CUDA error: an illegal\nmemory access")

    sections = {"memory": SECTIONS["memory"], "prefill": failing, "engine": SECTIONS["engine"]}
    monkeypatch.setattr(bench_cuda, "SECTIONS", sections)
    report = report_of(run("--json", tmp_path / "x.json"))
    assert report["sections"]["prefill"]["rows"] == [
        {"tokens": 512, "tok_s": "inf"},
        {"error": "RuntimeError: CUDA error: an illegal memory access"},
    ]
    assert report["sections"]["engine"]["rows"][0]["tok_s"] > 0


def test_an_operation_that_fails_is_a_row_and_the_others_go_on() -> None:
    def failing(*arguments: Any) -> torch.Tensor:
        raise ValueError("16 queries")

    kernels = Kernels(route=failing)
    bench = Bench(config_of("tiny", None), LITTLE, CPU, torch.float32, kernels, 16)
    bench.build()
    with torch.no_grad():
        rows = list(cuda_pieces.pieces(bench))
    failed = [row for row in rows if "error" in row]
    what = {"operation": "route", "error": "ValueError: 16 queries"}
    assert failed == [{"tokens": tokens, **what} for tokens in (1, 4, 24)]
    assert {row["operation"] for row in rows if "us" in row} == TIMED - {"route"}


@pytest.mark.parametrize(
    ("gib", "rows", "context"), [(139, 32, 32768), (78, 32, 1024), (65, 16, 1024), (63, 0, 0)]
)
def test_keys_and_values_take_what_a_card_has(
    gib: int, rows: int, context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is measured at once if there is room, else what the next row needs."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gib << 30, gib << 30))
    amounts, card = Amounts(), torch.device("cuda", 0)
    bench = Bench(config_of("120b", None), amounts, card, torch.bfloat16, Kernels(), 2048)
    if rows == 0:
        with pytest.raises(NoRoom, match=r"of 1 x 33088 tokens take 1\.1 GiB, but 0\.0"):
            bench.room(1, 33088, 0)
        return
    asked = (rows, context + amounts.slack)
    assert bench.room(*asked, 0) == asked
    assert bench._first_room() == asked


def test_what_was_measured_is_written_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"

    def looking(bench: Bench) -> Section:
        yield {"first": 1}
        assert json.loads(path.read_text())["sections"]["card"]["rows"] == [{"first": 1}]
        yield {"second": 2}

    monkeypatch.setattr(bench_cuda, "SECTIONS", {"card": looking})
    rows = report_of(run("--json", path))["sections"]["card"]["rows"]
    assert rows == [{"first": 1}, {"second": 2}]


def test_past_the_limit_the_rest_is_left_out() -> None:
    report = report_of(run("--limit", "0", "--only", "card", "--only", "prefill"))
    for section in report["sections"].values():
        assert len(section["rows"]) == 2
        assert section["rows"][1] == {"left_out": "0 s are over"}


@pytest.mark.parametrize(("bits", "dtype"), [(None, torch.bfloat16), (8, torch.float32)])
def test_bytes_are_those_of_the_models_tensors(bits: int | None, dtype: torch.dtype) -> None:
    model = model_of(bits, dtype)
    sizes = Sizes(model.config, dtype.itemsize, bits)
    bank = model.blocks[0].moe.experts.bank
    arrays = (*bank.matrices, bank.gate_up_bias, bank.down_bias)
    assert sizes.expert == sum(array[0].nbytes for array in arrays)
    assert sizes.table == held(model.embedding) == held(model.lm_head)
    everything = held([model.embedding, model.blocks, model.norm, model.lm_head])
    assert sizes.weights == everything
    cache = model.cache
    assert sizes.cache(3, 40) == cache.arenas.nbytes + cache.rings.nbytes
    # All experts, and of each sequence a row of the embedding and what it sees.
    rows = 2 * held([part[:1] for part in vars(model.embedding).values() if part is not None])
    seen = 2 * 2 * 2 * 2 * 16 * dtype.itemsize * (30 + 16)
    assert sizes.step(2, 30, 4) == everything - sizes.table + rows + seen


def test_operations_of_a_prompt_by_hand() -> None:
    """Three whole layers and the keys and values of a fourth; of 20 tokens, a window of 16."""
    h, i, q, kv, k = 64, 96, 64, 32, 2
    qkv, rest = h * (q + 2 * kv), q * h + 4 * h + k * 3 * h * i
    pairs = {"full": 20 * 21 // 2, "sliding": 16 * 17 // 2 + 4 * 16}
    seen = 2 * pairs["sliding"] + pairs["full"]
    expected = 2 * 20 * (4 * qkv + 3 * rest) + 4 * q * seen
    assert Sizes(config_of("tiny", None), 4).prefill_flops(20) == expected


def test_the_120b_is_as_large_as_it_should_be() -> None:
    sizes = Sizes(config_of("120b", None), 2)
    assert sizes.weights / 2**30 == pytest.approx(60.8, abs=0.05)
    assert sizes.step(1, 1024, 4) / 1e9 == pytest.approx(5.0, abs=0.15)
    assert sizes.cache(32, 1024) < 2**30 * 1.5


@pytest.mark.parametrize("bits", [None, 8])
def test_random_weights_keep_activations_near_one(bits: int | None) -> None:
    model = model_of(bits)
    logits = model.evaluate(list(range(16)), model.new_state())
    assert 0.3 < logits.std() < 20
    for matrix, std in ((model.embedding, 1), (model.blocks[0].attention.qkv, 64**-0.5)):
        values = reference.dense(matrix, torch.float32)
        assert float(values.std()) == pytest.approx(std, rel=0.1)
        assert abs(float(values.mean())) < std / 10


def test_a_name_has_its_values_wherever_it_is_asked_for() -> None:
    loader = RandomLoader(config_of("tiny", None), torch.float32, CPU)
    one = "model.layers.1.self_attn"
    together = loader.matrix(f"{one}.q_proj", f"{one}.k_proj").weight
    assert torch.equal(together[64:], loader.dense(f"{one}.k_proj.weight"))
    other = loader.dense("model.layers.2.self_attn.k_proj.weight")
    assert not torch.equal(together[64:], other)


def test_the_random_loader_gives_what_the_loader_gives(small_checkpoint: Path) -> None:
    """The same shapes and dtypes, whatever is asked for."""
    from gptoss_mlx.backends.torch.weights import Loader
    from gptoss_mlx.models.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(small_checkpoint)
    made = RandomLoader(checkpoint.config, torch.bfloat16, CPU)
    with Loader(checkpoint, torch.bfloat16, CPU) as loader:
        layer = "model.layers.0"
        parts = [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
        blocks = f"{layer}.mlp.experts.down_proj_blocks"
        for give in (
            lambda of: of.matrix(*parts).weight,
            lambda of: of.bias(*parts),
            lambda of: of.raw(blocks, rows=3),
            lambda of: of.raw(blocks),
            lambda of: of.dense(f"{layer}.self_attn.sinks"),
        ):
            expected, found = give(loader), give(made)
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        loader.finish()


def test_a_wrong_kernel_is_seen_in_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Kernels().moe_down

    def wrong(*arguments: Any) -> torch.Tensor:
        return 1.1 * right(*arguments)

    wrongly = Kernels(moe_down=wrong)
    bench = Bench(config_of("tiny", None), LITTLE, CPU, torch.float32, wrongly, 16)
    bench.build()
    with torch.no_grad():
        rows = [row for row in cuda_layers.layers(bench) if row["layer"] != "logits"]
    assert all(row["off"] == pytest.approx(0.1, rel=1e-3) for row in rows)
    assert all(row["of"] == "experts" for row in rows)
    assert [row["agrees"] for row in rows[-2:]] == [False, False]


def test_experts_of_a_step_are_counted() -> None:
    config = config_of("tiny", None)
    bench = Bench(config, LITTLE, CPU, torch.float32, Kernels(), 16)
    bench.build()
    model = bench.opened(4, 24)
    ids = bench.ids(4, 1)
    count = distinct_experts(bench, model, ids, at(model, 4, 0), 24)
    assert 2 < count <= 4
    assert distinct_experts(bench, model, ids[:1], at(model, 1, 0), 24) == 2


def test_a_twin_has_the_models_weights_and_its_own_memory() -> None:
    model = model_of()
    other = twin(model, cache=Cache(model.config, 1, 20, torch.float32, CPU))
    logits = [one.evaluate([5, 6, 7], one.new_state()) for one in (model, other)]
    assert (logits[0] == logits[1]).all()
    assert other.cache.rows == 1


def test_a_twin_computes_with_other_kernels_only() -> None:
    def refused(*arguments: Any) -> Any:
        raise AssertionError("the model's own kernel")

    expected = model_of()
    config, refusing = expected.config, Kernels(**dict.fromkeys(MODULES, refused))
    model = random_model(config, refusing, Cache(config, 1, 20, torch.float32, CPU), 16)
    other = twin(model, kernels=Kernels())
    found = other.evaluate([5, 6, 7], other.new_state())
    assert (found == expected.evaluate([5, 6, 7], expected.new_state())).all()
    with pytest.raises(AssertionError, match="own kernel"):
        model.evaluate([5], other.new_state())


def test_goals_stand_beside_what_was_measured() -> None:
    rows = [{"batch": 1, "context": 1024, "tok_s": 512.0, "limit_tok_s": 700.0}]
    [one, *others] = goals({"decode": {"rows": rows}})
    assert one == ("decode, batch 1, context 1k", "512", "450, limit 852", "700")
    assert [cells[1] for cells in others] == ["-", "-"]


@pytest.mark.parametrize("device", ["cpu", "cuda:99", "cude"])
def test_without_a_card_it_says_so_in_one_line(device: str) -> None:
    result = CliRunner().invoke(main, ["--device", device])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "--model tiny" in result.output


def test_json_holds_no_endless_numbers() -> None:
    assert plain({"a": [1.23456789, math.nan], 2: (True, None)}) == {
        "a": [1.23457, "nan"],
        "2": [True, None],
    }
