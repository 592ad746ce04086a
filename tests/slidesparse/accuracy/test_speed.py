"""Times of patterns from a tuning cache: ratios of races, nothing made up, nothing mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import allocation_cases as cases
import pytest

from slidesparse.accuracy.speed import Batch, forms_of, problems_of, read_speeds
from slidesparse.cache import TuningCache
from slidesparse.candidate import Provenance
from slidesparse.devices import Fingerprint
from slidesparse.errors import UsageError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, GemmProblem, Scales

SHAPES = list(cases.SHAPES.values())
QKV = cases.SHAPES["qkv"]
TWO, SIX, EIGHT = (Pattern.parse(text) for text in ("2:4", "6:8", "8:10"))


@pytest.fixture
def cache(tmp_path: Path) -> TuningCache:
    fingerprint = Fingerprint("NVIDIA H200", 90, 132, 143156, "580", "13.1.0", "0.8.1")
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    return TuningCache(tmp_path / "root", fingerprint, bundled=bundled)


def read(cache: TuningCache, *batches: Batch, dtype: DType = DType.FP8):
    return read_speeds(cache, SHAPES, cases.PATTERNS, batches or (Batch(64),), dtype, "DIR")


def problem(m: int = 64, pattern: Pattern = SIX, shape: tuple[int, int] = QKV) -> GemmProblem:
    return GemmProblem(m, *shape, DType.FP8, DType.BF16, Scales.ROWCOL, pattern)


def test_the_ratio_of_a_race_applies_to_the_dense_time(cache: TuningCache) -> None:
    cases.fill(cache)
    table = read(cache)
    for shape in SHAPES:
        dense = cases.dense_us(64, *shape)
        assert table.us(shape, DENSE) == pytest.approx(dense)
        for pattern in cases.PATTERNS:
            # The race ran at another clock; its own times must not be seen.
            assert table.us(shape, pattern) == pytest.approx(dense / cases.GAINS[str(pattern)])
    assert table.form == forms_of(DType.FP8)[0]
    assert dict(table.provenance) == {Provenance.CACHED: len(SHAPES) * 5}


def test_a_mix_is_summed_with_its_counts(cache: TuningCache) -> None:
    cases.fill(cache, tokens=(64, 1024))
    table = read(cache, Batch(64, 3), Batch(1024), Batch(64))
    dense = 4 * cases.dense_us(64, *QKV) + cases.dense_us(1024, *QKV)
    assert table.us(QKV, DENSE) == pytest.approx(dense)
    assert table.us(QKV, SIX) == pytest.approx(dense / 1.15)


def test_an_m_finds_its_bucket_and_no_other(cache: TuningCache) -> None:
    cases.fill(cache, tokens=(64, 1024))
    assert read(cache, Batch(50)).us(QKV, DENSE) == pytest.approx(cases.dense_us(64, *QKV))
    with pytest.raises(
        UsageError, match=r"first M=100 .* \(bucket 128\), which is not in the cache"
    ):
        read(cache, Batch(100))


def test_where_the_plan_runs_dense_nothing_is_gained_or_lost(cache: TuningCache) -> None:
    cases.fill(cache, gains={"6:8": 0.8, "8:10": 1.0001})
    table = read(cache)
    assert table.us(QKV, SIX) == table.us(QKV, EIGHT) == table.us(QKV, DENSE)


def test_faster_lists_what_a_choice_can_gain_from(cache: TuningCache) -> None:
    cases.fill(cache, gains={"2:4": 1.2, "4:6": 1.2, "6:8": 1.3, "8:10": 0.9})
    table = read(cache)
    assert table.faster(QKV, (*cases.PATTERNS, DENSE)) == (SIX,)
    cases.fill(cache, gains={"8:10": 1.2, "6:8": 1.1})
    cache.refresh()
    assert list(map(str, read(cache).faster(QKV, cases.PATTERNS))) == ["8:10", "4:6", "2:4"]


def test_a_race_without_a_dense_baseline_is_no_figure(cache: TuningCache) -> None:
    cases.fill(cache)
    lonely = cases.made_result(problem(), 5.0, 1.2)
    cache.put(replace(lonely, baseline=None, ranked=lonely.ranked[:1]))
    with pytest.raises(UsageError, match=r"1 of 20 .* which was not compared with a dense GEMM"):
        read(cache)


def test_a_search_that_found_nothing_is_no_figure(cache: TuningCache) -> None:
    cases.fill(cache)
    cache.put(replace(cases.made_result(problem(), 5.0, 1.2), baseline=None, ranked=()))
    with pytest.raises(UsageError, match="which has a search behind it that found nothing"):
        read(cache)


def test_a_problem_that_no_sparse_backend_runs_costs_the_dense_time(cache: TuningCache) -> None:
    cases.fill(cache)
    only_dense = cases.made_result(problem(), 5.0, 0.5)
    cache.put(replace(only_dense, ranked=only_dense.ranked[:1]))
    assert read(cache).us(QKV, SIX) == read(cache).us(QKV, DENSE)


def test_what_is_missing_names_the_search(cache: TuningCache) -> None:
    with pytest.raises(UsageError) as caught:
        read(cache, Batch(64), Batch(16384, 2))
    assert str(caught.value) == (
        "40 of 40 GEMM times are missing on NVIDIA H200, first M=64 N=128 K=48 fp8_e4m3->bf16 "
        "rowcol dense (bucket 64), which is not in the cache; pass --search, or run slidesparse "
        "search --model DIR --dtype fp8 --scales rowcol --m 64,16384 --patterns 2:4,4:6,6:8,8:10"
    )


@pytest.mark.parametrize("model", ["smollm2", "models/Tiny.Q4_1.GGUF"])
def test_what_is_missing_names_no_search_of_a_model_that_search_does_not_take(
    cache: TuningCache, model: str
) -> None:
    with pytest.raises(UsageError, match=r"which is not in the cache; pass --search$"):
        read_speeds(cache, SHAPES, cases.PATTERNS, (Batch(64),), DType.FP8, model)


def test_one_form_serves_the_whole_table(cache: TuningCache) -> None:
    cases.fill(cache, scales=Scales.TENSOR)
    assert read(cache).form.scales is Scales.TENSOR
    # One result of the preferred form does not make a table of it, nor is it mixed in.
    cache.put(cases.made_result(problem(pattern=DENSE), 1e-3, 1.0))
    assert read(cache).form.scales is Scales.TENSOR
    assert read(cache).us(QKV, DENSE) == pytest.approx(cases.dense_us(64, *QKV))
    cases.fill(cache)
    assert read(cache).form.scales is Scales.ROWCOL


def test_int8_falls_back_to_its_raw_sums(cache: TuningCache) -> None:
    cases.fill(cache, dtype=DType.INT8, out=DType.INT32, scales=Scales.NONE)
    table = read(cache, dtype=DType.INT8)
    assert (table.form.out, table.form.scales) == (DType.INT32, Scales.NONE)
    with pytest.raises(UsageError, match="--dtype int8 --scales rowcol"):
        read(cache, Batch(1), dtype=DType.INT8)


def test_problems_are_each_asked_once() -> None:
    form = forms_of(DType.FP8)[0]
    made = problems_of([QKV, QKV], (SIX, DENSE), (Batch(64), Batch(16), Batch(64, 2)), form)
    assert made == tuple(problem(m, p) for p in (DENSE, SIX) for m in (16, 64))


def test_a_batch_is_spelt_as_the_command_line_does() -> None:
    assert [str(Batch(64)), str(Batch(64, 3))] == ["64", "64:3"]
