"""The pieces of training: the optimizer, the rates, batches, and where a network begins."""

from __future__ import annotations

import copy
from itertools import islice

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

import torch.nn.functional as F  # noqa: E402

from convert.tiny.batches import IGNORE, batches, collate, collect  # noqa: E402
from convert.tiny.beginning import begin, position, spelled  # noqa: E402
from convert.tiny.network import Network, Shape, balance_loss, rotate, yarn_tables  # noqa: E402
from convert.tiny.optimizer import Optimizer, orthogonalise  # noqa: E402
from convert.tiny.train import SCHEDULE, Schedule, rate  # noqa: E402
from gptoss_mlx.harmony import Encoding  # noqa: E402


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for size in ((3, 24, 40), (3, 40, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(size)))
        assert values.min() > 0.5
        assert values.max() < 1.4


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_of_a_batch() -> None:
    torch.manual_seed(0)
    network = Network(Shape(40, full_vocabulary=80, hidden_size=64, intermediate_size=32))
    optimizer = Optimizer(network, muon=0.02, adam=4e-3, embedding=4e-3)
    ids = torch.randint(0, 40, (4, 20))
    losses = []
    for _ in range(12):
        hidden, routes = network(ids[:, :-1], quantize=True)
        loss = F.cross_entropy(network.logits(hidden).flatten(0, 1), ids[:, 1:].flatten())
        (loss + 0.01 * balance_loss(routes, ids[:, :-1] >= 0)).backward()
        optimizer.step(1.0)
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_an_optimizer_goes_on_where_another_stood() -> None:
    torch.manual_seed(0)
    shape = Shape(40, full_vocabulary=80, hidden_size=64, intermediate_size=32)
    first, second = Network(shape), Network(shape)
    ids = torch.randint(0, 40, (4, 20))

    def steps(network: Network, optimizer: Optimizer, count: int) -> None:
        for _ in range(count):
            hidden, _ = network(ids[:, :-1])
            F.cross_entropy(network.logits(hidden).flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step(1.0)

    optimizer = Optimizer(first, muon=0.02, adam=4e-3, embedding=4e-3)
    steps(first, optimizer, 3)
    resumed = Optimizer(second, muon=0.02, adam=4e-3, embedding=4e-3)
    second.load_state_dict(first.state_dict())
    resumed.restore(copy.deepcopy(optimizer.state()))
    steps(first, optimizer, 2)
    steps(second, resumed, 2)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_rates_warm_up_stay_and_fall_to_nothing() -> None:
    schedule = Schedule(1000, 1.0, 1.0, 1.0, decay=0.5, mxfp4_from=0.0, rest_from=0.0)
    rates = [rate(step, schedule) for step in range(1000)]
    assert rates[0] < 0.05
    assert rates[100:500] == [1.0] * 400
    assert rates[500:] == sorted(rates[500:], reverse=True)
    assert rates[-1] < 0.01


def test_experts_are_rounded_for_most_of_the_training() -> None:
    assert SCHEDULE.mxfp4_from <= 0.5
    assert SCHEDULE.rest_from < 1


def test_targets_are_the_next_tokens_of_the_reply_only() -> None:
    batch = collate([([1, 2, 3], [4, 5]), ([7], [8, 9])], 6)
    assert batch.ids.tolist() == [[1, 2, 3, 4, -1, -1], [7, 8, -1, -1, -1, -1]]
    none = IGNORE
    assert batch.targets.tolist() == [
        [none, none, 4, 5, none, none],
        [8, 9, none, none, none, none],
    ]
    assert batch.real.sum(1).tolist() == [4, 2]


def test_batches_repeat_with_their_seed_and_hide_unknown_words() -> None:
    encoding = Encoding()
    vocabulary = collect(encoding, 1, 50)
    unknown = {*encoding.encode("zzz"), *encoding.encode(" zzz")}
    assert not unknown & set(vocabulary.rows)
    first, second = (
        [batch.ids for batch in islice(batches(encoding, vocabulary, 3, 700), 2)] for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_first_layer_head_looks_one_token_back_at_the_beginning() -> None:
    shape = Shape(60)
    key, query = position(shape, 0).expand(8, -1), position(shape, 1).expand(8, -1)
    cos, sin = yarn_tables(shape, 8)
    scores = rotate(query[None, None], cos, sin) @ rotate(key[None, None], cos, sin).mT
    causal = scores[0, 0].masked_fill(~torch.ones(8, 8, dtype=torch.bool).tril(), -1e9)
    assert causal[1:].argmax(-1).tolist() == list(range(7))


def test_a_full_layer_copies_what_followed_at_the_beginning() -> None:
    torch.manual_seed(1)
    encoding = Encoding()
    rows = encoding.encode(" apple river stone house tree water fire light night day sun moon star")
    network = Network(Shape(len(rows)), spelled(encoding, rows, 192))
    begin(network)
    ids = torch.cat((torch.arange(len(rows)), torch.tensor([3])))[None]
    with torch.no_grad():
        hidden, _ = network(ids)
        scores = network.logits(hidden)[0, -1, :-1]
    others = [i for i in range(len(rows)) if i not in (3, 4)]
    assert scores[4] > scores[others].max()
