"""The released config.json and tokenizer files, for sources without Hugging Face's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.export import write_tokenizer
from gptoss_mlx.spec.config import FULL, SLIDING, ModelConfig

from ..source import RELEASED_QUANTIZATION

RETURN, END_OF_TEXT, CALL, START_OF_TEXT = 200002, 199999, 200012, 199998
_TOKENS = 201088
_NUMBER_LIMIT = 1e15


def released_config_of(
    path: Path, fields: Mapping[str, Any], yarn: Mapping[str, float], swiglu_limit: float
) -> dict[str, Any]:
    """The released config.json for a model of these sizes.

    fields: sizes under their names in config.json, with `initial_context_length`. `path` opens the
    message of the CheckpointError for an invalid config.
    """
    for name, value in {**fields, **yarn}.items():
        check_number(path, name, value)
    original = fields["initial_context_length"]
    vocabulary, active = fields["vocab_size"], fields["num_experts_per_tok"]
    config = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": min(RETURN, vocabulary - 1),
        "experts_per_token": active,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": int(original * yarn["factor"]),
        "model_type": "gpt_oss",
        "output_router_logits": False,
        "pad_token_id": min(END_OF_TEXT, vocabulary - 1),
        "quantization_config": RELEASED_QUANTIZATION,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            **yarn,
            "original_max_position_embeddings": original,
            "rope_type": "yarn",
            "truncate": False,
        },
        "router_aux_loss_coef": 0.9,
        "swiglu_limit": swiglu_limit,
        "tie_word_embeddings": False,
        "use_cache": True,
        **fields,
    }
    layers = ModelConfig.from_values(config, path).num_hidden_layers
    return {**config, "layer_types": [FULL if i % 2 else SLIDING for i in range(layers)]}


def check_number(path: Path, name: str, value: Any) -> None:
    """Raises CheckpointError unless the value is a number; its range is checked by ModelConfig."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value <= _NUMBER_LIMIT):
        raise CheckpointError(f"{path}: {name} is {shown(value)}, not a number")


def tokenizer_files(model: ModelConfig) -> dict[str, bytes]:
    """Tokenizer and generation config as this package writes them; none for another vocabulary."""
    if model.vocab_size != _TOKENS:
        return {}
    generation = {
        "bos_token_id": START_OF_TEXT,
        "do_sample": True,
        "eos_token_id": [RETURN, END_OF_TEXT, CALL],
        "pad_token_id": END_OF_TEXT,
    }
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    return files | {"generation_config.json": (json.dumps(generation, indent=2) + "\n").encode()}
