"""64-bit row offsets, for what needs them: told by size and stride, of every operand."""

from __future__ import annotations

import importlib

import pytest
import torch
from kernel_variants import VARIANTS

from slidesparse.kernel_problem import Op
from slidesparse.kernels.config import Config
from slidesparse.kernels.launch import needs_wide
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import INT32_MAX

SIX_EIGHT = Pattern.parse("6:8")
CONFIG = Config(block=64, warps=1)
FAR = 2**30
"""Between rows: the third lies at 2^31."""


def rows(m, k=16, stride=None, dtype=torch.bfloat16):
    """Rows without memory."""
    return torch.empty_strided((m, k), (stride or k, 1), dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("tensor", "wide"),
    [
        (rows(INT32_MAX, 1), False),
        (rows(INT32_MAX + 1, 1), True),
        (rows(2**15, 2**16 - 1), False),
        (rows(2**15, 2**16), True),
        (rows(2**15, 2**16, dtype=torch.int8), True),
        # 48 elements.
        (rows(3, 16, FAR), True),
        (rows(3, 16, 2**20), False),
        (rows(0, 16), False),
    ],
    ids=lambda value: f"{tuple(value.shape)}-{value.stride(0)}" if hasattr(value, "shape") else "",
)
def test_elements_beyond_32_bits_need_wide_offsets(tensor, wide):
    assert needs_wide(tensor) is wide
    assert needs_wide(rows(3), tensor) is wide
    assert needs_wide(tensor, rows(3)) is wide


MODULES = {
    Op.QUANTIZE: "quant",
    Op.RMSNORM_QUANTIZE: "rmsnorm_quant",
    Op.SILU_MUL_QUANTIZE: "silu_mul_quant",
    Op.DEQUANTIZE: "dequant",
    Op.DEQUANT_RMSNORM_QUANTIZE: "rmsnorm_quant",
    Op.DEQUANT_SILU_MUL_QUANTIZE: "silu_mul_quant",
}
"""Where the kernel of an operation is launched."""


@pytest.fixture
def launched(monkeypatch):
    """WIDE of every launch; nothing runs."""
    told = []
    for name in set(MODULES.values()):
        module = importlib.import_module(f"slidesparse.kernels.{name}")
        monkeypatch.setattr(module, "launch", lambda *_, WIDE, **fixed: told.append(WIDE))
    return told


def operands(variant):
    """Three rows of each operand and output, by name."""
    t = {variant.first: rows(3, 32 if variant.halves else 16)}
    if "residual" in variant.operands:
        t["residual"] = rows(3)
    dtype = variant.targets[-1]
    pattern = SIX_EIGHT if variant.op.quantizes else DENSE
    t["q"] = rows(3, pattern.expanded_k(16), dtype=dtype)
    keeps = variant.op is Op.DEQUANT_RMSNORM_QUANTIZE or variant.op is Op.RMSNORM_QUANTIZE
    if keeps and ("residual" in t or variant.op.dequantizes):
        t["hidden"] = rows(3)
    return t, dtype, pattern


def start(variant, t, dtype, pattern, wide=None):
    """Launch on these operands and vectors that go with them."""
    width = t[variant.first].shape[1]
    vector = torch.empty(width, device="meta")
    vectors = {"row_scale": vector[:3], "column_scale": vector, "weight": vector[:16]}
    vectors |= {"bias": vector, "scale": vector[:1]}
    wanted = {
        name: vectors[name]
        for name in ("row_scale", "column_scale", *variant.operands)
        if name in vectors
    }
    outs = (t["q"], vector[:3], *([t["hidden"]] if "hidden" in t else []))
    if not variant.op.quantizes:
        outs = outs[:1]
    variant.launch({**t, **wanted}, dtype, pattern, outs, CONFIG, wide)


def names_of(variant):
    return list(operands(variant)[0])


@pytest.mark.parametrize(
    ("variant", "name"),
    [(variant, name) for variant in VARIANTS for name in names_of(variant)],
    ids=lambda value: getattr(value, "name", value),
)
def test_each_operand_alone_makes_offsets_wide(variant, name, launched):
    t, dtype, pattern = operands(variant)
    start(variant, t, dtype, pattern)
    t[name] = rows(3, t[name].shape[1], FAR, t[name].dtype)
    start(variant, t, dtype, pattern)
    assert launched == [False, True]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_launch_can_be_told(variant, launched):
    t, dtype, pattern = operands(variant)
    for wide in (True, False):
        start(variant, t, dtype, pattern, wide)
    t["q"] = rows(3, t["q"].shape[1], FAR, t["q"].dtype)
    start(variant, t, dtype, pattern, False)
    assert launched == [True, False, False]
