"""What vLLM refuses: groups of AWQ weights that ranks tear apart, INT8 on Blackwell."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slidesparse.capacity import Quant, Settings
from slidesparse.capacity.refused import refusals, torn_layer
from slidesparse.pattern import Pattern

Make = Callable[..., Settings]


@pytest.mark.parametrize(
    ("model", "tp", "quant", "torn"),
    [
        ("qwen2.5-14b", 8, Quant.AWQ, "down"),  # 13,824 / 8 = 1,728 = 13.5 x 128.
        ("qwen2.5-14b", 4, Quant.AWQ, None),
        ("qwen2.5-14b", 8, Quant.GPTQ, None),
        ("qwen3-30b-a3b", 8, Quant.AWQ, None),  # Experts of 96: vLLM makes the groups smaller.
    ],
)
def test_ranks_may_tear_the_groups_of_awq(
    model: str, tp: int, quant: Quant, torn: str | None, make_settings: Make
) -> None:
    found = torn_layer(make_settings(model, tp=tp, quant=quant))
    assert (found and found.name) == torn


@pytest.mark.parametrize(("gpu", "refused"), [("h200", False), ("b200", True), ("rtx-5080", True)])
def test_blackwell_refuses_int8_of_vllm_but_not_ours(
    gpu: str, refused: bool, make_settings: Make
) -> None:
    stock = make_settings("llama3.2-1b", gpu, quant=Quant.INT8)
    assert any("issue 54311" in line for line in refusals(stock)) is refused
    six = Pattern.parse("6:8")
    assert not list(refusals(make_settings("llama3.2-1b", gpu, quant=Quant.INT8, pattern=six)))
    assert not list(refusals(make_settings("llama3.2-1b", gpu, quant=Quant.FP8)))
