"""The sampler against the documented order in float64: what may be drawn, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_mlx.backends.protocol import Draw
from gptoss_mlx.backends.sampler import RuledSampler
from gptoss_mlx.errors import NumericalError, SamplingError
from gptoss_mlx.harmony import Mask
from gptoss_mlx.plan.buffers import TOGETHER
from gptoss_mlx.spec.sampling import MAX_SEED, Sampling
from tests.support.sampler_backends import BACKENDS, Backend, OneSequence, open_backend
from tests.support.sampling_oracle import oracle, packed

VOCAB = 12
CLOSE = 1e-4  # a token this near a limit may fall on either side in float32
LOGITS = np.array([2, -1, 0.5, 3, -4, 1.25, 2.5, 0, -2, 1, -0.5, 1.75], np.float32)
NONE: Mask | None = None


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return open_backend(request.param)


def prepared(
    backend: Backend,
    options: Sampling,
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
) -> Any:
    """A sampler that has accepted the generated tokens."""
    sampler = backend.sampler(options, 1, prompt, VOCAB)
    for step, id in enumerate(generated):
        only = backend.array(np.where(np.arange(VOCAB) == id, 500, -500))
        choice = sampler.choose(only, step, Mask(allow=(id,)))
        assert choice.read()[0] == id
        sampler.accept(choice)
    return sampler


def distribution(
    backend: Backend, sampler: Any, logits: NDArray[np.float32], mask: Mask | None = None
) -> dict[int, float]:
    """id -> probability with which the sampler would draw it, read where it draws."""
    handed: list[NDArray[np.float32]] = []
    drawn = 0

    def draw(scores: NDArray[np.float32]) -> int:
        handed.append(scores)
        return drawn

    with pytest.MonkeyPatch.context() as patch:
        backend.draw_by(patch, draw)
        first = sampler.choose(backend.array(logits), 99, mask).read()[0]
        if not handed:
            return {first: 1.0}
        weights = np.exp(handed[0].astype(np.float64) - handed[0].max())
        p = weights / weights.sum()
        found = {}
        for drawn in np.flatnonzero(p).tolist():
            id = sampler.choose(backend.array(logits), 99, mask).read()[0]
            assert id not in found
            found[id] = float(p[drawn])
    return found


def check(
    backend: Backend,
    logits: NDArray[np.float32],
    options: Sampling,
    prompt: Sequence[int] = (),
    generated: Sequence[int] = (),
    mask: Mask | None = None,
) -> None:
    expected = oracle(logits, options, prompt, generated, mask).kept
    found = distribution(backend, prepared(backend, options, prompt, generated), logits, mask)
    negligible = {id for id, p in expected.items() if p < 1e-30}
    assert set(found) - negligible == set(expected) - negligible
    for id, p in found.items():
        assert p == pytest.approx(expected.get(id, 0), rel=1e-3, abs=1e-6)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm": {"temperature": 2.5},
    "cool": {"temperature": 0.3},
    "top-k": {"top_k": 4},
    "top-k 1": {"top_k": 1},
    "top-k of all": {"top_k": VOCAB},
    "top-k beyond the vocabulary": {"top_k": 1000},
    "top-p": {"top_p": 0.8},
    "top-p tiny": {"top_p": 1e-9},
    "top-p tiniest": {"top_p": 5e-324},
    "top-p almost one": {"top_p": 0.9999},
    "min-p": {"min_p": 0.2},
    "min-p 1": {"min_p": 1.0},
    "top-p inside min-p": {"top_p": 0.6, "min_p": 0.01},
    "min-p inside top-p": {"top_p": 0.99, "min_p": 0.3},
    "repetition": {"repetition_penalty": 1.8},
    "repetition wanted": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.75},
    "bias": {"logit_bias": {4: 8.0, 3: -100.0}},
    "all": {
        "temperature": 0.9,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.3,
        "presence_penalty": -0.4,
        "frequency_penalty": 0.3,
        "logit_bias": {1: 2.0, 6: -1.0},
    },
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_each_option_follows_the_documented_order(
    backend: Backend, options: dict[str, Any]
) -> None:
    check(backend, LOGITS, Sampling(**options), prompt=[3, 4, 9, 9], generated=[0, 0, 2, 0])


@pytest.mark.parametrize(
    "mask",
    [
        Mask(ban=(3, 6, 0)),
        Mask(allow=(1, 4, 8)),
        Mask(allow=(9,)),
        packed((1, 4, 8, 11), VOCAB),
        packed((5,), 8),
    ],
)
@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_each_option_with_each_kind_of_mask(
    backend: Backend, options: dict[str, Any], mask: Mask
) -> None:
    check(
        backend, LOGITS, Sampling(**options), prompt=[3, 4, 9, 9], generated=[0, 0, 2, 0], mask=mask
    )


IDS = st.lists(st.integers(0, VOCAB - 1), max_size=6)
MASKS = st.one_of(
    st.none(),
    st.sets(st.integers(0, VOCAB - 1), min_size=1).map(lambda ids: Mask(allow=tuple(sorted(ids)))),
    st.sets(st.integers(0, VOCAB + 9), max_size=VOCAB - 1).map(
        lambda ids: Mask(ban=tuple(sorted(ids)))
    ),
    st.builds(
        packed,
        st.sets(st.integers(0, VOCAB - 1), min_size=1),
        st.integers(VOCAB, 40),  # bits for more ids than the model has
    ),
)
OPTIONS = st.builds(
    Sampling,
    temperature=st.one_of(st.just(0.0), st.floats(0.3, 5)),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1)),
    top_k=st.integers(0, VOCAB + 2),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
    repetition_penalty=st.floats(0.5, 2),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=3),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    ranks=st.permutations(range(VOCAB)),
    scale=st.sampled_from([0.05, 0.3, 1.0, 4.0]),
    options=OPTIONS,
    prompt=IDS,
    generated=IDS,
    mask=MASKS,
)
def test_any_logits_options_history_and_mask(
    backend: Backend,
    ranks: list[int],
    scale: float,
    options: Sampling,
    prompt: list[int],
    generated: list[int],
    mask: Mask | None,
) -> None:
    if mask is not None and mask.ban is not None:
        assume(len([i for i in mask.ban if i < VOCAB]) < VOCAB)
    raw = (np.array(ranks, np.float32) - 5.3) * np.float32(scale)
    assume(oracle(raw, options, prompt, generated, mask).margin > CLOSE)
    check(backend, raw, options, prompt, generated, mask)


RULES = (
    *(Sampling(**options) for options in CASES.values()),
    Sampling(logprobs=True),
    Sampling(temperature=0.7, top_logprobs=3),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    data=st.data(),
    kinds=st.lists(st.sampled_from(RULES), min_size=1, max_size=3),
    count=st.integers(1, 2 * TOGETHER + 1),
    vocab=st.sampled_from([VOCAB, 300]),
)
def test_a_sequence_is_sampled_alike_alone_and_beside_others(
    backend: Backend, data: st.DataObject, kinds: list[Sampling], count: int, vocab: int
) -> None:
    """With equal and unequal rules, masks and seeds, over rows in any order and not all of them."""
    operations = backend.operations(vocab)
    masks = data.draw(st.lists(MASKS, min_size=1, max_size=3))
    assume(not any(m and m.ban and len([i for i in m.ban if i < vocab]) == vocab for m in masks))
    logits = np.random.default_rng(count).normal(0, 2, (count + 2, vocab)).astype(np.float32)
    rows = data.draw(st.permutations(range(count + 2)))[:count]
    seeds = data.draw(st.lists(st.integers(0, MAX_SEED), min_size=count, max_size=count))
    options = [data.draw(st.sampled_from(kinds)) for _ in rows]
    alone = [OneSequence(operations, o, s, [1, 2]) for o, s in zip(options, seeds, strict=True)]
    beside = [RuledSampler(operations, o, s, [1, 2]) for o, s in zip(options, seeds, strict=True)]
    for step in range(3):
        asked = [data.draw(st.sampled_from(masks)) for _ in rows]
        draws = [Draw(*each) for each in zip(rows, beside, [step] * count, asked, strict=True)]
        chosen = operations.choose(backend.array(logits), draws)
        for row, one, sampler, mask, choice in zip(rows, alone, beside, asked, chosen, strict=True):
            expected = one.choose(backend.array(logits[row]), step, mask)
            assert choice.read() == expected.read()
            one.accept(expected)
            sampler.accept(choice)


@pytest.mark.parametrize("name", ["plain", "cool", "top-k", "all"])
def test_tokens_are_drawn_as_often_as_they_should_be(backend: Backend, name: str) -> None:
    options = Sampling(**CASES[name])
    expected = oracle(LOGITS, options).kept
    logits = backend.array(LOGITS)
    draws = 1200
    counts = Counter(
        backend.sampler(options, seed, [], VOCAB).choose(logits, 0, NONE).read()[0]
        for seed in range(draws)
    )
    assert set(counts) <= set(expected)
    common = [id for id in expected if expected[id] * draws >= 5]
    square = sum((counts[id] - draws * expected[id]) ** 2 / (draws * expected[id]) for id in common)
    assert square < len(common) + 4 * (2 * len(common)) ** 0.5  # four sigma


def joint(pairs: Sequence[tuple[int, int]], sides: int) -> float:
    """Chi-square of a table of pairs that should be independent and uniform."""
    counts, cell = Counter(pairs), len(pairs) / sides**2
    return sum((counts[a, b] - cell) ** 2 / cell for a in range(sides) for b in range(sides))


def test_steps_and_seeds_are_independent(backend: Backend) -> None:
    sides, draws = 4, 500
    even = backend.array([0.0] * sides)

    def drawn(seed: int, step: int) -> int:
        return backend.sampler(Sampling(), seed, [], sides).choose(even, step, NONE).read()[0]

    steps = [drawn(7, step) for step in range(draws + 1)]
    seeds = [drawn(seed, 0) for seed in range(draws + 1)]
    same = [(drawn(seed, 3), drawn(seed, 4)) for seed in range(draws)]
    crossed = [(drawn(seed, 4), drawn(seed + 1, 3)) for seed in range(draws)]
    for pairs in (
        list(pairwise(steps)),
        list(pairwise(seeds)),
        list(zip(steps, seeds, strict=True))[:draws],
        same,
        crossed,
    ):
        assert joint(pairs, sides) < 15 + 4 * 30**0.5  # 15 degrees of freedom, four sigma


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-30, 1e-40, 5e-324])
def test_a_cold_temperature_is_nearly_greedy(backend: Backend, temperature: float) -> None:
    sampler = backend.sampler(Sampling(temperature=temperature), 3, [], VOCAB)
    for scale in (1, 1e3, 1e9):
        logits = backend.array(LOGITS * scale)
        assert {sampler.choose(logits, step, NONE).read()[0] for step in range(5)} == {3}


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 5e-324])
def test_equals_share_a_cold_temperature(backend: Backend, temperature: float) -> None:
    sampler = backend.sampler(Sampling(temperature=temperature), 3, [], 5)
    logits = backend.array([1.0, 5.0, 0.0, 5.0, 5.0])
    assert {sampler.choose(logits, step, NONE).read()[0] for step in range(40)} == {1, 3, 4}


def test_greedy_takes_the_first_of_equals_whatever_the_seed(backend: Backend) -> None:
    logits = backend.array([1.0, 5.0, 0.0, 5.0, 5.0])
    for seed in range(5):
        sampler = backend.sampler(Sampling(temperature=0), seed, [], 5)
        assert sampler.choose(logits, seed, NONE).read()[0] == 1
        assert sampler.choose(logits, seed, Mask(ban=(1,))).read()[0] == 3
        assert sampler.choose(logits, seed, Mask(allow=(0, 2))).read()[0] == 0


def test_equals_at_the_edge(backend: Backend) -> None:
    logits = np.array([1, 5, 0, 5, 5], np.float32)
    kept = distribution(backend, backend.sampler(Sampling(top_k=2), 1, [], 5), logits)
    assert len(kept) == 2
    assert set(kept) < {1, 3, 4}
    third = pytest.approx(1 / 3, rel=1e-5)
    for options in (Sampling(min_p=1), Sampling(top_p=0.01), Sampling(top_p=0.5, min_p=0.9)):
        assert distribution(backend, backend.sampler(options, 1, [], 5), logits) == {
            1: third,
            3: third,
            4: third,
        }


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("temperature", [0, 50.0])
def test_a_banned_token_never_comes(
    backend: Backend, options: dict[str, Any], temperature: float
) -> None:
    sampler = backend.sampler(Sampling(**{**options, "temperature": temperature}), 5, [], VOCAB)
    logits = backend.array(LOGITS)
    allowed, banned = (4, 8), tuple(i for i in range(VOCAB) if i not in (4, 8))
    for mask in (Mask(allow=allowed), Mask(ban=banned), packed(allowed, VOCAB)):
        for step in range(20):
            assert sampler.choose(logits, step, mask).read()[0] in allowed


def test_ids_beyond_the_vocabulary_in_a_mask_are_passed_over(backend: Backend) -> None:
    sampler = backend.sampler(Sampling(temperature=0), 5, [], VOCAB)
    logits = backend.array(LOGITS)
    assert sampler.choose(logits, 0, Mask(ban=(3, VOCAB, 10**6))).read()[0] == 6
    assert sampler.choose(logits, 0, Mask(allow=(4, VOCAB + 1))).read()[0] == 4
    assert sampler.choose(logits, 0, Mask(ban=(VOCAB,))).read()[0] == 3
    assert sampler.choose(logits, 0, packed((4, VOCAB, 99), 100)).read()[0] == 4


def test_choosing_again_under_another_mask_disturbs_nothing(backend: Backend) -> None:
    logits = backend.array(LOGITS)
    options = Sampling(frequency_penalty=0.5, repetition_penalty=1.1)
    plain, again = (backend.sampler(options, 11, [1], VOCAB) for _ in range(2))
    for step in range(30):
        first = plain.choose(logits, step, NONE)
        if step % 3:
            again.choose(logits, step, Mask(allow=(step % VOCAB,)))
            again.choose(logits, step, Mask(ban=(step % VOCAB,)))
        second = again.choose(logits, step, NONE)
        assert first.read() == second.read()
        plain.accept(first)
        again.accept(second)


def test_a_seed_repeats_and_seeds_differ(backend: Backend) -> None:
    logits = backend.array(LOGITS)

    def run(seed: int) -> list[int]:
        sampler = backend.sampler(Sampling(temperature=2), seed, [], VOCAB)
        return [sampler.choose(logits, step, NONE).read()[0] for step in range(40)]

    seeds = [0, 1, 2**32, 2**62, 2**63 - 1]
    runs = [run(seed) for seed in seeds]
    assert runs == [run(seed) for seed in seeds]
    assert len({tuple(r) for r in runs}) == len(seeds)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_logprobs_are_the_models_own_whatever_the_options(
    backend: Backend, options: dict[str, Any]
) -> None:
    sampling = Sampling(**options, logprobs=True, top_logprobs=5)
    sampler = prepared(backend, sampling, prompt=[3], generated=[0, 0])
    exact = LOGITS.astype(np.float64)
    exact = exact - np.log(np.exp(exact).sum())
    best = np.argsort(-exact)[:5]
    for mask in (None, Mask(ban=(3,)), Mask(allow=(10, 4))):
        id, logprob, top = sampler.choose(backend.array(LOGITS), 4, mask).read()
        assert logprob == pytest.approx(exact[id], abs=1e-5)
        assert [i for i, _ in top] == best.tolist()
        assert [value for _, value in top] == pytest.approx(exact[best].tolist(), abs=1e-5)


@pytest.mark.parametrize("vocab", [1, 255, 256, 257, 201088])
def test_logprobs_are_as_exact_over_a_large_vocabulary(backend: Backend, vocab: int) -> None:
    logits = np.random.default_rng(vocab).normal(0, 3, vocab).astype(np.float32)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum())
    sampler = backend.sampler(Sampling(logprobs=True), 1, [], vocab)
    for step in range(3):
        id, logprob, _ = sampler.choose(backend.array(logits), step, NONE).read()
        assert logprob == pytest.approx(exact[id], abs=5e-6)


def test_logprobs_only_when_asked_and_no_more_than_there_are(backend: Backend) -> None:
    logits = backend.array(LOGITS)
    assert backend.sampler(Sampling(), 1, [], VOCAB).choose(logits, 0, NONE).read()[1:] == (
        None,
        (),
    )
    alone = backend.sampler(Sampling(top_logprobs=3), 1, [], VOCAB).choose(logits, 0, NONE).read()
    assert alone[1] is not None
    assert len(alone[2]) == 3
    _, logprob, top = (
        backend.sampler(Sampling(logprobs=True), 1, [], VOCAB).choose(logits, 0, NONE).read()
    )
    assert logprob is not None
    assert top == ()
    most = Sampling(logprobs=True, top_logprobs=20)
    assert len(backend.sampler(most, 1, [], VOCAB).choose(logits, 0, NONE).read()[2]) == VOCAB


def test_logits_of_half_precision_are_widened_first(backend: Backend) -> None:
    sampler = backend.sampler(Sampling(logprobs=True), 1, [], VOCAB)
    half, wide = backend.halves(LOGITS)
    for step in range(5):
        found = sampler.choose(half, step, NONE).read()
        assert found == sampler.choose(wide, step, NONE).read()
        assert found.logprob is not None


def test_bias_beyond_the_vocabulary_is_refused_at_once(backend: Backend) -> None:
    with pytest.raises(SamplingError, match=f"token of logit_bias is {VOCAB}, but must be from 0"):
        backend.sampler(Sampling(logit_bias={VOCAB: 1}), 1, [], VOCAB)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "options",
    [
        Sampling(temperature=0),
        Sampling(top_k=3, top_p=0.5),
        Sampling(presence_penalty=1, repetition_penalty=1.5, logit_bias={2: -100}),
        Sampling(logprobs=True, top_logprobs=3),
    ],
)
@pytest.mark.parametrize("mask", [None, Mask(allow=(1, 2)), Mask(ban=(0, 3))])
def test_no_token_comes_of_logits_that_are_not_finite(
    backend: Backend, value: float, options: Sampling, mask: Mask | None
) -> None:
    """Wherever they are, the places that a mask leaves out included."""
    for place in (0, 7, VOCAB - 1):
        sampler, logits = prepared(backend, options, [5], [4]), LOGITS.copy()
        assert sampler.choose(backend.array(logits), 1, mask).read()
        logits[place] = value
        choice = sampler.choose(backend.array(logits), 2, mask)
        with pytest.raises(NumericalError, match=r"token 3 of the answer are not finite"):
            choice.read()
