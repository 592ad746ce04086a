"""Bitmask weights unpacked on a GPU: what the CPU gives, and refusals with the same values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_checkpoints import bitmask
from two_four_models import two_four

from slidesparse.checkpoint import bitmask as module
from slidesparse.checkpoint.bitmask import dense_weights, unpack_bitmask
from slidesparse.errors import CheckpointError

CUDA = torch.device("cuda", 0)
DTYPES = [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8]


def weight(rows: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    return two_four(torch.randn(rows, k) * 20).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 4), (7, 136), (129, 4096)])
def test_unpacked_on_the_gpu(
    seed: int, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    w = weight(*shape, dtype)
    for at_once in (1 << 24, 3 * shape[1]):
        monkeypatch.setattr(module, "ELEMENTS_AT_ONCE", at_once)
        parts = bitmask("x", w)
        made = dict(dense_weights(parts.items(), device=CUDA))["x.weight"]
        assert made.device == CUDA
        assert torch.equal(made.cpu().float(), w.float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_that_lie_on_the_gpu(seed: int, dtype: torch.dtype) -> None:
    w = weight(16, 64, dtype)
    parts = {name: part.to(CUDA) for name, part in bitmask("x", w).items()}

    def reused() -> Iterator[tuple[str, torch.Tensor]]:
        """A reader that overwrites a buffer once the next tensor is asked for."""
        for name, part in parts.items():
            yield name, part
            part.zero_()

    made = dict(dense_weights(reused(), device=CUDA))["x.weight"]
    assert torch.equal(made.cpu().float(), w.float())


def test_refused_on_the_gpu(seed: int) -> None:
    parts = bitmask("x", weight(3, 16, torch.int8))
    parts["x.bitmask"][1, 1] = 0x37
    with pytest.raises(CheckpointError, match=r"marks 3 of columns 8 to 11 of row 1"):
        unpack_bitmask("x", *(part.to(CUDA) for part in parts.values()), two_four=True)
