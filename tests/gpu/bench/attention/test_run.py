"""The benchmark of attention on the GPU: what runs is right, counted, and within the bound."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from click.testing import CliRunner

from slidesparse.bench.attention.backends import BACKENDS, Backend, Way, backends_of
from slidesparse.bench.attention.bound import bound_of
from slidesparse.bench.attention.check import Operands
from slidesparse.bench.attention.problem import AttentionProblem
from slidesparse.bench.attention.rates import MAX_CLOCK, device_rates
from slidesparse.bench.attention.record import AttentionRow, Kind, LeftOut, read_json
from slidesparse.bench.attention.run import AttentionBench
from slidesparse.cli.main import cli
from slidesparse.counters import GpmSampler
from slidesparse.devices import detect
from slidesparse.problem import DType

SECONDS_OF_DOCUMENT_C = 60
"""The default run has to end within this, torch's import and both masks included."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROUNDS", 3), ("FEWEST_ROUNDS", 2), ("SUSTAINED_S", 0.05)):
        monkeypatch.setattr(f"slidesparse.bench.attention.run.{name}", value)


def test_whatever_runs_is_right_at_any_size(gpu, seed, quick):
    sizes = [(1, 1, 1, 1, 64), (2, 3, 3, 7, 64), (1, 8, 2, 129, 128), (3, 4, 1, 1000, 128)]
    problems = [
        AttentionProblem(*size, causal, dtype)
        for size, causal, dtype in itertools.product(sizes, (False, True), (DType.BF16, DType.FP16))
    ]
    bad, ran = [], set()
    for found in AttentionBench(gpu, seed, BACKENDS).run(problems):
        if isinstance(found, AttentionRow):
            ran.add(found.backend)
        elif found.kind is Kind.WRONG or (
            # What other libraries throw at sizes that they do not take is theirs to say.
            found.kind is not Kind.REFUSED and found.backend in ("flash", "efficient", "math")
        ):
            bad.append(f"{found.problem} {found.backend} {found.kind}: {found.reason}")
    assert not bad, "\n".join(bad)
    assert {"flash", "efficient", "math"} <= ran, ran


def test_a_backend_that_refuses_gives_torchs_reason(gpu, seed, quick):
    """A head of 72 x 8 + 1 elements is none that flash takes, and math takes all."""
    problem = AttentionProblem(1, 2, 2, 64, 577, False, DType.BF16)
    flash, math = AttentionBench(gpu, seed, backends_of(("flash", "math"))).run([problem])
    assert isinstance(flash, LeftOut)
    assert flash.kind is Kind.REFUSED
    assert "dim" in flash.reason.lower(), flash.reason
    assert "runtime disabled" not in flash.reason
    assert isinstance(math, AttentionRow)


def test_no_memory_for_all_scores_costs_the_math_backend_only(gpu, seed, quick):
    problem = AttentionProblem(16, 96, 96, 4096, 128, True, DType.BF16)
    needed = backends_of(("math",))[0].scratch(problem)
    if needed < torch.cuda.mem_get_info()[0]:
        pytest.skip("this GPU has room for all scores")
    flash, math = sorted(
        AttentionBench(gpu, seed, backends_of(("flash", "math"))).run([problem]),
        key=lambda it: it.backend,
    )
    assert isinstance(flash, AttentionRow)
    assert isinstance(math, LeftOut)
    assert math.kind is Kind.MEMORY


def test_nothing_is_faster_than_the_bound(gpu, seed):
    machine = detect(gpu)
    rates = device_rates(gpu, machine, DType.BF16)
    if rates is None:
        pytest.skip(f"the rates of {machine.name} are not known")
    assert rates.clock_source == MAX_CLOCK
    problem = AttentionProblem(4, 32, 8, 4096, 128, False, DType.BF16)
    bound = bound_of(problem, rates)
    for it in AttentionBench(gpu, seed, backends_of(("flash", "cudnn", "fa3"))).run([problem]):
        if isinstance(it, AttentionRow):
            assert bound.hard_us < it.median_us < 50 * bound.us, it
            assert it.sets == 1 or it.problem.bytes < 2**30
            assert it.sustained is not None
            assert 0.5 < it.sustained.us / it.median_us < 2
            assert it.sustained.seconds > 1
            # The tensor pipe cannot have worked for less than its share of the time at that clock.
            tensor = it.sustained.counters.get("tensor_active")
            if tensor is not None and it.sustained.clock_mhz is not None:
                ideal = bound.tensor_us * rates.clock_mhz / it.sustained.clock_mhz
                assert 0.8 * 100 * ideal / it.sustained.us < tensor <= 100.5


def test_the_default_run_is_document_c_within_a_minute(gpu, tmp_path):
    file = tmp_path / "attention.json"
    options = ["--targets", "3.82,3.0,2.0", "--seed", "3", "--json", str(file)]
    done = CliRunner().invoke(cli, ["bench", "attention", *options])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Timing attention, B=16 H=96 S=4096 D=128 bf16, on ")
    record = read_json(file)
    assert record.seconds < SECONDS_OF_DOCUMENT_C
    assert [known.problem.mask for known in record.bounds] == ["full", "causal"]
    for known in record.bounds:
        rows = record.of(known.problem)
        assert "flash" in {row.backend for row in rows}
        for row in rows:
            assert row.checked == 8
            assert row.sets == 1
            assert 0 < row.error <= 2 * row.plain_error + 0.01
            long = row.sustained
            assert long is not None
            assert long.seconds > 1
            with GpmSampler(gpu) as sampler:
                if sampler.available:
                    assert 1 < long.counters["tensor_active"] <= 100.5
                    assert long.clock_mhz is not None
                    assert long.power_w is not None
        if known.bound is not None:
            assert all(str(it.reachable) == "no" for it in known.targets)
            percents = [record.percent_of_bound(row) for row in rows]
            assert all(percent is not None and percent < 100 for percent in percents), percents


class Uncapturable(Backend):
    """A backend that runs, and waits for the GPU in the middle of its capture, which ends that."""

    name = "uncapturable"

    def ways(self, problem: AttentionProblem) -> Iterator[Way]:
        way = next(iter(backends_of(("flash",))[0].ways(problem)))

        def run(it: Operands) -> torch.Tensor:
            out = way.run(it)
            if torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize()
            return out

        yield Way("", way.prepare, run)


def test_a_capture_that_fails_costs_its_backend_only(gpu, seed, quick):
    """Two problems: what it leaves behind would show in the next capture and in the next problem.

    A capture that the driver refused stays open in torch before 2.12.
    """
    problems = [AttentionProblem(2, 4, 4, 512, 64, causal, DType.BF16) for causal in (False, True)]
    backends = (Uncapturable(), *backends_of(("flash", "efficient")))
    found = list(AttentionBench(gpu, seed, backends).run(problems))
    assert [it.backend for it in found] == ["uncapturable", "flash", "efficient"] * 2
    for it in found:
        if it.backend == "uncapturable":
            assert isinstance(it, LeftOut)
            assert it.kind is Kind.FAILED, it.reason
        else:
            assert isinstance(it, AttentionRow), it
    torch.cuda.empty_cache()


def test_scores_of_two_fifths_of_the_memory_are_captured(gpu, seed, quick):
    """What the launch before the capture left in torch's cache has to make room for the capture."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    math = backends_of(("math",))[0]
    seq = 4096
    one = math.scratch(AttentionProblem(1, 1, 1, seq, 64, False, DType.BF16))
    heads = int(0.4 * free / one)
    problem = AttentionProblem(1, heads, heads, seq, 64, False, DType.BF16)
    (row,) = AttentionBench(gpu, seed, (math,)).run([problem])
    assert isinstance(row, AttentionRow), row
