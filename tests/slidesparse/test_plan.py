"""The plan runs sparse only where it is faster beyond the spread; nobody gets slower."""

import pytest

from slidesparse.candidate import Candidate, Measurement, ProblemResult
from slidesparse.pattern import Pattern
from slidesparse.plan import Plan, choose
from slidesparse.problem import DType, GemmProblem

DENSE = Candidate("cublaslt", {"algo": "00"}, sparse=False)
SPARSE = Candidate("cusparselt", {"algorithm": 0}, sparse=True)


def measured(candidate, median, spread=0.0):
    return Measurement(candidate, median, spread, samples=15, launches=1, error=0.0, worst=0.0)


def raced(sparse=None, dense=None, m=16):
    """A result as a race leaves it: ranked by time, the dense one its baseline."""
    problem = GemmProblem(m, 64, 128, DType.FP8, DType.BF16, pattern=Pattern.parse("6:8"))
    ranked = sorted((x for x in (sparse, dense) if x), key=lambda x: x.median_us)
    return ProblemResult(problem, tuple(ranked), baseline=dense)


def test_sparse_runs_where_it_is_faster():
    result = raced(measured(SPARSE, 80.0, 2.0), measured(DENSE, 100.0, 4.0))
    choice = choose(result)
    assert choice.chosen.candidate == SPARSE
    assert choice.verdict == "sparse"
    assert choice.gain == pytest.approx(1.25)
    assert choice.clear


def test_dense_runs_where_sparse_is_slower():
    choice = choose(raced(measured(SPARSE, 125.0, 2.0), measured(DENSE, 100.0, 4.0)))
    assert choice.chosen.candidate == DENSE
    assert choice.verdict == "dense"
    assert choice.gain == pytest.approx(0.8)
    assert choice.clear
    assert choice.sparse.median_us == 125.0


@pytest.mark.parametrize(
    ("sparse_us", "sparse_spread", "dense_spread", "verdict", "clear"),
    [
        (98.0, 0.0, 4.0, "dense", False),  # Exactly half the spread is no difference.
        (97.9, 0.0, 4.0, "sparse", True),
        (98.0, 4.0, 0.0, "dense", False),  # The spread of either counts.
        (97.9, 3.9, 1.0, "sparse", True),
        (102.0, 0.0, 4.0, "dense", False),
        (102.1, 0.0, 4.0, "dense", True),
        (100.0, 0.0, 0.0, "dense", False),
    ],
)
def test_a_gain_inside_the_spread_is_none(sparse_us, sparse_spread, dense_spread, verdict, clear):
    choice = choose(
        raced(measured(SPARSE, sparse_us, sparse_spread), measured(DENSE, 100.0, dense_spread))
    )
    assert (choice.verdict, choice.clear) == (verdict, clear)
    assert choice.gain == pytest.approx(100.0 / sparse_us)


def test_without_a_baseline_the_sparse_one_runs_and_no_gain_is_claimed():
    choice = choose(raced(measured(SPARSE, 80.0)))
    assert choice.verdict == "sparse"
    assert choice.gain is None
    assert choice.baseline is None


def test_without_a_sparse_one_the_dense_one_runs():
    choice = choose(raced(dense=measured(DENSE, 100.0)))
    assert choice.verdict == "dense"
    assert choice.gain is None
    assert choice.sparse is None


def test_nothing_measured_is_no_choice():
    assert choose(raced()) is None


def test_the_plan_finds_its_bucket_then_the_next_above_then_the_last():
    results = [
        raced(measured(SPARSE, 80.0 + m), measured(DENSE, 9999.0), m=m) for m in (1024, 16, 200)
    ]
    plan = Plan.of([*results, raced(m=64)])
    assert [bucket for bucket, _ in plan.choices] == [16, 256, 1024]
    wanted = {1: 96.0, 16: 96.0, 17: 280.0, 32: 280.0, 256: 280.0, 257: 1104.0, 1024: 1104.0}
    wanted |= {1025: 1104.0, 65536: 1104.0}
    assert {m: plan.at(m).chosen.median_us for m in wanted} == wanted


def test_a_plan_of_nothing_has_no_choice():
    assert Plan.of([]).at(16) is None
