"""The benchmark of whole linears on the CPU: what is raced, what is refused, what it costs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from slidesparse.bench.fault import DeviceLost
from slidesparse.bench.linear import run as module
from slidesparse.bench.linear import torch_ways as torch_linear
from slidesparse.bench.linear.record import SkippedLinear
from slidesparse.bench.linear.run import LinearBench, Measured
from slidesparse.bench.linear.torch_ways import TorchWays, Way, plain
from slidesparse.bench.race import Time
from slidesparse.devices import CPU
from slidesparse.layers import SparseLinear
from slidesparse.models import LinearLayer, load_model
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType

TINY = Path(__file__).resolve().parents[2] / "data" / "tiny"
SIX = Pattern.parse("6:8")
LAYER = LinearLayer("o", 48, 80, 2, bias=True)
FAULT = "CUDA error: an illegal memory access was encountered"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUNDS", "FEWEST_ROUNDS", "CHOICE_ROUNDS"):
        monkeypatch.setattr(module, name, 2)


def measure(seed: int, m: int = 4, dtype: DType = DType.FP8) -> Measured:
    (found,) = LinearBench(CPU, seed).run([LAYER], [dtype], [DENSE, SIX], [m])
    assert isinstance(found, Measured)
    return found


def use_ways(monkeypatch: pytest.MonkeyPatch, **functions: object) -> None:
    """Torch's ways as these functions; None is the right one."""

    def of(self: TorchWays, m: int) -> Iterator[Way]:
        for how, function in functions.items():
            yield Way(how, lambda function=function: function or plain(self._dtype, m))

    monkeypatch.setattr(TorchWays, "of", of)


def test_every_layer_dtype_m_and_pattern_is_measured_on_both_sides(seed: int) -> None:
    layers = load_model(str(TINY)).linears(1)[1:3]
    dtypes, patterns, tokens = (DType.INT8, DType.FP8), (DENSE, SIX), (1, 3)
    found = list(LinearBench(CPU, seed).run(layers, dtypes, patterns, tokens))
    order = [(d, layer.name, m) for d in dtypes for layer in layers for m in tokens]
    assert [
        (f.rows[0].problem.dtype, f.rows[0].layer.name, f.rows[0].tokens) for f in found
    ] == order
    for each in found:
        assert [row.problem.pattern for row in each.rows] == list(patterns)
        assert each.ways.problem == each.rows[0].problem
        assert [(way.how, way.median_us, way.reason) for way in each.ways.ways] == [
            ("eager", None, "")
        ]
        for row in each.rows:
            assert row.error is None
            assert (row.plan, row.sparse, row.torch_how, row.sets) == (
                "reference",
                False,
                "eager",
                1,
            )
            assert row.ours is not None
            assert row.torch is not None
            assert row.ratio == row.torch.median_us / row.ours.median_us > 0
            # Rounding to BF16 and nothing else, on both sides.
            assert 1e-4 < row.ours.error < 4e-3
            assert 1e-4 < row.torch.error < 4e-3


def test_times_go_to_the_side_and_pattern_they_are_of(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(timed, rounds, fewest, budget_us, most=0):
        return [Time(10.0 + place, 0.0) for place in range(len(timed))]

    monkeypatch.setattr(module, "race", fake)
    rows = measure(seed).rows
    assert [row.ours.median_us for row in rows if row.ours] == [10.0, 11.0]
    assert [row.torch.median_us for row in rows if row.torch] == [12.0, 13.0]


def test_the_fastest_right_way_of_torchs_counts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    medians = {3: [30.0, 20.0, 25.0], 4: [1.0, 2.0, 3.0, 4.0]}

    def fake(timed, rounds, fewest, budget_us, most=0):
        return [Time(us, 0.5) for us in medians[len(timed)]]

    monkeypatch.setattr(module, "race", fake)
    use_ways(monkeypatch, slow=None, fast=None, middle=None)
    found = measure(seed)
    assert {row.torch_how for row in found.rows} == {"fast"}
    assert [(w.how, w.median_us, w.spread_us) for w in found.ways.ways] == [
        ("slow", 30.0, 0.5),
        ("fast", 20.0, 0.5),
        ("middle", 25.0, 0.5),
    ]


def test_a_wrong_or_broken_way_costs_itself_only(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(x, q, scale, bias):
        return 1.1 * torch_linear.fp8_linear(x, q, scale, bias)

    def broken(x, q, scale, bias):
        raise RuntimeError("Inductor: 32-bit indices\nand much more")

    def unwritten(x, q, scale, bias):
        return torch.empty(x.shape[0], q.shape[0], dtype=torch.bfloat16).fill_(float("nan"))

    use_ways(monkeypatch, wrong=wrong, broken=broken, unwritten=unwritten, right=None)
    found = measure(seed)
    assert {row.torch_how for row in found.rows} == {"right"}
    reasons = {way.how: way.reason for way in found.ways.ways}
    said = re.fullmatch(r"wrong result: relative error (\S+) .*", reasons["wrong"])
    assert said is not None, reasons["wrong"]
    assert float(said[1]) == pytest.approx(0.1, rel=0.1)
    assert reasons["broken"] == "RuntimeError: Inductor: 32-bit indices"
    assert reasons["unwritten"].startswith("wrong result: relative error nan")
    assert reasons["right"] == ""


def test_without_any_way_ours_is_measured_and_there_is_no_ratio(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_ways(monkeypatch)
    for row in measure(seed).rows:
        assert row.ours is not None
        assert (row.torch, row.torch_how, row.ratio, row.clear) == (None, "", None, False)


def test_a_wrong_linear_of_ours_is_reported_and_not_timed(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = SparseLinear.forward

    def forward(self: SparseLinear, x: torch.Tensor) -> torch.Tensor:
        y = right(self, x)
        return y if self.pattern.dense else y * 1.5

    monkeypatch.setattr(SparseLinear, "forward", forward)
    dense, six = measure(seed).rows
    assert dense.error is None
    assert dense.ours is not None
    assert six.ours is None
    assert str(six.error).startswith("wrong result: relative error 5.0")
    assert six.torch is not None, "torch's time stands"


def test_a_linear_that_cannot_be_made_costs_its_pattern(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = SparseLinear.from_linear

    def from_linear(linear: torch.nn.Linear, pattern: Pattern, dtype: DType) -> SparseLinear:
        if not pattern.dense:
            raise RuntimeError("out of registers")
        return right(linear, pattern, dtype)

    monkeypatch.setattr(SparseLinear, "from_linear", from_linear)
    dense, six = measure(seed).rows
    assert dense.ratio is not None
    assert (six.error, six.plan, six.sparse) == ("RuntimeError: out of registers", "", False)


def test_every_set_is_called_before_the_race(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph can capture only what has run: the first call loads plans and kernels."""
    called: dict[int, int] = {}
    right = SparseLinear.forward

    def forward(self: SparseLinear, x: torch.Tensor) -> torch.Tensor:
        called[id(self)] = called.get(id(self), 0) + 1
        return right(self, x)

    monkeypatch.setattr(SparseLinear, "forward", forward)
    monkeypatch.setattr(module, "race", lambda timed, *rest: [Time(1.0, 0.0)] * len(timed))
    bench = LinearBench(CPU, seed)
    bench._l2 = 4 * (LAYER.n * LAYER.k)
    (found,) = bench.run([LAYER], [DType.INT8], [SIX], [4])
    assert isinstance(found, Measured)
    assert found.rows[0].sets == len(called) > 1
    assert set(called.values()) == {1}


def test_what_does_not_fit_is_skipped(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = LinearBench(CPU, seed)
    (found,) = bench.run([LAYER], [DType.FP8], [DENSE], [2**31 - 1])
    assert isinstance(found, SkippedLinear)
    assert "use a smaller --m" in found.reason
    assert (found.layer, found.tokens, found.problem.m) == (LAYER, 2**31 - 1, 2**31 - 1)
    monkeypatch.setattr(LinearBench, "_free", lambda self: 1000)
    first, second = bench.run([LAYER], [DType.FP8], [DENSE, SIX], [4, 8])
    for skipped, m in ((first, 4), (second, 8)):
        assert isinstance(skipped, SkippedLinear)
        assert skipped.tokens == m
        assert "it needs about 0.0 GiB and 0.0 GiB of memory are free; use fewer --patterns" in (
            skipped.reason
        )


def test_no_memory_for_one_linear_costs_that_one(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(x, q, scale, bias):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.25 GiB.\nmore")

    use_ways(monkeypatch, full=full, right=None)
    found = measure(seed)
    assert {row.torch_how for row in found.rows} == {"right"}
    assert found.ways.ways[0].reason == (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 9.25 GiB."
    )


@pytest.mark.parametrize("side", ["ours", "torch's", "race"])
def test_a_lost_device_ends_the_run_and_says_what_ran(
    side: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*arguments: object, **options: object) -> None:
        raise RuntimeError(f"{FAULT}\nand much more")

    if side == "ours":
        monkeypatch.setattr(SparseLinear, "forward", lose)
        text = "fp8_e4m3 o M=4: our linear (dense) lost it"
    elif side == "torch's":
        use_ways(monkeypatch, first=lose)
        text = "fp8_e4m3 o M=4: torch's (first) lost it"
    else:
        monkeypatch.setattr(module, "race", lose)
        text = "fp8_e4m3 o M=4: one of ours or torch's (eager) lost it"
    with pytest.raises(DeviceLost) as caught:
        measure(seed)
    assert str(caught.value) == f"the device is lost: {text}: {FAULT}"


def test_the_time_of_compilations_is_kept(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(self: TorchWays, m: int) -> Iterator[Way]:
        self.seconds += 1.5
        yield Way("eager", lambda: plain(self._dtype, m))

    monkeypatch.setattr(TorchWays, "of", of)
    bench = LinearBench(CPU, seed)
    assert len(list(bench.run([LAYER], [DType.FP8, DType.INT8], [DENSE], [2, 4]))) == 4
    assert bench.compile_seconds == 6.0
