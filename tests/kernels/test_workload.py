"""The kernels of a model: which operations at which widths, once per cache key."""

from __future__ import annotations

from collections import defaultdict

import pytest

from slidesparse.errors import ModelError
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels.workload import model_problems
from slidesparse.models import load_model, preset_names
from slidesparse.pattern import DENSE, Pattern, parse_patterns
from slidesparse.problem import DType

PATTERNS = parse_patterns("6:8,2:4")
QWEN = load_model("qwen2.5-7b")


def widths(problems: tuple[KernelProblem, ...]) -> dict[Op, list[int]]:
    found: dict[Op, set[int]] = defaultdict(set)
    for problem in problems:
        found[problem.op].add(problem.k)
    return {op: sorted(found[op]) for op in found}


def test_a_dense_model() -> None:
    problems = model_problems(QWEN, 1, DType.FP8, PATTERNS, (16, 4096))
    assert widths(problems) == {
        Op.QUANTIZE: [3584, 18944],
        Op.RMSNORM_QUANTIZE: [3584],
        Op.SILU_MUL_QUANTIZE: [18944],
        Op.DEQUANTIZE: [3584, 4608, 37888],
        Op.DEQUANT_RMSNORM_QUANTIZE: [3584],
        Op.DEQUANT_SILU_MUL_QUANTIZE: [18944],
    }
    assert {problem.m for problem in problems} == {16, 4096}
    # Six rows that are quantised, for three patterns; three that are not, for none; two M.
    assert len(problems) == 2 * (6 * 3 + 3)


def test_experts_see_their_share_of_the_tokens() -> None:
    spec = load_model("qwen3-30b-a3b")
    problems = model_problems(spec, 1, DType.FP8, (), (16, 4096))
    assert widths(problems) == {
        Op.QUANTIZE: [768, 2048, 4096],
        Op.RMSNORM_QUANTIZE: [2048],
        Op.SILU_MUL_QUANTIZE: [768],
        Op.DEQUANTIZE: [1536, 2048, 5120],
        Op.DEQUANT_RMSNORM_QUANTIZE: [2048],
        Op.DEQUANT_SILU_MUL_QUANTIZE: [768],
    }
    rows = {problem.m for problem in problems if problem.k == 768}
    assert rows == {1, 256}, "8 of 128 experts a token"
    # One token an expert shares its bucket with sixteen; the first of a key is the one.
    assert {p.m for p in problems if p.op is Op.DEQUANT_RMSNORM_QUANTIZE} == {16, 4096}


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_every_preset_has_every_operation_and_no_key_twice(name: str, dtype: DType) -> None:
    problems = model_problems(load_model(name), 1, dtype, PATTERNS, (1, 16, 17, 1000))
    assert {problem.op for problem in problems} == set(Op)
    keys = [problem.key for problem in problems]
    assert len(keys) == len(set(keys))
    for problem in problems:
        assert problem.out is (dtype if problem.op.quantizes else DType.BF16)
        assert problem.residual == ("rmsnorm" in problem.op.value)


@pytest.mark.parametrize(
    ("dtype", "left"), [(DType.FP8, DType.BF16), (DType.INT8, DType.INT32)], ids=str
)
def test_what_a_gemm_leaves_is_read_back(dtype: DType, left: DType) -> None:
    for problem in model_problems(QWEN, 1, dtype, (), (16,), activation=DType.FP16):
        assert problem.source is (left if problem.op.dequantizes else DType.FP16)
        if problem.op is Op.DEQUANTIZE:
            assert problem.out is DType.FP16


@pytest.mark.parametrize("patterns", [(), PATTERNS, (DENSE, *PATTERNS, DENSE)])
def test_dense_is_always_there_once(patterns: tuple[Pattern, ...]) -> None:
    problems = model_problems(QWEN, 1, DType.FP8, patterns, (16,), ops=(Op.SILU_MUL_QUANTIZE,))
    found = [problem.pattern for problem in problems]
    assert found == sorted({DENSE, *patterns}, key=lambda pattern: pattern.block)


def test_tensor_parallel_layers_are_narrower() -> None:
    problems = model_problems(QWEN, 4, DType.FP8, (), (16,))
    found = widths(problems)
    assert found[Op.QUANTIZE] == [896, 3584, 4736]
    assert found[Op.SILU_MUL_QUANTIZE] == found[Op.DEQUANT_SILU_MUL_QUANTIZE] == [4736]
    assert found[Op.RMSNORM_QUANTIZE] == [3584]
    assert found[Op.DEQUANTIZE] == [1152, 3584, 9472]
    with pytest.raises(ModelError, match="tp=3 does not divide num_attention_heads=28"):
        model_problems(QWEN, 3, DType.FP8, (), (16,))


def test_only_the_operations_that_are_wanted() -> None:
    every = model_problems(QWEN, 1, DType.FP8, PATTERNS, (16, 64))
    wanted = (Op.DEQUANTIZE, Op.QUANTIZE)
    some = model_problems(QWEN, 1, DType.FP8, PATTERNS, (16, 64), ops=wanted)
    assert some == tuple(problem for problem in every if problem.op in wanted)
    assert model_problems(QWEN, 1, DType.FP8, PATTERNS, (16,), ops=()) == ()


def test_the_order_is_by_operation_width_pattern_and_rows() -> None:
    problems = model_problems(QWEN, 1, DType.FP8, PATTERNS, (4096, 16))
    order = [(list(Op).index(p.op), p.k, p.pattern.block, p.m) for p in problems]
    assert order == sorted(order)
