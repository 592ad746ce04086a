"""What a plan cannot be made for: each in one line with the values and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from slidesparse.capacity import KvDtype, Quant, Settings
from slidesparse.capacity.settings import (
    default_batched_tokens,
    parse_kv_dtype,
    parse_quant,
)
from slidesparse.errors import ModelError, UsageError
from slidesparse.gpus import find_gpu
from slidesparse.pattern import Pattern

Make = Callable[..., Settings]

SIX = Pattern.parse("6:8")


@pytest.mark.parametrize(
    ("gpu", "changes", "message"),
    [
        ("h100-sxm", {"max_seqs": 0, "batch": 1}, "--max-seqs 0 is not a positive number"),
        ("h100-sxm", {"context": -4096}, "--context -4096 is not a positive number"),
        ("h100-sxm", {"batch": -1}, "--batch -1 is not a positive number"),
        ("h100-sxm", {"tp": 0}, "--tp 0 is not a positive number"),
        ("h100-sxm", {"batched_tokens": 0}, "--batched-tokens 0 is not a positive number"),
        (
            "l4",
            {"max_seqs": 2049, "batch": 1},
            "--batched-tokens 2048 is less than --max-seqs 2049, which vLLM refuses; raise it or "
            "lower --max-seqs",
        ),
        ("h100-sxm", {"context": 2**41}, "--context 2199023255552 is more than anything holds"),
        (
            "h100-sxm",
            {"max_seqs": 8, "batch": 9},
            "--batch 9 is more than the 8 sequences that --max-seqs allows at once; raise "
            "--max-seqs or lower --batch",
        ),
        (
            "h100-sxm",
            {"memory_fraction": 90.0},
            "--memory-fraction 90 is not a fraction of the memory; use a number above 0 and at "
            "most 1, such as 0.9",
        ),
        (
            "h100-sxm",
            {"memory_fraction": float("nan")},
            "--memory-fraction nan is not a fraction of the memory; use a number above 0 and at "
            "most 1, such as 0.9",
        ),
        (
            "v100",
            {"quant": Quant.FP8},
            "--quant fp8 needs SM 8.0 or newer and V100 SXM2 32 GB has SM 7.0; use gptq or none",
        ),
        (
            "v100",
            {"quant": Quant.AWQ},
            "--quant awq needs SM 7.5 or newer and V100 SXM2 32 GB has SM 7.0; use gptq or none",
        ),
        (
            "v100",
            {"kv_dtype": KvDtype.FP8},
            "--kv-dtype fp8 needs SM 8.0 or newer and V100 SXM2 32 GB has SM 7.0; use bf16",
        ),
        (
            "v100",
            {"pattern": SIX},
            "--pattern 6:8 needs 2:4 tensor cores, which V100 SXM2 32 GB has not; leave it out",
        ),
        (
            "h100-sxm",
            {"pattern": SIX, "quant": Quant.AWQ},
            "--pattern 6:8 is for W8A8 weights and --quant is awq; use --quant fp8 or int8, or "
            "leave the pattern out",
        ),
        (
            "a100",
            {"pattern": SIX, "quant": Quant.FP8},
            "--pattern 6:8 in FP8 needs SM 8.9 or newer and A100 SXM 80 GB has SM 8.0; use "
            "--quant int8",
        ),
    ],
)
def test_what_cannot_be(
    gpu: str, changes: dict[str, Any], message: str, make_settings: Make
) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        make_settings("qwen3-14b", gpu, **changes)


def test_a_tensor_parallel_size_that_divides_nothing(make_settings: Make) -> None:
    with pytest.raises(ModelError, match=r"tp=3 does not divide num_attention_heads=40"):
        make_settings("qwen3-14b", tp=3)


def test_names_are_read() -> None:
    assert parse_quant(" AWQ ") is Quant.AWQ
    assert parse_quant("awq_marlin") is Quant.AWQ
    assert parse_kv_dtype("fp8") is KvDtype.FP8


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (
            parse_quant,
            "fp7",
            "unknown quantisation 'fp7'; did you mean 'fp8'? use one of none, fp8, int8, awq, gptq",
        ),
        (
            parse_quant,
            "bnb",
            "unknown quantisation 'bnb'; use one of none, fp8, int8, awq, gptq",
        ),
        (
            parse_kv_dtype,
            "bf8",
            "unknown KV-cache dtype 'bf8'; did you mean 'fp8'? use one of bf16, fp8",
        ),
    ],
)
def test_unknown_names(parse: Callable[[str], object], text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("gpu", "tokens"), [("h100-sxm", 8192), ("a100", 2048), ("l4", 2048), ("gb10", 8192)]
)
def test_the_steps_of_vllms_server(gpu: str, tokens: int) -> None:
    assert default_batched_tokens(find_gpu(gpu)) == tokens
    assert default_batched_tokens(find_gpu(gpu), 1024) == 1024
