"""Torch's side of a sweep: one compilation of each linear serves every M."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from slidesparse.bench.sweep import torch_model as sweep_torch
from slidesparse.bench.sweep.chain import Chain
from slidesparse.bench.sweep.torch_model import TorchFunctions, TorchMember
from slidesparse.models import ModelSpec
from slidesparse.pattern import DENSE
from slidesparse.problem import DType

SPEC = ModelSpec("small", "llama", 64, 2, 96, 4, 2, 16, 128, "here", qkv_bias=True)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile with Dynamo only: what Inductor makes of it does not matter here, and takes long."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(sweep_torch, "FIRST_M", 256)
    torch.compiler.reset()
    counters.clear()
    # The functions raise the limits of the whole process.
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        yield


def compilations() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        # One row is a case of its own; torch._int_mm needs padding below 17.
        (DType.FP8, {1: 4, 7: 8, 16: 8, 17: 8, 512: 8, 1000: 8}),
        (DType.INT8, {1: 4, 7: 8, 16: 8, 17: 12, 512: 12, 1000: 12}),
    ],
)
def test_each_of_four_linears_is_compiled_once_for_all_m(
    dtype: DType, expected: dict[int, int]
) -> None:
    plain = Chain(
        *(
            SPEC,
            SPEC.linears(),
            DENSE,
            partial(TorchMember, functions=TorchFunctions(dtype, False)),
        ),
        *(torch.device("cpu"), 3, 0, True),
    )
    functions = TorchFunctions(dtype, compiles=True)
    chain = Chain(
        *(SPEC, SPEC.linears(), DENSE, partial(TorchMember, functions=functions)),
        *(torch.device("cpu"), 3, 0, True),
    )
    found = {}
    for m in expected:
        step = chain.inputs(m)
        assert torch.equal(step(), plain.inputs(m)())
        once = compilations()
        step()
        assert compilations() == once, f"M={m} is compiled anew"
        found[m] = once
    assert found == expected


def test_what_runs_is_named() -> None:
    assert TorchFunctions(DType.INT8, compiles=False).how.startswith("eager, torch._int_mm")
