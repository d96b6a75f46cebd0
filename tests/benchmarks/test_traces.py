"""Recorded routing against float64 numpy, made-up routing against its parameters, and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import Passage
from benchmarks.synthetic import EXPERTS, KINDS, Routing, synthesise, synthetic
from benchmarks.traces import NOBODY, Trace, load, record, save
from gptoss_mlx.errors import CheckpointError
from tests.support import numpy_gpt_oss as oracle
from tests.support.checkpoints import Shape

SHAPE = Shape(3, 64, 32, 8, 4, 4, 2, 16, vocab=256, window=16)
PASSAGES = [
    Passage([int(id) for id in np.random.default_rng(seed).integers(0, 256, count)], first)
    for seed, count, first in ((0, 30, 20), (1, 9, 0))
]


def test_recording_agrees_with_the_formulas(checkpoint_of: Callable[..., Path]) -> None:
    folder = checkpoint_of(SHAPE)
    trace = record("x", folder, PASSAGES)
    expected = [by_formula(folder, passage) for passage in PASSAGES]
    chosen, predicted = (np.concatenate(part) for part in zip(*expected, strict=True))
    assert trace.experts == SHAPE.experts
    np.testing.assert_array_equal(trace.chosen, np.sort(chosen))
    assert trace.predicted is not None
    assert (trace.predicted[:, 0] == NOBODY).all()
    np.testing.assert_array_equal(trace.predicted[:, 1:], predicted)
    # Else the test could not tell what is chosen from what is predicted.
    assert (np.sort(predicted) != np.sort(chosen[:, 1:])).any()


def by_formula(folder: Path, passage: Passage) -> tuple[Any, Any]:
    """(chosen [steps, layers, k], predicted [steps, layers - 1, k]), the surest first."""
    model = oracle.NumpyGptOss(folder)
    ids, c = passage.ids[:-1], model.config
    x = model.weights["model.embed_tokens.weight"][ids]
    cos, sin = oracle.rotation(c, len(ids))
    chosen, predicted, before = [], [], None
    for layer, kind in enumerate(c["layer_types"]):
        prefix = f"model.layers.{layer}."
        part = {
            name.removeprefix(prefix): value
            for name, value in model.weights.items()
            if name.startswith(prefix)
        }
        attention, mlp = (
            {n.removeprefix(of): v for n, v in part.items() if n.startswith(of)}
            for of in ("self_attn.", "mlp.")
        )
        norm = part["post_attention_layernorm.weight"]
        window = c["sliding_window"] if kind == "sliding_attention" else len(ids)
        h = oracle.rms_norm(x, part["input_layernorm.weight"], c["rms_norm_eps"])
        x = x + oracle.attention(h, attention, c, cos, sin, window, lambda x: x)

        def surest(residual: Any, norm: Any = norm, mlp: Any = mlp) -> Any:
            h = oracle.rms_norm(residual, norm, c["rms_norm_eps"])
            logits = h @ mlp["router.weight"].T + mlp["router.bias"]
            return np.argsort(-logits)[passage.scored_from :, :4]

        chosen.append(surest(x))
        if before is not None:
            predicted.append(surest(before))
        before = x
        x = x + oracle.mixture(oracle.rms_norm(x, norm, c["rms_norm_eps"]), mlp, c)
    return np.stack(chosen, axis=1), np.stack(predicted, axis=1)


def small(**changed: Any) -> Routing:
    return replace(Routing(zipf=0.5, topic=1.0, topic_tokens=20, sticky=0.2, steps=50), **changed)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_trace_comes_back_from_its_file(tmp_path: Path, ahead: bool) -> None:
    made = synthesise("some name", small())
    trace = made if ahead else Trace("some name", made.experts, made.chosen)
    save(trace, tmp_path / "trace.npz")
    back = load(tmp_path / "trace.npz")
    assert (back.name, back.experts, back.k, back.layers) == ("some name", 32, 4, 4)
    np.testing.assert_array_equal(back.chosen, trace.chosen)
    assert (back.predicted is not None) == ahead
    if back.predicted is not None:
        np.testing.assert_array_equal(back.predicted, trace.predicted)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"chosen": None}, "no 'chosen'"),
        ({"experts": np.array([1, 2])}, "not a trace"),
        ({"experts": np.array(5)}, "names 0 to 7 of 5 experts"),
        ({"chosen": np.zeros((3, 2), np.int16)}, "not ids"),
        ({"chosen": np.zeros((0, 2, 4), np.int16)}, "not ids"),
        ({"chosen": np.zeros((3, 2, 4))}, "not ids"),
        ({"chosen": np.full((3, 2, 4), [-1, 0, 1, 2])}, "names -1 to 2"),
        ({"chosen": np.full((3, 2, 4), [1, 0, 1, 2])}, "twice"),
        ({"predicted": np.full((3, 2, 2), [1, 8])}, "predicted names 1 to 8 of 8 experts"),
        ({"predicted": np.full((2, 2, 2), [1, 2])}, "not of chosen's steps"),
    ],
)
def test_a_broken_trace_is_one_line(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    arrays: dict[str, Any] = {
        "name": np.array("x"),
        "experts": np.array(8),
        "chosen": np.full((3, 2, 4), [0, 1, 2, 7]),
        **changed,
    }
    path = tmp_path / "broken.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_foreign_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"foreign\.npz: not a trace"):
        load(path)
    with pytest.raises(CheckpointError, match=r"none\.npz: not a trace"):
        load(tmp_path / "none.npz")


def test_streams_leave_out_what_nobody_predicted() -> None:
    chosen = np.array([[[2, 0], [1, 3]], [[1, 2], [0, 1]]])
    predicted = np.array([[[-1, -1], [3, -1]], [[-1, -1], [2, 1]]])
    trace = Trace("x", 4, chosen, predicted)
    assert trace.stream(0) == [[0, 2], [1, 2]]
    assert trace.foreseen(0) is None
    assert trace.foreseen(1) == [[3], [2, 1]]
    assert Trace("x", 4, chosen).foreseen(1) is None


def test_made_up_routing_is_the_same_every_time() -> None:
    one, two = synthesise("x", small()), synthesise("x", small())
    np.testing.assert_array_equal(one.chosen, two.chosen)
    assert (synthesise("x", small(seed=1)).chosen != one.chosen).any()


def shares(trace: Trace) -> Any:
    """Of all choices, by layer and expert, the largest first."""
    counts = [np.bincount(trace.chosen[:, i].ravel(), minlength=32) for i in range(trace.layers)]
    return -np.sort(-np.array(counts)) / trace.chosen[:, 0].size


def returning(trace: Trace, lag: int) -> float:
    """Share of a step's experts that are chosen again `lag` steps later."""
    visited = np.zeros((len(trace.chosen), trace.layers, trace.experts), bool)
    np.put_along_axis(visited, trace.chosen.astype(int), True, axis=2)
    return float((visited[lag:] & visited[:-lag]).sum() / visited[lag:].sum())


def test_uniform_routing_prefers_no_expert() -> None:
    trace = synthesise("x", Routing(steps=2000))
    np.testing.assert_allclose(shares(trace), 1 / 32, rtol=0.25)
    assert returning(trace, 1) == pytest.approx(4 / 32, abs=0.01)


def test_popularity_follows_zipf_with_another_order_in_each_layer() -> None:
    trace = synthesise("x", replace(Routing(zipf=1.0, steps=4000), k=1, foresight=(1.0,)))
    ranks = np.arange(1, 33)
    expected = np.tile(1 / ranks / (1 / ranks).sum(), (4, 1))
    np.testing.assert_allclose(shares(trace)[:, :5], expected[:, :5], rtol=0.15)
    favourites = {np.bincount(trace.chosen[:, layer].ravel()).argmax() for layer in range(4)}
    assert len(favourites) > 1


def test_tokens_stick_for_one_step_and_topics_for_many() -> None:
    sticky = synthesise("x", Routing(sticky=0.5, steps=2000))
    # What does not stay is drawn from the others.
    assert returning(sticky, 1) == pytest.approx(0.5 + 0.5 * 2 / 30, abs=0.03)
    topic = synthesise("x", Routing(topic=3.0, topic_tokens=50, steps=2000))
    assert returning(topic, 1) > returning(topic, 50) > returning(topic, 250) > 0.12
    assert returning(topic, 10) > 0.7 * returning(topic, 1)


def test_foresight_is_as_asked_by_rank() -> None:
    routing = small(steps=1500, foresight=(1.0, 0.9, 0.5, 0.0))
    trace = synthesise("x", routing)
    assert trace.predicted is not None
    assert (trace.predicted[:, 0] == NOBODY).all()
    right = (trace.predicted[:, 1:, :, None] == trace.chosen[:, 1:, None, :]).any(axis=-1)
    np.testing.assert_allclose(right.mean(axis=(0, 1)), routing.foresight, atol=0.03)


def test_there_is_a_trace_of_each_kind_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {kind: replace(routing, steps=2) for kind, routing in KINDS.items()}
    monkeypatch.setattr("benchmarks.synthetic.KINDS", short)
    traces = {trace.name: trace.experts for trace in synthetic()}
    assert traces == {f"{k} {s}": n for s, n in EXPERTS.items() for k in KINDS}
