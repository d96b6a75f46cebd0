"""Facts of a model for catalogues: its size and what it can do, also before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.server.registry import ServedModel
from gptoss_mlx.spec.config import ModelConfig
from gptoss_mlx.spec.released import CONFIGS


@dataclass(frozen=True)
class Facts:
    """config: None if it is not known before the model is loaded. context: tokens of prompt and
    answer that are served, else that the model allows; 0 if not known. nbytes: of the weights, 0 if
    not known. speaks_harmony: whether it chats, thinks and calls tools, or only continues texts.
    """

    publisher: str
    config: ModelConfig | None
    context: int
    nbytes: int
    speaks_harmony: bool

    @property
    def parameters(self) -> int:
        """The number of weights; 0 if not known."""
        return 0 if self.config is None else _parameters(self.config)

    @property
    def parameter_size(self) -> str:
        """As catalogues show it: "20.9B", "8.0M"; "" if not known."""
        count = self.parameters
        if count >= 1e9:
            return f"{count / 1e9:.1f}B"
        return f"{count / 1e6:.1f}M" if count else ""

    @property
    def quantization(self) -> str:
        """Of the experts, and of the rest if it is quantized as well; "" if not known."""
        if self.config is None:
            return ""
        rest = self.config.quantization
        spec = None if rest is None else rest.default
        return "MXFP4" if spec is None else f"MXFP4+Q{spec.bits}"


def facts_of(entry: ServedModel) -> Facts:
    config, engine = _config(entry), entry.engine
    most = 0 if config is None else config.max_position_embeddings
    return Facts(
        publisher=entry.publisher,
        config=config,
        context=entry.context or most,
        nbytes=entry.total,
        speaks_harmony=engine is None or engine.tokenizer.harmony is not None,
    )


def _config(entry: ServedModel) -> ModelConfig | None:
    if entry.engine is not None:
        return entry.engine.config
    path = CONFIGS.get(entry.id, Path(entry.id) / "config.json")
    try:
        return ModelConfig.from_file(path)
    except CheckpointError:  # which whoever asks for the model is told
        return None


def _parameters(config: ModelConfig) -> int:
    hidden, experts = config.hidden_size, config.num_local_experts
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    attention = (queries + 2 * keys) * (hidden + 1) + (queries + 1) * hidden
    expert = 2 * config.intermediate_size * (hidden + 1) + (config.intermediate_size + 1) * hidden
    layer = attention + config.num_attention_heads + experts * (expert + hidden + 1) + 2 * hidden
    return config.num_hidden_layers * layer + (2 * config.vocab_size + 1) * hidden
