"""torch's dtypes are those that problems name."""

import pytest
import torch

from slidesparse.problem import DType
from slidesparse.tensors import TOP, TORCH_DTYPES


@pytest.mark.parametrize("dtype", DType)
def test_sizes_agree(dtype):
    assert TORCH_DTYPES[dtype].itemsize == dtype.bytes


def test_top_is_the_largest_magnitude_of_both_signs():
    assert TOP[DType.FP8] == torch.finfo(torch.float8_e4m3fn).max
    assert TOP[DType.INT8] == torch.iinfo(torch.int8).max  # -128 is left out on purpose.
