"""Trains the tiny model on conversations made on the way; `python -m tiny.train --out runs/tiny`.

One seed gives one run.  The loss is on what the assistant says, headers included.  After
1000 steps the experts' weights are rounded to MXFP4 on the way forward.  `state.pt` in the output
folder is the latest network; `log.jsonl` holds losses, the shares of the experts and, now and then,
the part of held-out replies that greedy decoding would reproduce token for token.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from gptoss_mlx.harmony import Encoding
from tiny import words
from tiny.beginning import begin
from tiny.conversations import MAKERS, encode, make
from tiny.network import Network, Shape, balance_loss, mxfp4_round
from tiny.optimizer import Optimizer

LENGTHS = (96, 128, 160, 208, 288, 400, 512)
IGNORE = -100


@dataclass(frozen=True)
class Vocabulary:
    """The rows that are kept; `rows` ascend."""

    rows: list[int]

    def compact(self, ids: list[int]) -> list[int]:
        index = self.index
        return [index.get(i, -1) for i in ids]

    @property
    def index(self) -> dict[int, int]:
        cached = self.__dict__.get("_index")
        if cached is None:
            cached = {row: i for i, row in enumerate(self.rows)}
            object.__setattr__(self, "_index", cached)
        return cached


def collect(encoding: Encoding, seed: int, count: int) -> Vocabulary:
    """The tokens of `count` conversations and of every word and number, but no unknown word's."""
    found: Counter[int] = Counter()
    rng = Random(f"{seed} vocabulary")
    for _ in range(count):
        prompt, reply = encode(encoding, make(rng, False))
        found.update(prompt + reply)
    lists = (words.NOUNS, words.NAMES, words.CITIES, words.COLOURS, words.FOODS, words.PETS)
    for word in [word for part in lists for word in part]:
        found.update(encoding.encode(word) + encoding.encode(" " + word))
    for number in range(200):
        found.update(encoding.encode(str(number)))
    unknown = encoding.encode(words.UNKNOWN) + encoding.encode(" " + words.UNKNOWN)
    return Vocabulary(sorted(set(found) - set(unknown)))


def spelled(encoding: Encoding, rows: list[int], width: int) -> Tensor:
    """Embeddings to begin with, [rows, width]: tokens that spell alike begin alike.

    A token's vector is the sum of one for itself, one for its word without spaces and case, and
    for a number one for each digit by its place.
    """
    features: dict[str, Tensor] = {}

    def feature(name: str) -> Tensor:
        return features.setdefault(name, torch.randn(width))

    vectors = []
    for row in rows:
        text = encoding.decode_bytes([row]).decode(errors="replace")
        word = text.strip().lower()
        parts = [feature(f"row {row}"), feature(f"word {word}")]
        if word.isascii() and word.isdigit():
            parts += [feature(f"digit {i} {c}") for i, c in enumerate(reversed(word.rjust(3, "0")))]
        vectors.append(torch.stack(parts).sum(0) / len(parts) ** 0.5)
    return torch.stack(vectors)


@dataclass(frozen=True)
class Batch:
    """ids and targets, int64 [batch, length]; a target is the next id or IGNORE."""

    ids: Tensor
    targets: Tensor
    real: Tensor  # bool: no padding


def collate(pairs: list[tuple[list[int], list[int]]], length: int) -> Batch:
    ids = torch.full((len(pairs), length), -1)
    targets = torch.full((len(pairs), length), IGNORE)
    real = torch.zeros(len(pairs), length, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(pairs):
        whole, start = prompt + reply, len(prompt) - 1
        ids[row, : len(whole) - 1] = torch.tensor(whole[:-1])
        targets[row, start : len(whole) - 1] = torch.tensor(reply)
        real[row, : len(whole) - 1] = True
    return Batch(ids, targets, real)


def batches(encoding: Encoding, vocabulary: Vocabulary, seed: int, tokens: int) -> Iterator[Batch]:
    """Endless batches of about `tokens` tokens, conversations of similar length together."""
    rng = Random(f"{seed} train")
    waiting: dict[int, list[tuple[list[int], list[int]]]] = {length: [] for length in LENGTHS}
    while True:
        prompt, reply = (vocabulary.compact(x) for x in encode(encoding, make(rng, False)))
        length = next((n for n in LENGTHS if n >= len(prompt) + len(reply) - 1), None)
        if length is None or -1 in reply:
            continue
        waiting[length].append((prompt, reply))
        if len(waiting[length]) == tokens // length:
            yield collate(waiting[length], length)
            waiting[length] = []


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
            with torch.autocast("cpu", torch.bfloat16):
                hidden, _ = network(batch.ids)
                asked = batch.targets != IGNORE
                best = network.logits(hidden[asked]).argmax(-1)
            wrong = torch.zeros_like(asked)
            wrong[asked] = best != batch.targets[asked]
            right += int((~wrong.any(1)).sum())
        shares[kind] = right / count
    return shares


def rate(step: int, steps: int, decay: float) -> float:
    """Warm-up, a plateau, and over the last part (`decay`) of the run linearly to nothing."""
    fall = (steps - step) / (decay * steps) if decay else 1.0
    return min(1.0, (step + 1) / 60, fall)


def shares_of(routes: list[tuple[Tensor, Tensor]], real: Tensor) -> list[list[float]]:
    """How often each expert of each layer is among the chosen, as a part of all choices."""
    use = [(routing[real] > 0).float().mean(0) for routing, _ in routes]
    return [[round(float(x), 3) for x in u / u.sum()] for u in use]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    encoding = Encoding()
    if args.start is None:
        vocabulary = collect(encoding, args.seed, args.vocabulary)
        shape = Shape(len(vocabulary.rows))
        network = Network(shape, spelled(encoding, vocabulary.rows, shape.hidden_size))
        begin(network)
    else:
        network, vocabulary, _ = load(args.start)
    optimizer = Optimizer(network, args.muon, args.adam, args.embedding)
    torch._dynamo.config.recompile_limit = 64
    layers = [torch.compile(layer, dynamic=False) for layer in network.layers]
    source = batches(encoding, vocabulary, args.seed, args.tokens)
    print(f"{len(vocabulary.rows)} rows, {sum(p.numel() for p in network.parameters())} parameters")
    start, seen, losses = time.time(), 0, []
    with (args.out / "log.jsonl").open("a") as log:
        for step in range(args.steps):
            batch = next(source)
            with torch.autocast("cpu", torch.bfloat16):
                hidden, routes = network(batch.ids, step >= args.quantize_from, layers)
                asked = batch.targets != IGNORE
                logits = network.logits(hidden[asked])
            loss = F.cross_entropy(logits, batch.targets[asked])
            (loss + args.balance * balance_loss(routes, batch.real)).backward()
            optimizer.step(rate(step, args.steps, args.decay))
            seen += int(batch.real.sum())
            losses.append(loss.item())
            record: dict[str, object] = {}
            if (step + 1) % 50 == 0:
                mean, losses = sum(losses) / len(losses), []
                record = {"step": step, "loss": mean, "s": time.time() - start, "tokens": seen}
                record["use"] = shares_of(routes, batch.real)
            if (step + 1) % args.examine == 0 or step + 1 == args.steps:
                record |= {"step": step, "skills": examine(rounded(network), encoding, vocabulary, 64)}
                save(args.out / "state.pt", network, vocabulary, step + 1)
            if record:
                log.write(json.dumps(record) + "\n")
                log.flush()


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--start", type=Path, help="the state.pt of a run to go on from")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--tokens", type=int, default=6144, help="tokens a step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--muon", type=float, default=0.02)
    parser.add_argument("--adam", type=float, default=4e-3)
    parser.add_argument("--embedding", type=float, default=4e-3, help="Adam's rate for the table")
    parser.add_argument("--decay", type=float, default=0.7, help="part of the run with falling rates")
    parser.add_argument("--balance", type=float, default=0.01)
    parser.add_argument("--quantize-from", type=int, default=1000, help="the first step with MXFP4")
    parser.add_argument("--vocabulary", type=int, default=20000, help="conversations to collect from")
    parser.add_argument("--examine", type=int, default=400, help="steps between examinations")
    parser.add_argument("--threads", type=int, default=2)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
