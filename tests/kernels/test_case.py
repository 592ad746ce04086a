"""Operands of one problem: their bytes, and how a wrong kernel is told from a right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels import case as case_module
from slidesparse.kernels import reference
from slidesparse.kernels.case import GIVEN_SCALE, NAN_CODE, Case, codes, compare
from slidesparse.kernels.config import default_config
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType

CPU = torch.device("cpu")
M, K = 7, 96
LIFTED = {"dense": 96, "6:8": 160}
"""K' of 96: 12 blocks of 3 windows of 4 are 144, aligned to 32."""
FP8, INT8 = torch.float8_e4m3fn, torch.int8


def problem(op: Op, pattern: str = "dense", dtype: DType = DType.FP8, m: int = M) -> KernelProblem:
    source = DType.BF16 if not op.dequantizes or dtype is DType.FP8 else DType.INT32
    out = dtype if op.quantizes else DType.BF16
    kind = Pattern.parse(pattern) if op.quantizes else DENSE
    return KernelProblem(op, m, K, source, out, kind, residual="rmsnorm" in op.value)


def usual(case: Case) -> Any:
    return default_config(case.problem.op, K, case.problem.m)


@pytest.mark.parametrize("pattern", LIFTED)
@pytest.mark.parametrize(
    ("op", "accumulator", "read_and_kept"),
    [
        # Bytes a row: what is read, then what is kept beside q and its scale of 4 bytes.
        (Op.QUANTIZE, 2, 2 * K),
        (Op.RMSNORM_QUANTIZE, 2, 2 * K + 2 * K + 2 * K),
        (Op.SILU_MUL_QUANTIZE, 2, 2 * 2 * K),
        (Op.DEQUANT_RMSNORM_QUANTIZE, 4, 4 * K + 2 * K + 2 * K),
        (Op.DEQUANT_SILU_MUL_QUANTIZE, 4, 4 * 2 * K),
    ],
    ids=str,
)
def test_bytes_by_hand(
    op: Op, accumulator: int, read_and_kept: int, pattern: str, seed: int
) -> None:
    case = Case(problem(op, pattern, DType.INT8), CPU, seed, 0)
    assert case.sets[0].x.element_size() == accumulator
    assert case.bytes == M * (read_and_kept + LIFTED[pattern] + 4)


@pytest.mark.parametrize("residual", [False, True])
def test_bytes_of_dequantize(residual: bool, seed: int) -> None:
    wanted = replace(problem(Op.DEQUANTIZE, dtype=DType.INT8), residual=residual)
    assert Case(wanted, CPU, seed, 0).bytes == M * K * (4 + 2 + 2 * residual)


@pytest.mark.parametrize("op", Op, ids=str)
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8], ids=str)
@pytest.mark.parametrize("pattern", LIFTED)
def test_the_default_configuration_is_right(op: Op, dtype: DType, pattern: str, seed: int) -> None:
    case = Case(problem(op, pattern, dtype, m=3), CPU, seed, 0)
    assert case.wrong(usual(case)) is None


@pytest.mark.parametrize("op", [Op.QUANTIZE, Op.RMSNORM_QUANTIZE, Op.SILU_MUL_QUANTIZE], ids=str)
def test_rows_run_under_a_given_scale_too(op: Op, seed: int) -> None:
    case = Case(problem(op, m=3), CPU, seed, 0)
    case.run(usual(case), 0, static=True)
    scale = case.sets[0].scale
    assert scale is not None
    assert torch.equal(scale, torch.full((3,), GIVEN_SCALE))


def test_operands_depend_on_the_seed_alone(seed: int) -> None:
    def drawn(number: int) -> torch.Tensor:
        return Case(problem(Op.SILU_MUL_QUANTIZE), CPU, number, 0).sets[0].x

    assert torch.equal(drawn(seed), drawn(seed))
    assert not torch.equal(drawn(seed), drawn(seed + 1))
    assert drawn(seed).float().std(dim=1).unique().numel() == M, "every row has its magnitude"


def test_accumulators_are_whole_numbers_of_some_size(seed: int) -> None:
    x = Case(problem(Op.DEQUANT_SILU_MUL_QUANTIZE, dtype=DType.INT8), CPU, seed, 0).sets[0].x
    assert x.dtype is torch.int32
    assert x.shape == (M, 2 * K)
    assert 2**16 < x.abs().max() < 2**22


LAUNCH = {
    Op.QUANTIZE: "launch_quantize",
    Op.RMSNORM_QUANTIZE: "launch_rmsnorm_quantize",
    Op.SILU_MUL_QUANTIZE: "launch_silu_mul_quantize",
    Op.DEQUANTIZE: "launch_dequantize",
    Op.DEQUANT_RMSNORM_QUANTIZE: "launch_rmsnorm_quantize",
    Op.DEQUANT_SILU_MUL_QUANTIZE: "launch_silu_mul_quantize",
}


@pytest.fixture
def spoiled(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> Callable[[KernelProblem, Callable[[Any], None] | None], str | None]:
    """What a check says of a kernel that is right before something spoils its outputs.

    None in place of the spoiler is a kernel that writes nothing. The reference stands in for the
    kernel: the interpreter is slow.
    """

    def check(wanted: KernelProblem, spoil: Callable[[Any], None] | None) -> str | None:
        case = Case(wanted, CPU, seed, 0)
        it = case.sets[0]

        def launch(*arguments: Any) -> None:
            if spoil is None:
                return
            right = case.reference_outputs(torch.arange(wanted.m))
            for output, value in zip(it.outputs, right, strict=True):
                output.view(torch.uint8).copy_(value.view(torch.uint8))
            spoil(it)

        monkeypatch.setattr(case_module, LAUNCH[wanted.op], launch)
        return case.wrong(usual(case))

    return check


def nothing(it: Any) -> None:
    pass


def scale_off(it: Any) -> None:
    it.scale.mul_(1.001)


def one_code_off(it: Any) -> None:
    it.q.view(torch.uint8).bitwise_xor_(1)


def nan_for_the_largest(it: Any) -> None:
    """What a conversion that does not saturate makes of the largest value of each row."""
    bits = it.q.view(torch.uint8)
    bits[(bits & 0x7F) == 0x7E] |= 1


def last_row(it: Any) -> None:
    it.q.view(torch.uint8)[-1] = 0


def last_column(it: Any) -> None:
    it.q.view(torch.uint8)[:, -1] = 0xA5


def nan_scale(it: Any) -> None:
    it.scale[0] = float("nan")


def minus_zero(it: Any) -> None:
    it.q.view(torch.uint8)[0, -1] = 0x80


class TestWrong:
    @pytest.mark.parametrize("op", Op, ids=str)
    @pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8], ids=str)
    def test_nothing_written_is_seen_and_the_reference_is_right(
        self, op: Op, dtype: DType, spoiled: Any
    ) -> None:
        assert spoiled(problem(op, dtype=dtype), nothing) is None
        reason = spoiled(problem(op, dtype=dtype), None)
        assert reason is not None
        assert "differ" in reason

    @pytest.mark.parametrize("op", [op for op in Op if op.quantizes], ids=str)
    @pytest.mark.parametrize("spoil", [scale_off, nan_scale], ids=lambda f: f.__name__)
    def test_wrong_scales(self, op: Op, spoil: Any, spoiled: Any) -> None:
        reason = spoiled(problem(op), spoil)
        assert reason is not None
        assert "scales" in reason

    @pytest.mark.parametrize("op", [op for op in Op if op.quantizes], ids=str)
    def test_one_code_off_everywhere(self, op: Op, spoiled: Any) -> None:
        reason = spoiled(problem(op), one_code_off)
        assert reason is not None
        assert reason.startswith("100.00% of the values differ")

    @pytest.mark.parametrize("op", [Op.QUANTIZE, Op.SILU_MUL_QUANTIZE], ids=str)
    def test_nan_is_no_neighbour_of_the_largest_value(self, op: Op, spoiled: Any) -> None:
        """One value of 96 is 1.04 %; lifted it is one of 160: below the share that may differ."""
        reason = spoiled(problem(op, "6:8"), nan_for_the_largest)
        assert reason is not None
        assert "differ" in reason

    @pytest.mark.parametrize("spoil", [last_column, last_row], ids=lambda f: f.__name__)
    def test_ends_that_are_not_written(self, spoil: Any, spoiled: Any) -> None:
        assert spoiled(problem(Op.SILU_MUL_QUANTIZE), spoil) is not None

    @pytest.mark.parametrize("row", [0, 63, 150, 236, 299])
    def test_of_many_rows_both_ends_and_the_middle_count(self, row: int, spoiled: Any) -> None:
        def spoil(it: Any) -> None:
            it.q.view(torch.uint8)[row] ^= 1

        assert spoiled(problem(Op.QUANTIZE, m=300), spoil) is not None

    def test_padding_has_to_be_zero_and_not_minus_zero(self, spoiled: Any) -> None:
        """160 columns of which 144 are of the row; both zeros are one code."""
        assert spoiled(problem(Op.QUANTIZE, "6:8"), minus_zero) is not None
        assert spoiled(problem(Op.SILU_MUL_QUANTIZE, "6:8"), minus_zero) is None

    def test_the_new_residual_counts(self, spoiled: Any) -> None:
        def spoil(it: Any) -> None:
            it.hidden[0, 0] += 1.0

        reason = spoiled(problem(Op.RMSNORM_QUANTIZE), spoil)
        assert reason is not None
        assert reason.startswith("the new residual is off by ")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_one_value_of_dequantize_that_is_not_finite(self, value: float, spoiled: Any) -> None:
        def spoil(it: Any) -> None:
            it.q[M - 1, K - 1] = value

        reason = spoiled(problem(Op.DEQUANTIZE), spoil)
        assert reason is not None
        assert reason.startswith("the output is off by ")

    def test_what_was_right_before_does_not_help(self, seed: int) -> None:
        """The outputs are poisoned each time."""
        case = Case(problem(Op.QUANTIZE), CPU, seed, 0)
        assert case.wrong(usual(case)) is None
        case.run = lambda config, index: None  # type: ignore[method-assign]
        assert case.wrong(usual(case)) is not None


def quantised(changes: dict[int, int], size: int = 100) -> torch.Tensor:
    """[1, size] FP8 of code 0x40 but for `changes`, byte by position."""
    bits = torch.full((1, size), 0x40, dtype=torch.uint8)
    for position, byte in changes.items():
        bits[0, position] = byte
    return bits.view(FP8)


ONE = torch.ones(1)


class TestCompare:
    def test_one_code_in_one_of_a_hundred_may_differ(self) -> None:
        want = (quantised({}), ONE)
        assert compare((quantised({3: 0x41}), ONE), want, exact=False) is None
        assert compare((quantised({3: 0x3F}), ONE), want, exact=False) is None
        assert compare((quantised({3: 0x41, 4: 0x41}), ONE), want, exact=False) == (
            "2.00% of the values differ, by up to 1 codes"
        )
        assert compare((quantised({3: 0x42}), ONE), want, exact=False) == (
            "1.00% of the values differ, by up to 2 codes"
        )

    def test_exact_means_every_bit(self) -> None:
        want = (quantised({5: 0x00}), ONE)
        assert compare(want, want, exact=True) is None
        assert compare((quantised({5: 0x80}), ONE), want, exact=True) == (
            "1.00% of the values differ from the reference, scales by up to 0.0e+00"
        )
        last_place = ONE * (1 + 2**-23)
        assert compare((want[0], last_place), want, exact=True) == (
            "0.00% of the values differ from the reference, scales by up to 1.2e-07"
        )

    @pytest.mark.parametrize(("off", "ok"), [(9e-6, True), (-9e-6, True), (1.2e-5, False)])
    def test_scales_may_differ_by_a_hundred_thousandth(self, off: float, ok: bool) -> None:
        got, want = (quantised({}), ONE * (1 + off)), (quantised({}), ONE)
        assert (compare(got, want, exact=False) is None) is ok

    def test_a_scale_of_zero_is_not_a_division_by_zero(self) -> None:
        want = (quantised({}), torch.zeros(1))
        assert compare(want, want, exact=False) is None
        assert compare((want[0], ONE), want, exact=False) is not None

    def test_values_that_are_rounded_once(self) -> None:
        want = torch.full((1, 100), 3.0, dtype=torch.bfloat16)
        step = torch.finfo(torch.bfloat16).eps * 2  # Between 2 and 4.
        got = want.clone()
        got[0, 7] += step
        assert compare((got,), (want,), exact=False) is None
        got[0, 7] += 3 * step
        assert compare((got,), (want,), exact=False) == "the output is off by 2.1e-02 (relative)"
        got[0, :2] += step
        assert compare((got,), (want,), exact=False) == (
            "3.00% of the output differ from the reference"
        )

    def test_tiny_values_count_by_their_distance(self) -> None:
        """Where sums cancel, the relative error of what is left says nothing."""
        want = torch.full((1, 100), 1e-9)
        got = want.clone()
        got[0, 0] = -1e-10
        assert compare((got,), (want,), exact=False) is not None
        got[0, 0] = want[0, 0] + 1e-10
        assert compare((got,), (want,), exact=False) is None


def test_codes_of_all_fp8_values_are_in_order() -> None:
    bits = torch.arange(256, dtype=torch.uint8)
    values, found = bits.view(FP8).float(), codes(bits.view(FP8))
    nan = values.isnan()
    assert found[nan].tolist() == [NAN_CODE, NAN_CODE]
    order = torch.argsort(found[~nan], stable=True)
    ordered, steps = values[~nan][order], found[~nan][order].diff()
    assert (ordered.diff() >= 0).all()
    assert ordered[0] == -448
    assert ordered[-1] == 448
    # Neighbours are one apart; only the two zeros share a code.
    assert steps.unique().tolist() == [0, 1]
    assert (steps == 0).sum() == 1
    assert found[0] == found[0x80] == 0


def test_codes_of_int8_are_its_values() -> None:
    every = torch.arange(-128, 128, dtype=torch.int8)
    assert torch.equal(codes(every), every.int())


def test_a_nan_equals_a_nan_of_the_other_sign() -> None:
    want = (reference.quantize(torch.full((1, 64), float("nan")), FP8)[0], ONE)
    flipped = (want[0].view(torch.uint8) ^ 0x80).view(FP8)
    assert compare((flipped, ONE), want, exact=False) is None
