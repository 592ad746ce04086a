"""Rows of a search: best sparse, best dense, defaults, and sums over the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from search_records import SIX, make_record, measured

from slidesparse.bench.rows import Row
from slidesparse.bench.search.record import SearchRecord
from slidesparse.bench.search.rows import rows
from slidesparse.candidate import Provenance


def named(found: tuple[Row, ...], what: str, pattern: str) -> dict[str, Row]:
    return {
        " ".join(map(str, row.variant.values())): row
        for row in found
        if (row.workload["what"], row.workload["pattern"]) == (what, pattern)
    }


def with_defaults() -> SearchRecord:
    record = make_record()
    results = dict(record.results)
    (problem,) = (it for it in results if it.pattern == SIX)
    result, provenance = results[problem]
    defaults = (measured("cublaslt", 11.0), measured("cusparselt", 9.0, True))
    results[problem] = (replace(result, defaults=defaults), provenance)
    # Without the layer that was skipped, so that there are sums.
    return replace(record, results=results, layers=record.layers[:2])


def test_the_best_of_each_form_and_every_default() -> None:
    found = named(rows(with_defaults()), "gemm", "6:8")
    assert {name: row.value for name, row in found.items()} == {
        "best sparse": 8.0,
        "best dense": 10.0,
        "default cublaslt dense": 11.0,
        "default cusparselt sparse": 9.0,
    }
    best = found["best sparse"]
    assert dict(best.workload) == {
        "what": "gemm",
        "model": "tiny",
        "layer": "expert_down",
        "tokens": 64,
        "m": 16,
        "n": 64,
        "k": 96,
        "dtype": "fp8_e4m3",
        "out": "bf16",
        "scales": "tensor",
        "pattern": "6:8",
    }
    assert (best.metric, best.unit, best.better) == ("time", "us", "lower")
    assert (best.spread, best.power_w, best.how) == (0.5, 512.5, "cusparselt tile=128x64")
    assert best.provenance is Provenance.MEASURED


def test_a_dense_problem_has_its_own_best() -> None:
    found = named(rows(make_record()), "gemm", "dense")
    assert {name: row.value for name, row in found.items()} == {"best dense": 10.0}
    assert found["best dense"].provenance is Provenance.BUNDLED


def test_sums_count_layers_as_often_as_the_model_has_them() -> None:
    found = named(rows(with_defaults()), "gemms of the model", "6:8")
    count = with_defaults().layers[0].layer.count
    assert {name: row.value for name, row in found.items()} == pytest.approx(
        {"best sparse": 8.0 * count, "best dense": 10.0 * count, "planned": 8.0 * count}
    )
    assert {row.provenance for row in found.values()} == {Provenance.DERIVED}
    assert found["planned"].workload["tp"] == 2


def test_a_sum_needs_every_layer() -> None:
    assert named(rows(make_record()), "gemms of the model", "dense") == {}
