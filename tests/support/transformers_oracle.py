"""transformers' GptOssForCausalLM in float32 on a checkpoint, with experts dequantized here.

transformers' own MXFP4 loading asks for accelerate and a GPU; the dequantization below is the
definition of the format, value by value, in float32, where it is exact.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CODES = np.array(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32
)


def dequantize(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """MXFP4 [..., rows, n, 16] blocks and [..., rows, n] scales -> [..., rows, 32 n] values."""
    low, high = _CODES[blocks & 15], _CODES[blocks >> 4]
    values = np.stack([low, high], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = np.ldexp(values, scales.astype(np.int32)[..., None] - 127)
    return values.reshape(*blocks.shape[:-2], -1)


def load(folder: Path) -> Any:
    """The model in eval mode, attention "eager"; safetensors' own library reads the files."""
    import torch
    from safetensors import safe_open
    from transformers import GptOssConfig, GptOssForCausalLM

    state: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            state |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in [name for name in state if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        blocks, scales = state.pop(name).numpy(), state.pop(f"{stem}_scales").numpy()
        # transformers keeps experts as [expert, in, out].
        state[stem] = torch.from_numpy(dequantize(blocks, scales)).transpose(1, 2).contiguous()
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fields.pop("quantization_config", None)
    config = GptOssConfig(**fields, attn_implementation="eager", dtype="float32")
    model = GptOssForCausalLM(config).float().eval()
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model
