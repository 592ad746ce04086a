"""Quality on two GPUs: identical, within the stated noise, or not; always variant by variant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from accuracy_records import make_accuracy
from compare_cases import H100, file, row

from slidesparse.bench.accuracy.record import AccuracyRecord, write_json
from slidesparse.bench.compare.lines import Line, compare
from slidesparse.bench.compare.quality import Shift, is_quality, shift_of, with_noise
from slidesparse.bench.compare.select import Options, Phase
from slidesparse.bench.kinds import read_results

WANDA = {"pattern": "6:8", "method": "wanda", "dtype": "none"}


def perplexities(tmp_path: Path, other: AccuracyRecord, options: Options) -> list[Line]:
    paths = tmp_path / "a.json", tmp_path / "b.json"
    write_json(make_accuracy(), paths[0])
    write_json(other, paths[1])
    lines = compare([read_results(path) for path in paths], options).lines
    return [line for line in lines if line.metric == "perplexity"]


def scaled(factor: float) -> AccuracyRecord:
    record = make_accuracy()
    rows = [
        replace(it, perplexity=None if it.perplexity is None else factor * it.perplexity)
        for it in record.rows
    ]
    return replace(record, fingerprint=H100, rows=tuple(rows))


@pytest.mark.parametrize("options", [Options(), Options(phase=Phase.ADAPTED)])
def test_real_files_are_compared_variant_by_variant(tmp_path: Path, options: Options) -> None:
    lines = perplexities(tmp_path, scaled(1.0), options)
    variants = [tuple(line.variant.values()) for line in lines]
    assert len(variants) == len(set(variants)) == 6
    for line in lines:
        assert line.quality
        assert line.cells[0] is not None
        assert line.cells[0].variant == line.variant
        assert line.shifts[1] is not None
        assert line.shifts[1].verdict == "identical"


@pytest.mark.parametrize(("factor", "verdict"), [(1.001, "within noise"), (1.1, "differs")])
def test_noise_of_a_perplexity_is_that_of_its_loss(
    tmp_path: Path, factor: float, verdict: str
) -> None:
    lines = perplexities(tmp_path, scaled(factor), Options())
    (line,) = [it for it in lines if dict(it.variant) == WANDA]
    assert line.shifts[1] is not None
    # error 0.0123, times 1.349 for quartiles, of two files, halved: 1.2 % of the perplexity.
    assert line.shifts[1].noise == pytest.approx(31.06 * 0.0123 * 1.349 * 2**0.5 / 2, rel=0.06)
    assert line.shifts[1].verdict == verdict


def test_the_dense_model_states_no_noise(tmp_path: Path) -> None:
    lines = perplexities(tmp_path, scaled(1.001), Options())
    (line,) = [it for it in lines if set(it.variant.values()) == {"dense", "none"}]
    assert line.shifts[1] is not None
    assert line.shifts[1].verdict == "differs, noise unknown"


def test_spreads_of_a_difference_add_in_squares() -> None:
    assert shift_of(row(1.0, 3.0), row(6.0, 4.0)) == Shift(5.0, 2.5)
    assert shift_of(row(1.0, 3.0), row(6.0)).noise is None


@pytest.mark.parametrize(
    ("shift", "text"),
    [
        (Shift(0.0, None), "identical"),
        (Shift(0.5, 1.0), "within noise (+0.5 ±1)"),
        (Shift(-2.0, 1.0), "differs (-2 ±1)"),
        (Shift(0.25, None), "differs, noise unknown (+0.25)"),
    ],
)
def test_how_tables_print_it(shift: Shift, text: str) -> None:
    assert str(shift) == text


def test_speed_is_no_quality() -> None:
    assert not is_quality(row(1.0))
    assert is_quality(row(1.0, metric="perplexity", unit=""))
    assert is_quality(row(1.0, workload={"what": "accuracy"}, metric="arc acc", unit=""))


def test_a_perplexity_with_its_own_spread_keeps_it() -> None:
    rows = with_noise(
        [
            row(20.0, 0.5, metric="perplexity", unit=""),
            row(0.1, 0.01, metric="loss increase", unit="nats/token"),
        ]
    )
    assert rows[0].spread == 0.5
    assert file(*rows).rows == rows
