"""One job in this process: `python -m benchmarks.mac.worker JOB OPTIONS`, both given by rows.py.

The last line printed is a JSON object of figures, or {"absent": why}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from benchmarks.mac import kernels, machine, models
from benchmarks.mac.rows import Absent

JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "machine": machine.facts,
    "bandwidth": machine.bandwidth,
    "launches": machine.launches,
    "cache": machine.cache_update,
    "check": kernels.check,
    "kernel": kernels.measure,
    "checkpoint": models.make,
    "generate": models.generate,
    "llama-bench": models.llama_bench,
}


def main(job: str, options: str) -> None:
    """Do it. device "cpu" in the options: compute there, whatever the default."""
    values = json.loads(options)
    if values.pop("device", None) == "cpu":
        mx.set_default_device(mx.Device(mx.cpu))
    try:
        print(json.dumps(JOBS[job](**values)))
    except Absent as absent:
        print(json.dumps({"absent": str(absent)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
