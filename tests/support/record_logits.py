"""Record golden values from transformers, so that the default tests need no torch.

    python -m tests.support.record_logits

writes tests/data/golden_logits.npz: for each case of `shapes.GOLDEN` the digest of the weights
it was made from, every token's argmax, and the logits at some positions (all round the window's
multiples) and some rows of the vocabulary; and YaRN's frequencies for gpt-oss-20b's config.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.spec.released import CONFIGS
from tests.support.checkpoints import write_checkpoint
from tests.support.shapes import CASES, GOLDEN, Case

FILE = Path(__file__).parent / "data" / "golden_logits.npz"
ROWS = 192


def written(case: Case, folder: Path) -> Path:
    """The case's checkpoint, in `folder`, which must not exist."""
    return write_checkpoint(folder, case.shape, seed=case.seed, shard_bytes=1 << 20)


def digest(folder: Path) -> str:
    """Of the config and all tensors' bytes."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def positions(case: Case) -> list[int]:
    """The first and last tokens, and those round every multiple of the window."""
    window, length = case.shape.window, case.length
    edges = {m + d for m in range(0, length + 1, window) for d in (-2, -1, 0, 1, 2)}
    wanted = edges | {length // 3, 2 * length // 3, length - 2, length - 1}
    return sorted(p for p in wanted if 0 <= p < length)


def rows(case: Case) -> NDArray[np.int64]:
    """Vocabulary rows, evenly spread and with both ends."""
    count = min(ROWS, case.shape.vocab)
    return np.linspace(0, case.shape.vocab - 1, count).round().astype(np.int64)


def _record_case(name: str, folder: Path) -> dict[str, Any]:
    import torch

    from tests.support import transformers_oracle

    case = CASES[name]
    written(case, folder)
    model = transformers_oracle.load(folder)
    with torch.no_grad():
        logits = model(torch.tensor([case.ids()])).logits[0].numpy()
    assert logits.dtype == np.float32
    return {
        f"{name}/weights": np.array(digest(folder)),
        f"{name}/argmax": logits.argmax(axis=-1).astype(np.int32),
        f"{name}/logits": logits[positions(case)][:, rows(case)],
    }


def _record_yarn() -> dict[str, Any]:
    from transformers import GptOssConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = json.loads(CONFIGS["openai/gpt-oss-20b"].read_text(encoding="utf-8"))
    fields.pop("quantization_config", None)
    recorded: dict[str, Any] = {}
    for truncate in (False, True):
        scaling = {**fields["rope_scaling"], "truncate": truncate}
        config = GptOssConfig(**{**fields, "rope_scaling": scaling})
        frequencies, magnitude = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
        recorded[f"yarn/truncate_{truncate}"] = frequencies.numpy()
        recorded["yarn/magnitude"] = np.array(magnitude)
    return recorded


def main() -> None:
    recorded = _record_yarn()
    with TemporaryDirectory() as temporary:
        for name in GOLDEN:
            recorded |= _record_case(name, Path(temporary) / name)
    np.savez_compressed(FILE, **recorded)
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
