"""When vLLM's product runs: by GPU, dtype and version; and that it is called as it is declared."""

from __future__ import annotations

import inspect
import re
from importlib import metadata
from pathlib import Path

import pytest
import torch
from vllm_product import SCHEMA, VERSION, StrictProduct

from slidesparse import libraries, vllm_gemm
from slidesparse.errors import CandidateError
from slidesparse.problem import DType

INSTALLED = libraries.package_version("vllm")
needs_vllm = pytest.mark.skipif(
    INSTALLED == libraries.ABSENT, reason="vLLM is not installed: its own op is not looked at"
)
FP8, INT8 = DType.FP8, DType.INT8
BF16, FP16, FP32 = DType.BF16, DType.FP16, DType.FP32


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch):
    """Pretend that this version of vLLM is installed."""

    def install(wanted: str) -> None:
        monkeypatch.setattr(vllm_gemm, "package_version", lambda name: wanted)

    return install


def test_another_version_is_another_candidate(version):
    version(VERSION)
    made = vllm_gemm.candidate()
    assert made.key == 'vllm:dense:{"function": "cutlass_scaled_mm", "version": "0.25.1"}'
    assert made.label == "vllm function=cutlass_scaled_mm version=0.25.1"
    assert vllm_gemm.candidate() == made
    version("0.26.0")
    assert vllm_gemm.candidate() != made


def test_only_the_version_that_was_measured_runs(version):
    version(VERSION)
    params = vllm_gemm.candidate().params
    assert vllm_gemm.mismatch(params) is None
    assert vllm_gemm.mismatch({**params, "function": "x"}) == "vLLM has no candidate 'x'"
    assert vllm_gemm.mismatch({}) == "vLLM has no candidate None"
    version("0.26.0")
    expected = "vLLM 0.25.1 was measured and 0.26.0 is installed; search again"
    assert vllm_gemm.mismatch(params) == expected
    with pytest.raises(CandidateError) as raised:
        vllm_gemm.load(params)
    assert str(raised.value) == expected
    version("none")
    assert vllm_gemm.mismatch(params) == "vLLM is not installed"


@pytest.mark.parametrize(
    ("dtype", "out", "wanted"),
    [
        (
            FP8,
            BF16,
            {
                0: "vLLM's product needs a GPU",
                80: "FP8 needs SM 8.9 or newer and this is SM 8.0; use --dtype int8",
                89: None,
                90: None,
                120: None,
            },
        ),
        (
            INT8,
            FP16,
            {
                0: "vLLM's product needs a GPU",
                70: "vLLM's INT8 product needs SM 7.5 or newer and this is SM 7.0",
                75: None,
                90: None,
                100: "vLLM has no INT8 product for SM 10.0 and newer and this is SM 10.0; use fp8",
                120: "vLLM has no INT8 product for SM 10.0 and newer and this is SM 12.0; use fp8",
            },
        ),
        (FP8, FP16, {90: None}),
        (INT8, BF16, {90: None}),
        (FP8, FP32, {90: "vLLM's product gives bf16 or fp16, not fp32"}),
        (INT8, DType.INT32, {90: "vLLM's product gives bf16 or fp16, not int32"}),
    ],
)
def test_refusals_by_compute_capability(dtype, out, wanted):
    assert {sm: vllm_gemm.refusal(dtype, out, sm) for sm in wanted} == wanted


def test_vllm_is_imported_only_for_its_own_version(version, monkeypatch):
    def imports() -> str:
        raise AssertionError("vLLM is imported")

    monkeypatch.setattr(vllm_gemm, "vllm_reason", imports)
    for installed in ("none", "0.26.0"):
        version(installed)
        with pytest.raises(CandidateError):
            vllm_gemm.load({"function": "cutlass_scaled_mm", "version": VERSION})


def test_a_vllm_that_does_not_load_is_no_candidate(version, monkeypatch):
    version(VERSION)
    params = vllm_gemm.candidate().params
    monkeypatch.setattr(vllm_gemm, "vllm_reason", lambda: "vLLM cannot be imported: no libcudart")
    with pytest.raises(CandidateError, match=r"^vLLM cannot be imported: no libcudart$"):
        vllm_gemm.load(params)


@pytest.mark.skipif(hasattr(torch.ops._C, "cutlass_scaled_mm"), reason="vLLM's kernels are loaded")
def test_without_its_kernels_vllm_has_no_product(version, monkeypatch):
    version(VERSION)
    monkeypatch.setattr(vllm_gemm, "vllm_reason", lambda: "")
    wanted = "vLLM 0.25.1 has no cutlass_scaled_mm here: its CUDA kernels do not load"
    assert vllm_gemm.missing() == wanted


def parameters(callable_: object) -> list[str]:
    names = list(inspect.signature(callable_.__call__).parameters)
    return [name for name in names if name != "self"]


def test_the_protocol_has_the_arguments_of_the_schema():
    declared = torch._C.parse_schema(SCHEMA)
    names = [argument.name for argument in declared.arguments]
    assert names == parameters(vllm_gemm.Product) == parameters(StrictProduct)
    assert [a.alias_info is not None for a in declared.arguments] == [True, *[False] * 5]


@needs_vllm
def test_the_schema_is_that_of_the_installed_library():
    """The library does not load without CUDA, but its declarations are text in it."""
    files = [Path(str(f.locate())) for f in metadata.files("vllm") or () if f.match("vllm/_C*.so")]
    text = rb"cutlass_scaled_mm\(Tensor!? ?[^\0]+?-> ?\(\)"
    found = [m for file in files for m in re.findall(text, file.read_bytes())]
    assert len(found) == 1, (files, found)
    ours, theirs = (torch._C.parse_schema(s) for s in (SCHEMA, found[0].decode()))
    assert str(theirs) == str(ours)


@needs_vllm
def test_the_installed_vllm_is_imported_and_says_what_it_lacks(capfd):
    libraries.vllm_reason.cache_clear()
    reason = vllm_gemm.missing()
    assert capfd.readouterr().out == "", "stdout is for results"
    has = hasattr(torch.ops._C, vllm_gemm.FUNCTION)
    assert (reason == "") is has, reason
    if torch.version.cuda is None:
        assert (
            reason
            == f"vLLM {INSTALLED} has no cutlass_scaled_mm here: its CUDA kernels do not load"
        )
