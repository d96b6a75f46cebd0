"""A recipe: which modules besides the experts are quantized by MLX, and to how many bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gptoss_mlx.spec.config import ModelConfig, QuantizationSpec

GROUP = 64
ROUTER_BITS = 8
"""A router picks experts by comparing its logits: fewer bits would change which ones it picks."""


@dataclass(frozen=True)
class Recipe:
    """Bits by the kind of module; None keeps bfloat16."""

    name: str
    attention: int | None = None
    embedding: int | None = None
    head: int | None = None
    router: int | None = None

    def of(self, module: str) -> QuantizationSpec | None:
        """The spec of a module such as "lm_head" or "model.layers.0.self_attn.q_proj"."""
        bits = self._bits(module)
        return None if bits is None else QuantizationSpec(bits, GROUP, "affine")

    def _bits(self, module: str) -> int | None:
        if module == "lm_head":
            return self.head
        if module == "model.embed_tokens":
            return self.embedding
        if module.endswith(".mlp.router"):
            return None if self.router is None else max(ROUTER_BITS, self.router)
        return self.attention


RECIPES: Mapping[str, Recipe] = {
    "bf16": Recipe("bf16"),
    **{str(bits): Recipe(str(bits), bits, bits, bits, bits) for bits in (8, 6, 5, 4)},
    "mixed": Recipe("mixed", attention=8, embedding=8, head=6),
}
"""`mixed` spends bits where `benchmarks.quality --explore` finds that they count. Few bits for the
embedding harm quality most, for everything is computed from it, and save no memory here, where its
rows stay in the file. The head loses least quality for the bytes it saves in memory and in every
token's reads. The router takes next to no bytes.
"""


def quantization(recipe: Recipe, config: ModelConfig) -> dict[str, Any] | None:
    """config.json's `quantization`: the experts' format by default, every other module by name.

    A matrix whose width is no multiple of the group stays in bfloat16. None for a recipe that
    quantizes nothing: config.json then stays as released.
    """
    specs = {
        module: recipe.of(module) if width % GROUP == 0 else None
        for module, width in matrices(config)
    }
    if all(spec is None for spec in specs.values()):
        return None
    section: dict[str, Any] = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    for module, spec in specs.items():
        section[module] = False if spec is None else asdict(spec)
    return section


def matrices(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """Every module with a weight matrix outside the experts, and the width of its rows."""
    yield "model.embed_tokens", config.hidden_size
    for layer in range(config.num_hidden_layers):
        for part in ("q_proj", "k_proj", "v_proj"):
            yield f"model.layers.{layer}.self_attn.{part}", config.hidden_size
        width = config.num_attention_heads * config.head_dim
        yield f"model.layers.{layer}.self_attn.o_proj", width
        yield f"model.layers.{layer}.mlp.router", config.hidden_size
    yield "lm_head", config.hidden_size
