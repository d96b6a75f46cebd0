"""Trains the tiny model on conversations made on the way: `python -m convert.tiny.train --out DIR`.

One run with rates that fall from a quarter of it on.  Part-way the experts' weights begin to be
rounded to MXFP4 on the way forward, and later the rest of the vocabulary begins to count.  The loss
is on what the assistant says, headers included.  `state.pt` in the output folder is the latest
network; `log.jsonl` holds losses, the experts' shares and, now and then, the part of held-out
replies that greedy decoding would reproduce token for token.  A run that is interrupted goes on
when it is started again with the same folder.  With `--begin FILE` it starts from a packed model
instead of from nothing, which takes a seventh of the steps.

A CPU without bfloat16 of its own (AVX-512 or AMX) trains in float32, which is faster there.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import IO

import torch
import torch.nn.functional as F
from torch import Tensor

from convert.tiny.batches import IGNORE, Batch, Vocabulary, batches, collate, collect
from convert.tiny.beginning import begin, spelled
from convert.tiny.conversations import MAKERS, encode, make
from convert.tiny.network import Network, Shape, balance_loss, mxfp4_round
from convert.tiny.optimizer import Optimizer, has_bfloat16
from convert.tiny.unpack import take_over
from gptoss_mlx.harmony import Encoding


@dataclass(frozen=True)
class Schedule:
    """A training run; rates are those of its plateau."""

    steps: int
    muon: float
    adam: float
    embedding: float
    decay: float  # fraction of the steps, the last ones, over which rates fall to 0
    mxfp4_from: float  # fraction of the steps after which the experts are rounded
    rest_from: float  # fraction of the steps after which all other rows' logits count


SCHEDULE = Schedule(
    9600, muon=0.006, adam=1e-3, embedding=2e-3, decay=0.75, mxfp4_from=0.4, rest_from=0.6
)
FURTHER = Schedule(
    1300, muon=0.006, adam=1e-3, embedding=2e-3, decay=0.8, mxfp4_from=0.0, rest_from=0.0
)
"""The schedule of a run that begins with a packed model, whose experts are rounded already."""
BALANCE = 0.02
TOKENS = 6144  # a step
CONVERSATIONS = 20000  # that the vocabulary is collected from
UNFINISHED = "unfinished.pt"
KEPT_EVERY = 100  # steps after which an interrupted run can go on


def precision() -> torch.autocast:
    """bfloat16 where the CPU multiplies it itself, else float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16())


@torch.no_grad()
def rounded(network: Network) -> Network:
    """A copy as it will be stored: experts in MXFP4, the rest in bfloat16."""
    copied = copy.deepcopy(network)
    for name, parameter in copied.named_parameters():
        expert = name.endswith(("gate_up_weight", "down_weight"))
        parameter.copy_(mxfp4_round(parameter) if expert else parameter.bfloat16().float())
    return copied


@torch.no_grad()
def examine(
    network: Network, encoding: Encoding, vocabulary: Vocabulary, count: int, seed: int = 7
) -> dict[str, float]:
    """By kind: the part of held-out replies that greedy decoding reproduces exactly.

    A reply is reproduced exactly when, fed the reply itself, every next token is the likeliest.
    """
    shares = {}
    for kind in MAKERS:
        rng = Random(f"{seed} {kind}")
        pairs = []
        for _ in range(count):
            prompt, reply = encode(encoding, make(rng, True, kind))
            pairs.append((vocabulary.compact(prompt), vocabulary.compact(reply)))
        pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        right = 0
        for i in range(0, count, 32):
            part = pairs[i : i + 32]
            batch = collate(part, max(len(p) + len(r) for p, r in part))
            with precision():
                hidden, _ = network(batch.ids)
                asked = batch.targets != IGNORE
                best = network.logits(hidden[asked]).argmax(-1)
            wrong = torch.zeros_like(asked)
            wrong[asked] = best != batch.targets[asked]
            right += int((~wrong.any(1)).sum())
        shares[kind] = right / count
    return shares


def rate(step: int, schedule: Schedule) -> float:
    """The factor of the learning rates: warm-up, a plateau, and a linear fall to 0 over the last
    part."""
    fall = (schedule.steps - step) / (schedule.decay * schedule.steps)
    return min(1.0, (step + 1) / 60, fall)


def shares_of(routes: list[tuple[Tensor, Tensor]], real: Tensor) -> list[list[float]]:
    """How often each expert of each layer is among the chosen, as a part of all choices."""
    use = [(routing[real] > 0).float().mean(0) for routing, _ in routes]
    return [[round(float(x), 3) for x in u / u.sum()] for u in use]


class Training:
    """A network in training; what it learned so far is in `network`."""

    def __init__(self, network: Network, vocabulary: Vocabulary, out: Path) -> None:
        self.network, self.vocabulary, self.out = network, vocabulary, out
        self.layers = [torch.compile(layer, dynamic=False) for layer in network.layers]
        self.encoding = Encoding()

    def step(
        self, batch: Batch, mxfp4: bool, rest: bool
    ) -> tuple[float, list[tuple[Tensor, Tensor]]]:
        """Adds the gradients of one batch; returns its loss and the routing of each layer."""
        with precision():
            hidden, routes = self.network(batch.ids, mxfp4, self.layers)
            asked = batch.targets != IGNORE
            logits = self.network.logits(hidden[asked])
        loss = F.cross_entropy(logits if rest else logits[:, :-1], batch.targets[asked])
        (loss + BALANCE * balance_loss(routes, batch.real)).backward()
        return loss.item(), routes

    def run(self, schedule: Schedule, seed: int, log: IO[str], every: int) -> None:
        """Train to the end of the schedule, from where an interrupted run stood, if one did."""
        optimizer = Optimizer(self.network, schedule.muon, schedule.adam, schedule.embedding)
        begun = self._restore(optimizer)
        source = islice(batches(self.encoding, self.vocabulary, seed, TOKENS), begun, None)
        start, losses, seen = time.time(), [], 0
        for step in range(begun, schedule.steps):
            batch, part = next(source), step / schedule.steps
            loss, routes = self.step(batch, part >= schedule.mxfp4_from, part >= schedule.rest_from)
            optimizer.step(rate(step, schedule))
            losses.append(loss)
            seen += int(batch.real.sum())
            record: dict[str, object] = {}
            if (step + 1) % 50 == 0:
                record = {"step": step, "loss": sum(losses) / len(losses), "tokens": seen}
                record |= {"s": time.time() - start, "use": shares_of(routes, batch.real)}
                losses = []
            if (step + 1) % KEPT_EVERY == 0:
                self._keep(optimizer, step + 1)
            if (step + 1) % every == 0 or step + 1 == schedule.steps:
                final = rounded(self.network)
                record |= {"skills": examine(final, self.encoding, self.vocabulary, 64)}
                save(self.out / "state.pt", self.network, self.vocabulary, step + 1)
            if record:
                log.write(json.dumps(record) + "\n")
                log.flush()

    def _keep(self, optimizer: Optimizer, step: int) -> None:
        state = {"network": self.network.state_dict(), "step": step, **optimizer.state()}
        torch.save(state, self.out / "unfinished.new")
        (self.out / "unfinished.new").replace(self.out / UNFINISHED)

    def _restore(self, optimizer: Optimizer) -> int:
        """Load the state of an interrupted run; returns the steps it has made, 0 if there was
        none."""
        path = self.out / UNFINISHED
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        optimizer.restore(state)
        return int(state["step"])


def save(path: Path, network: Network, vocabulary: Vocabulary, step: int) -> None:
    state = {"shape": asdict(network.shape), "rows": vocabulary.rows, "step": step}
    torch.save({**state, "network": network.state_dict()}, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load(path: Path) -> tuple[Network, Vocabulary, int]:
    """The network of a training run, its vocabulary and the steps it was trained."""
    state = torch.load(path, weights_only=True)
    network = Network(Shape(**state["shape"]))
    network.load_state_dict(state["network"])
    return network, Vocabulary(state["rows"]), state["step"]


def new_network(seed: int) -> tuple[Network, Vocabulary]:
    torch.manual_seed(seed)
    encoding = Encoding()
    vocabulary = collect(encoding, seed, CONVERSATIONS)
    shape = Shape(len(vocabulary.rows))
    network = Network(shape, spelled(encoding, vocabulary.rows, shape.hidden_size))
    begin(network)
    return network, vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examine", type=int, default=1200, help="steps between examinations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--begin", type=Path, metavar="FILE", help="a packed model to go on from")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch._dynamo.config.recompile_limit = 64
    args.out.mkdir(parents=True, exist_ok=True)
    network, vocabulary = new_network(args.seed)
    if args.begin is not None:
        lacking = take_over(network, vocabulary.rows, Encoding(), args.begin)
        print(f"{args.begin}: {lacking} of {len(vocabulary.rows)} rows are new")
    training = Training(network, vocabulary, args.out)
    with (args.out / "log.jsonl").open("a") as log:
        schedule = SCHEDULE if args.begin is None else FURTHER
        training.run(schedule, args.seed, log, args.examine)


if __name__ == "__main__":
    main()
