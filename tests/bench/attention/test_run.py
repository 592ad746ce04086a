"""The benchmark of attention on the CPU: all that runs is verified, and one failure costs one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from slidesparse.bench.attention.backends import (
    BACKENDS,
    EXPANDED,
    GROUPED,
    Backend,
    Refused,
    Way,
    backends_of,
)
from slidesparse.bench.attention.check import Operands
from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.bench.attention.record import AttentionRow, Kind, LeftOut
from slidesparse.bench.attention.run import AttentionBench
from slidesparse.devices import CPU
from slidesparse.problem import DType

SMALL = AttentionProblem(2, 4, 4, 33, 16, True, DType.BF16)
GROUP = AttentionProblem(2, 4, 2, 33, 16, False, DType.FP16)
FLASH = backends_of(("flash",))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUNDS", "FEWEST_ROUNDS"):
        monkeypatch.setattr(f"slidesparse.bench.attention.run.{name}", 2)


class Broken(Backend):
    """A backend that does what a test tells it."""

    name = "broken"

    def __init__(self, run: object, how: str = "") -> None:
        self._run, self._how = run, how

    def ways(self, problem: AttentionProblem) -> Iterator[Way]:
        def run(it: Operands) -> torch.Tensor:
            if isinstance(self._run, Exception):
                raise self._run
            return next(iter(FLASH[0].ways(problem))).run(it) * self._run

        yield Way(self._how, lambda it: it, run)


def run(*backends: Backend, problem: AttentionProblem = SMALL) -> list[AttentionRow | LeftOut]:
    return list(AttentionBench(CPU, 5, backends).run([problem]))


def test_flash_and_math_run_on_a_cpu_and_the_others_say_why_not() -> None:
    said: list[str] = []
    found = list(AttentionBench(CPU, 5, BACKENDS).run([SMALL, GROUP], said.append))
    assert len(found) == 2 * len(BACKENDS)
    rows = [it for it in found if isinstance(it, AttentionRow)]
    assert [(row.problem, row.backend) for row in rows] == [
        (problem, name) for problem in (SMALL, GROUP) for name in ("flash", "math")
    ]
    for row in rows:
        assert row.checked == 8
        assert 0 < row.error <= 2 * row.plain_error + 1e-2
        assert row.sustained is None
        assert row.sets == 1
        assert row.how == (GROUPED if row.problem.grouped else "")
    for it in found:
        if isinstance(it, LeftOut):
            assert it.kind is Kind.REFUSED
            assert it.reason
    assert f"{SMALL}: racing flash, math" in said


@pytest.mark.parametrize(
    ("raised", "kind", "reason"),
    [
        (Refused("not here"), Kind.REFUSED, "not here"),
        (torch.cuda.OutOfMemoryError("no room\nat all"), Kind.MEMORY, "no room"),
        (ValueError("bad\nnews"), Kind.FAILED, "ValueError: bad"),
    ],
)
def test_one_that_cannot_run_costs_itself_only(raised: Exception, kind: Kind, reason: str) -> None:
    left, row = run(Broken(raised), *FLASH)
    assert isinstance(left, LeftOut)
    assert (left.backend, left.kind, left.reason) == ("broken", kind, reason)
    assert isinstance(row, AttentionRow)


def test_a_wrong_one_has_no_time() -> None:
    left, row = run(Broken(1.5), *FLASH)
    assert isinstance(left, LeftOut)
    assert left.kind is Kind.WRONG
    assert left.reason.startswith("wrong result: a row is off by ")
    assert isinstance(row, AttentionRow)


def test_one_that_refuses_grouped_queries_gets_all_heads() -> None:
    class Plain(Broken):
        def ways(self, problem: AttentionProblem) -> Iterator[Way]:
            yield from Broken(Refused("it does not take groups"), GROUPED).ways(problem)
            yield list(FLASH[0].ways(problem))[1]

    (row,) = run(Plain(None), problem=GROUP)
    assert isinstance(row, AttentionRow)
    assert row.how == EXPANDED


def test_scores_that_do_not_fit_are_not_tried() -> None:
    """On a CPU trying would not fail but fill the machine."""

    class Large(Broken):
        def scratch(self, problem: AttentionProblem) -> int:
            return 2**44

    left, row = run(Large(1.0), *FLASH)
    assert isinstance(left, LeftOut)
    assert left.kind is Kind.MEMORY
    assert left.reason.startswith("it needs at least 16384.0 GiB and ")
    assert isinstance(row, AttentionRow)


def test_operands_that_do_not_fit_cost_every_backend() -> None:
    problem = AttentionProblem(2**20, 96, 96, 2**20, 128, False, DType.BF16)
    found = run(*FLASH, Broken(1.0), problem=problem)
    assert [it.backend for it in found] == ["flash", "broken"]
    for it in found:
        assert isinstance(it, LeftOut)
        assert it.kind is Kind.MEMORY
        assert "use a smaller --batch" in it.reason


def test_where_nothing_runs_there_is_no_race() -> None:
    (left,) = run(Broken(Refused("no")))
    assert isinstance(left, LeftOut)
