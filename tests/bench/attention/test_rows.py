"""The attention benchmark as rows that comparisons read, and its schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attention_records import make_record

from slidesparse.bench.attention.record import write_json
from slidesparse.bench.attention.rows import BOUND, FORM, rows
from slidesparse.bench.kinds import MODULES
from slidesparse.candidate import Provenance


def test_each_time_and_rate_is_a_row_with_its_provenance() -> None:
    found = rows(make_record())
    times = [row for row in found if row.metric == "time"]
    assert len(found) == 2 * len(times)
    assert [(row.workload["mask"], row.variant["backend"]) for row in times] == [
        *(("full", name) for name in ("flash", "fa3-vllm", BOUND)),
        *(("causal", name) for name in ("flash", BOUND)),
    ]
    flash, other, bound = times[:3]
    assert (flash.provenance, bound.provenance) == (Provenance.MEASURED, Provenance.DERIVED)
    assert flash.workload == bound.workload
    assert flash.workload["what"] == "attention"
    assert (flash.power_w, flash.spread) == (690.0, pytest.approx(21462.72 / 200))
    assert other.how == "vllm.vllm_flash_attn"
    rate = found[1]
    assert (rate.metric, rate.unit, rate.better) == ("throughput", "TFLOP/s", "higher")
    assert rate.value == pytest.approx(614.75, abs=0.01)
    assert rate.provenance is Provenance.DERIVED


def test_the_kind_is_known_and_its_schema_takes_its_files(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert "slidesparse.bench.attention.rows" in MODULES
    path = tmp_path / "attention.json"
    write_json(make_record(), path)
    data = json.loads(path.read_text())
    del data["kind"], data["schema_version"]
    validator = jsonschema.Draft202012Validator(FORM.schemas()[1])
    validator.validate(data)
    data["rows"][0]["median_us"] = -1.0
    assert not validator.is_valid(data)
