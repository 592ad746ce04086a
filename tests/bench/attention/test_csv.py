"""The CSV of the attention benchmark: one line per backend, those without a time too."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from attention_records import make_record

from slidesparse.bench.attention.csv import CSV_COLUMNS, write_csv


def test_every_backend_and_the_bound_have_a_line(tmp_path: Path) -> None:
    path = tmp_path / "attention.csv"
    write_csv(make_record(), path)
    lines = list(csv.DictReader(io.StringIO(path.read_text())))
    assert tuple(lines[0]) == CSV_COLUMNS
    assert [(line["causal"], line["backend"]) for line in lines] == [
        *(("0", name) for name in ("flash", "fa3-vllm", "math", "bound")),
        *(("1", name) for name in ("flash", "math", "efficient", "bound")),
    ]
    flash, math, bound = lines[0], lines[2], lines[3]
    assert (flash["median_us"], flash["us_per_head"]) == ("21462.720", "223.5700")
    assert (flash["us_per_batch_head"], flash["tflops"]) == ("13.9731", "614.747")
    assert (flash["tensor_percent"], flash["power_w"]) == ("61.250", "690.000")
    assert float(flash["percent_of_bound"]) == pytest.approx(
        100 * float(bound["median_us"]) / 21462.72, abs=1e-3
    )
    assert math["median_us"] == ""
    assert math["reason"] == "memory: it needs at least 192.0 GiB"
    assert bound["bound_by"] == "tensor cores"
    assert lines[4]["tensor_percent"] == ""
