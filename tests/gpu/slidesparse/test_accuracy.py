"""Evaluation on a GPU: the figures of the CPU, and W8A8 as simulated there."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from eval_models import learned_model, make_text, make_tokenizer

from slidesparse.accuracy.evaluate import evaluate, variants
from slidesparse.accuracy.simulate import simulated
from slidesparse.accuracy.text import evaluation_windows
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType
from slidesparse.recipe import Method


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
def test_simulated_linear(seed: int, dtype: DType, model_dtype: torch.dtype) -> None:
    linear = torch.nn.Linear(129, 77).to(model_dtype)
    x = torch.randn(3, 7, 129).to(model_dtype)
    with torch.no_grad():
        with simulated({"it": linear}, dtype):
            wanted = linear(x)
        linear.cuda()
        with simulated({"it": linear}, dtype):
            found = linear(x.cuda())
    rtol = 1e-4 if model_dtype is torch.float32 else 2**-7
    close = torch.isclose(found.cpu(), wanted, rtol=rtol, atol=1e-4)
    # A value between two steps of the grid may fall to either.
    assert close.float().mean() > 0.99


def test_every_variant(seed: int) -> None:
    model: Any = learned_model(20)
    ids = torch.tensor(make_tokenizer()(make_text(900, seed=7))["input_ids"])
    windows = evaluation_windows(ids, 48)
    calibration = torch.tensor(make_tokenizer()(make_text(32 * 40, seed=8))["input_ids"])
    wanted = variants((DENSE, Pattern.parse("6:8")), tuple(Method), (None, DType.FP8, DType.INT8))
    arguments = (windows, wanted, calibration.view(32, 40))
    expected = list(evaluate(model, *arguments))
    found = list(evaluate(model.cuda(), *arguments, batch=4))
    for here, there in zip(found, expected, strict=True):
        assert here.metrics.loss == pytest.approx(there.metrics.loss, rel=1e-2), str(here.variant)
        assert here.metrics.agreement == pytest.approx(there.metrics.agreement, abs=0.05)
        assert here.zeros == pytest.approx(there.zeros, abs=1e-3)
