"""llama.cpp and mlx-lm on the weights that ours reads; each measurement in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MLX_LM_PROMPT = 32  # tokens; its operations for CPUs take seconds for each
MLX_LM_STEPS = 2


@dataclass(frozen=True)
class Asked:
    """What is measured: lengths of prompts and of contexts in tokens, numbers of streams, tokens
    that are decoded, and threads."""

    prompts: Sequence[int]
    streams: Sequence[int]
    contexts: Sequence[int]
    steps: int
    threads: int


def spawn(*command: str) -> tuple[str, float]:
    """What a command writes, and the most memory it held, in GiB; its complaints are shown."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return text, round(usage.ru_maxrss / 2**20, 2)


def llama(folder: Path, file: Path, asked: Asked) -> dict[str, Any]:
    """llama.cpp, whose llama-bench and llama-batched-bench are in `folder`."""
    common = ["-m", str(file), "-t", str(asked.threads)]
    bench = [str(folder / "llama-bench"), *common, "-o", "json", "-r", "2"]
    read, peak = spawn(*bench, "-p", _list(asked.prompts), "-n", "0")
    written, _ = spawn(*bench, "-p", "0", "-n", str(asked.steps), "-d", _list([0, *asked.contexts]))
    several = ["-npp", "1", "-ntg", str(asked.steps), "-npl", _list(asked.streams)]
    size = ["-c", str(max(asked.streams) * (asked.steps + 8)), "--output-format", "jsonl"]
    together, _ = spawn(str(folder / "llama-batched-bench"), *common, *several, *size)
    rows = [json.loads(line) for line in together.splitlines() if line.startswith("{")]
    at = {found["n_depth"]: round(found["avg_ts"], 2) for found in json.loads(written)}
    return {
        "variant": json.loads(read)[0]["build_commit"],
        "threads": asked.threads,
        "decode_tok_s": {row["pl"]: round(row["speed_tg"], 2) for row in rows} | {1: at.pop(0)},
        "decode_at_tok_s": at,
        "prefill_tok_s": {f["n_prompt"]: round(f["avg_ts"], 2) for f in json.loads(read)},
        "peak_gib": peak,
    }


def mlx_lm(folder: Path) -> dict[str, Any]:
    """mlx-lm, of one stream and one short prompt."""
    text, peak = spawn(sys.executable, "-m", "benchmarks.cpu.peers", str(folder))
    return {**json.loads(text.splitlines()[-1]), "peak_gib": peak}


def main() -> None:
    """The process of mlx-lm, in float32: in bfloat16 128 tokens take longer than 18 minutes."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    begun = time.perf_counter()
    model, _ = load_model(Path(sys.argv[1]))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    loaded = time.perf_counter() - begun
    ids = np.random.default_rng(0).integers(0, model.args.vocab_size, MLX_LM_PROMPT)
    cache, begun = make_prompt_cache(model), time.perf_counter()
    mx.eval(model(mx.array(ids)[None], cache=cache))
    read, token = time.perf_counter(), 0
    for _ in range(MLX_LM_STEPS):
        token = int(mx.argmax(model(mx.array([[token]]), cache=cache)[0, -1]).item())
    written = time.perf_counter()
    figures = {
        "load_s": round(loaded, 2),
        "decode_tok_s": {1: round(MLX_LM_STEPS / (written - read), 2)},
        "prefill_tok_s": {MLX_LM_PROMPT: round(MLX_LM_PROMPT / (read - begun), 2)},
    }
    print(json.dumps(figures))


def _list(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


if __name__ == "__main__":
    main()
