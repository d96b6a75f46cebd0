"""Held-out accuracy of the shipped tiny model by skill, through the package's own engine.

`python -m convert.tiny.skills` generates greedily, with headers constrained as users have them, and
prints a table and, last, one JSON line.  An answer is right if its text is the expected one; JSON
is compared as values, a call by its function and arguments.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from random import Random
from typing import Any

import gptoss_mlx
from convert.tiny import phrasings
from convert.tiny.conversations import MAKERS, encode, make
from convert.tiny.example import Example
from gptoss_mlx.harmony import Encoding

OTHER_WORDS = "other words"
"""Phrasings that no training saw (`phrasings`)."""
KINDS = (*(kind for kind in MAKERS if kind != "tell"), OTHER_WORDS)


def is_right(example: Example, text: str, calls: list[tuple[str, str]]) -> bool:
    """Whether an answer's text and its calls (name, arguments) are the expected ones."""
    expected = [
        (call["function"]["name"], call["function"]["arguments"])
        for call in example.reply.get("tool_calls", ())
    ]
    if len(expected) != len(calls):
        return False
    for (name, arguments), (called, given) in zip(expected, calls, strict=True):
        if name != called or not _same_json(arguments, given):
            return False
    content = example.reply.get("content") or ""
    if example.prompt.response_format is not None and content:
        return _same_json(content, text)
    return bool(expected) or text.strip() == content


def _same_json(expected: str, given: str) -> bool:
    """Whether two texts are the same JSON, or where they are none, the same."""
    try:
        return bool(json.loads(expected) == json.loads(given))
    except ValueError:
        return expected == given


def answer(engine: Any, encoding: Encoding, example: Example) -> tuple[str, list[tuple[str, str]]]:
    prompt = example.prompt
    result = engine.generate(
        encode(encoding, example)[0],
        max_tokens=200,
        temperature=0.0,
        tools=prompt.tools,
        response_format=prompt.response_format,
    )
    return result.text, [(call.name, call.arguments) for call in result.tool_calls]


def examine(
    model: str, count: int, seed: int, kinds: tuple[str, ...], show: bool
) -> dict[str, Any]:
    """Right answers, as parts of one, by skill and by reasoning effort."""
    engine, encoding = gptoss_mlx.load(model), Encoding()
    right: dict[str, list[bool]] = defaultdict(list)
    for kind in kinds:
        rng = Random(f"{seed} {kind}")
        for _ in range(count):
            foreign = kind == OTHER_WORDS
            example = phrasings.example(rng, True) if foreign else make(rng, True, kind)
            text, calls = answer(engine, encoding, example)
            good = is_right(example, text, calls)
            right[kind].append(good)
            right[f"effort {example.prompt.reasoning}"].append(good)
            if foreign:
                right[f"{kind}: {example.skill}"].append(good)
            if show and not good:
                user = example.prompt.messages[-1]["content"]
                print(f"  {kind}: {user[-90:]!r} -> {text!r} {calls}, not {dict(example.reply)}")
        print(f"{kind:14} {sum(right[kind]) / count:7.1%}", flush=True)
    return {key: round(sum(values) / len(values), 4) for key, values in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--count", type=int, default=100, help="cases of each skill")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--show", action="store_true", help="print what went wrong")
    args = parser.parse_args()
    start = time.time()
    shares = examine(args.model, args.count, args.seed, tuple(args.kind or KINDS), args.show)
    shares = {"cases": args.count, **shares, "seconds": round(time.time() - start)}
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
