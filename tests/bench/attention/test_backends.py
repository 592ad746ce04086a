"""Backends of attention: what torch says against one, the layouts, and vLLM's real signature."""

from __future__ import annotations

import ast
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from slidesparse.bench.attention.backends import (
    BACKENDS,
    EXPANDED,
    GROUPED,
    FlashAttention3,
    Refused,
    VllmFlashAttention3,
    backends_of,
    expanded,
    why_refused,
)
from slidesparse.bench.attention.check import Operands
from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.cli import attention_options
from slidesparse.problem import DType

GROUP = AttentionProblem(2, 4, 2, 33, 16, True, DType.BF16)
INSIDE = " (Triggered internally at /build/aten/src/sdp_utils.cpp:{}.)"
ABORT = "No available kernel. Aborting execution."

# The form of torch's warnings when everything but one backend is switched off, which it refuses.
WARNINGS = [
    "Memory efficient kernel not used because:" + INSIDE.format(1),
    "Memory Efficient attention has been runtime disabled." + INSIDE.format(2),
    "Flash attention kernel not used because:" + INSIDE.format(3),
    "Expected query, key and value to all be of dtype:\n {Half, BFloat16}." + INSIDE.format(4),
    "CuDNN attention kernel not used because:" + INSIDE.format(5),
    "CuDNN attention has been runtime disabled." + INSIDE.format(6),
]


@pytest.fixture
def operands(seed: int) -> Operands:
    def values(heads: int) -> torch.Tensor:
        return torch.randn(2, heads, 33, 16, dtype=torch.bfloat16)

    return Operands(values(4), values(2), values(2))


def wanted(it: Operands) -> torch.Tensor:
    return scaled_dot_product_attention(it.q, it.k, it.v, is_causal=True, enable_gqa=True)


def test_only_the_reasons_against_the_backend_itself_are_told() -> None:
    assert why_refused("flash attention", WARNINGS, ABORT) == (
        "Expected query, key and value to all be of dtype: {Half, BFloat16}."
    )
    assert why_refused("memory efficient", WARNINGS, ABORT) == ABORT
    assert why_refused("flash attention", [], ABORT + "\nException raised from") == ABORT


def test_the_names_of_the_command_line_are_those_of_the_backends() -> None:
    names = tuple(dict.fromkeys(it.name.partition("-")[0] for it in BACKENDS))
    assert names == attention_options.BACKENDS
    assert [it.name for it in backends_of(("math", "fa3"))] == ["math", "fa3", "fa3-vllm"]


@pytest.mark.parametrize("name", ["flash", "math"])
def test_torch_runs_grouped_queries_both_ways(name: str, operands: Operands) -> None:
    (backend,) = backends_of((name,))
    ways = list(backend.ways(GROUP))
    assert [way.how for way in ways] == [GROUPED, EXPANDED]
    for way in ways:
        out = way.run(way.prepare(operands))
        torch.testing.assert_close(out, wanted(operands), rtol=0, atol=1e-2)


def test_what_is_not_for_a_cpu_says_so(operands: Operands) -> None:
    (backend,) = backends_of(("efficient",))
    way = next(iter(backend.ways(GROUP)))
    with pytest.raises(Refused, match=r"No (viable backend|available kernel)"):
        way.run(operands)


def test_each_head_of_keys_goes_to_its_neighbours(operands: Operands) -> None:
    made = expanded(operands, GROUP)
    assert made.k.shape == (2, 4, 33, 16)
    assert torch.equal(made.k[:, 1], operands.k[:, 0])
    assert torch.equal(made.v[:, 2], operands.v[:, 1])


def test_the_math_backend_needs_all_scores_twice() -> None:
    (math,) = backends_of(("math",))
    assert math.scratch(AttentionProblem(16, 96, 96, 4096, 128, False, DType.BF16)) == (
        2 * 4 * 16 * 96 * 4096**2
    )
    assert backends_of(("flash",))[0].scratch(GROUP) == 0


@pytest.mark.parametrize("with_lse", [False, True])
def test_flash_attention_3_gets_its_layout(
    operands: Operands, monkeypatch: pytest.MonkeyPatch, with_lse: bool
) -> None:
    """The package runs on Hopper only; a stand-in takes its arguments and gives its results."""

    def flash_attn_func(q: Any, k: Any, v: Any, causal: bool) -> Any:
        assert causal
        assert all(part.is_contiguous() for part in (q, k, v))
        it = Operands(*(part.transpose(1, 2) for part in (q, k, v)))
        out = wanted(it).transpose(1, 2).contiguous()
        return (out, None) if with_lse else out

    module = ModuleType("flash_attn_interface")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    (way,) = FlashAttention3().ways(GROUP)
    torch.testing.assert_close(way.run(way.prepare(operands)), wanted(operands))


def stand_in_for_vllm(monkeypatch: pytest.MonkeyPatch, reason: str | None, function: Any) -> None:
    inner = ModuleType("vllm.vllm_flash_attn.flash_attn_interface")
    inner.fa_version_unsupported_reason = lambda version: reason  # type: ignore[attr-defined]
    package = ModuleType("vllm.vllm_flash_attn")
    package.flash_attn_varlen_func = function  # type: ignore[attr-defined]
    for name, module in (("vllm", ModuleType("vllm")), (package.__name__, package)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, inner.__name__, inner)


def test_vllms_copy_gets_its_sequences_end_to_end(
    operands: Operands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def varlen(q: Any, k: Any, v: Any, **given: Any) -> None:
        assert given["fa_version"] == 3
        assert given["max_seqlen_q"] == given["max_seqlen_k"] == 33
        starts = given["cu_seqlens_q"]
        assert starts.dtype is torch.int32
        assert starts.tolist() == given["cu_seqlens_k"].tolist() == [0, 33, 66]
        for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            it = Operands(*(part[begin:end].transpose(0, 1)[None] for part in (q, k, v)))
            given["out"][begin:end] = wanted(it)[0].transpose(0, 1)

    stand_in_for_vllm(monkeypatch, None, varlen)
    (way,) = VllmFlashAttention3().ways(GROUP)
    torch.testing.assert_close(way.run(way.prepare(operands)), wanted(operands))


def test_vllms_own_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_vllm(monkeypatch, "FA3 is only for 9.x", None)
    with pytest.raises(Refused, match=r"FA3 is only for 9\.x"):
        list(VllmFlashAttention3().ways(GROUP))


def test_vllm_takes_the_arguments_that_it_gets() -> None:
    """Its module cannot be imported without a GPU; its source can be read."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    file = Path(spec.origin).parent / "vllm_flash_attn" / "flash_attn_interface.py"
    defined = {
        node.name: {argument.arg for argument in node.args.args}
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert "fa_version_unsupported_reason" in defined
    assert {
        *("q", "k", "v", "max_seqlen_q", "cu_seqlens_q", "max_seqlen_k", "cu_seqlens_k"),
        *("causal", "out", "fa_version"),
    } <= defined["flash_attn_varlen_func"]
