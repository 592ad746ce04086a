"""Our block in config.json: what was written comes back, anything else is refused or ignored."""

from __future__ import annotations

from typing import Any

import pytest

from slidesparse.checkpoint.config import check_source, converted_config, float_dtype, provenance
from slidesparse.errors import CheckpointError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method, Recipe

RECIPES = [
    Recipe(),
    Recipe(Pattern(2, 4), Method.SPARSEGPT, DType.INT8, ("lm_head", "o_proj")),
    Recipe(DENSE, Method.MAGNITUDE, None, (), {"model.layers.0.mlp.up_proj": Pattern(8, 10)}),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_recipe_comes_back(recipe: Recipe) -> None:
    made = converted_config(
        {"model_type": "llama", "slidesparse": 5}, recipe, (), {"permute": True}
    )
    known = provenance(made)
    assert known is not None
    assert known.recipe == recipe
    assert made["slidesparse"]["permute"] is True
    assert ("quantization_config" in made) == (recipe.dtype is not None)


def test_converting_again_replaces_what_was_said_before() -> None:
    first = converted_config({"a": 1}, RECIPES[0], ("lm_head",), {})
    again = converted_config(first, RECIPES[2], (), {})
    assert "quantization_config" not in again
    assert provenance(again).recipe == RECIPES[2]  # type: ignore[union-attr]


def test_other_checkpoints_have_no_provenance() -> None:
    assert provenance({"model_type": "llama"}) is None


BLOCK: dict[str, Any] = converted_config({}, RECIPES[0], (), {})["slidesparse"]


@pytest.mark.parametrize(
    "block",
    [
        5,
        [],
        {},
        {**BLOCK, "pattern": "5:8"},
        {**BLOCK, "method": "luck"},
        {**BLOCK, "dtype": "fp4"},
        {**BLOCK, "layers": [1]},
        {**BLOCK, "layers": {"a": None}},
        {**BLOCK, "keep": 3},
    ],
)
def test_a_damaged_block(block: object) -> None:
    with pytest.raises(CheckpointError, match=r"'slidesparse' block that cannot be read .*again$"):
        provenance({"slidesparse": block})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float16"}, "F16"),
        ({"torch_dtype": "float32"}, "F32"),
        ({"torch_dtype": "torch.bfloat16"}, "BF16"),
        ({"text_config": {"dtype": "float16"}}, "F16"),
        ({"dtype": "float8_e4m3fn"}, "BF16"),
        ({"text_config": 5}, "BF16"),
        ({}, "BF16"),
    ],
)
def test_the_dtype_of_what_is_not_quantised(config: dict[str, Any], expected: str) -> None:
    assert float_dtype(config) == expected


def test_sources_that_may_be_read() -> None:
    check_source({})
    check_source({"quantization_config": {"quant_method": "compressed-tensors"}})
    check_source({"compression_config": {"sparsity_config": {"format": "sparse-24-bitmask"}}})
    for found, name in (({"quant_method": "bitsandbytes"}, "bitsandbytes"), ("odd", "odd")):
        with pytest.raises(CheckpointError, match=f"quantised by '{name}'; read are BF16, FP16"):
            check_source({"quantization_config": found})
