"""What each recipe makes of each module, and what config.json then says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.models.checkpoint import expected_tensors
from gptoss_mlx.spec.config import ModelConfig, QuantizationSpec
from gptoss_mlx.spec.recipe import RECIPES, Recipe, matrices, quantization
from tests.convert.results import SHAPE
from tests.support.checkpoints import Shape, config_json

PATH = Path("config.json")
KINDS = {
    "model.embed_tokens": 0,
    "lm_head": 1,
    "model.layers.1.self_attn.q_proj": 2,
    "model.layers.1.self_attn.o_proj": 2,
    "model.layers.0.mlp.router": 3,
}
# embedding, head, attention, router
BITS: dict[str, tuple[int | None, ...]] = {
    "bf16": (None, None, None, None),
    "8": (8, 8, 8, 8),
    "6": (6, 6, 6, 8),
    "5": (5, 5, 5, 8),
    "4": (4, 4, 4, 8),
    "mixed": (8, 6, 8, None),
}


def _model(shape: Shape = SHAPE, **changes: Any) -> ModelConfig:
    return ModelConfig.from_values({**config_json(shape), **changes}, PATH)


def test_there_are_no_other_recipes() -> None:
    assert list(RECIPES) == ["bf16", "8", "6", "5", "4", "mixed"]
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {n: n for n in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_the_bits_of_every_kind_of_module(name: str) -> None:
    for module, place in KINDS.items():
        bits = BITS[name][place]
        wanted = None if bits is None else QuantizationSpec(bits, 64, "affine")
        assert RECIPES[name].of(module) == wanted, module


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_no_recipe_gives_a_router_less_than_eight_bits(bits: int) -> None:
    recipe = Recipe("other", bits, bits, bits, bits)
    spec = recipe.of("model.layers.7.mlp.router")
    assert spec == QuantizationSpec(8, 64, "affine")


@pytest.mark.parametrize("name", RECIPES)
def test_the_section_names_every_matrix_and_the_experts_format(name: str) -> None:
    model = _model()
    section = quantization(RECIPES[name], model)
    if name == "bf16":
        assert section is None
        return
    assert section is not None
    modules = {key: value for key, value in section.items() if "." in key or key == "lm_head"}
    rest = {key: value for key, value in section.items() if key not in modules}
    assert rest == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    names = {name for name, (_, shape) in expected_tensors(model, PATH).items() if len(shape) == 2}
    experts = {name for name in names if ".experts." in name}
    assert {f"{module}.weight" for module in modules} == names - experts
    for module, entry in modules.items():
        kind = next(k for k in KINDS if k.rpartition(".")[2][-5:] == module[-5:] or k == module)
        bits = BITS[name][KINDS[kind]]
        wanted = False if bits is None else {"bits": bits, "group_size": 64, "mode": "affine"}
        assert entry == wanted, module


def test_the_section_means_to_the_runtime_what_the_recipe_says() -> None:
    for recipe in RECIPES.values():
        section = quantization(recipe, _model())
        if section is not None:
            model = _model(quantization=section, quantization_config=section)
            assert model.quantization is not None
            for module, _ in matrices(model):
                assert model.quantization.of(module) == recipe.of(module)


def test_a_width_that_groups_do_not_fit_stays_in_bfloat16() -> None:
    """Hidden 96 is no multiple of 64; heads times their size are 128."""
    section = quantization(RECIPES["4"], _model(replace(SHAPE, hidden=96)))
    assert section is not None
    kept = {module for module, entry in section.items() if entry is False}
    quantized = {module for module, entry in section.items() if isinstance(entry, dict)}
    assert quantized == {f"model.layers.{layer}.self_attn.o_proj" for layer in (0, 1)}
    assert len(kept) == 2 + 2 * 4


def test_nothing_is_said_where_no_width_fits() -> None:
    shape = replace(SHAPE, hidden=96, heads=3, kv_heads=1)
    for recipe in RECIPES.values():
        assert quantization(recipe, _model(shape)) is None


def test_matrices_have_the_widths_of_the_config() -> None:
    model = _model(replace(SHAPE, hidden=96))
    tensors = expected_tensors(model, PATH)
    widths = {f"{module}.weight": width for module, width in matrices(model)}
    assert widths == {name: tensors[name][1][1] for name in widths}
    assert len(widths) == 2 + 2 * 5
