"""Result files of comparisons: there and back, as rows, as CSV, by their schema."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from compare_cases import H100, H200, write_sweep

from slidesparse.bench.compare.cost import cost_lines, parse_prices
from slidesparse.bench.compare.csv import CSV_COLUMNS, write_csv
from slidesparse.bench.compare.lines import compare
from slidesparse.bench.compare.record import (
    KIND,
    ComparisonRecord,
    make_record,
    read_json,
    rows,
    write_json,
)
from slidesparse.bench.compare.select import Options
from slidesparse.bench.kinds import read_results
from slidesparse.bench.rows import ResultFile
from slidesparse.candidate import Provenance
from slidesparse.errors import UsageError


@pytest.fixture
def record(tmp_path: Path) -> ComparisonRecord:
    files = [
        read_results(write_sweep(tmp_path / "h200.json", H200, 1.0)),
        read_results(write_sweep(tmp_path / "h100.json", H100, 1.5)),
    ]
    found = compare(files, Options())
    costs = cost_lines(found, parse_prices("h200=4/h,h100=3/h"), 1e9)
    return make_record(found, costs, {"phase": "baseline", "tokens": 1e9}).stamped()


def test_there_and_back(record: ComparisonRecord, tmp_path: Path) -> None:
    path = tmp_path / "compared.json"
    write_json(record, path)
    assert read_json(path) == record


def test_any_reader_takes_it(record: ComparisonRecord, tmp_path: Path) -> None:
    path = tmp_path / "compared.json"
    write_json(record, path)
    found: ResultFile = read_results(path)
    assert (found.kind, found.fingerprint) == (KIND.kind, None)
    assert found.machine == "NVIDIA H200, NVIDIA H100 80GB HBM3"
    assert {it.metric for it in found.rows} == {"ratio"}


def test_its_rows_are_the_ratios(record: ComparisonRecord) -> None:
    found = rows(record)
    assert [(it.workload["m"], it.value) for it in found] == [
        (512, pytest.approx(1 / 1.5)),
        (4096, pytest.approx(1 / 1.5)),
    ]
    assert all(it.provenance is Provenance.DERIVED and it.spread for it in found)


def test_no_two_rows_have_one_key(tmp_path: Path) -> None:
    """By variant a workload has several ratios, and a comparison of comparisons has its own."""
    sweeps = [
        read_results(write_sweep(tmp_path / "h200.json", H200, 1.0)),
        read_results(write_sweep(tmp_path / "h100.json", H100, 1.5)),
    ]
    paths = []
    for name in ("first.json", "second.json"):
        found = compare(sweeps, Options(by="variant"))
        write_json(make_record(found, (), {}).stamped(), tmp_path / name)
        paths.append(tmp_path / name)
    first, second = map(read_results, paths)
    assert len(first.rows) > 2
    assert len({row.key for row in first.rows}) == len(first.rows)
    twice = rows(make_record(compare([first, second], Options(by="variant")), (), {}))
    assert {row.workload["ratio of"] for row in twice} == {"ratio of throughput"}
    assert len({row.key for row in twice}) == len(twice) == len(first.rows)


def test_the_csv_has_a_line_per_cell(record: ComparisonRecord, tmp_path: Path) -> None:
    path = tmp_path / "compared.csv"
    write_csv(record, path)
    lines = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert tuple(lines[0]) == CSV_COLUMNS
    assert [line["machine"] for line in lines] == [H200.name, H100.name] * 2
    assert [line["verdict"] for line in lines] == ["", "worse"] * 2
    # 640,000 tokens a second on the H200 for 4 an hour.
    assert float(lines[0]["tokens_per_s"]) == pytest.approx(640_000)
    assert float(lines[0]["cost_per_million_tokens"]) == pytest.approx(4 / 3600 / 0.64, rel=1e-4)
    assert float(lines[0]["job_hours"]) == pytest.approx(1e9 / 640_000 / 3600, rel=1e-4)


def test_a_truncated_file_is_refused(record: ComparisonRecord, tmp_path: Path) -> None:
    path = tmp_path / "compared.json"
    write_json(record, path)
    path.write_text(path.read_text(encoding="utf-8")[:-200], encoding="utf-8")
    with pytest.raises(UsageError, match="is not JSON"):
        read_json(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("fingerprint", {"name": "x"}, "damaged: fingerprint: input should be None"),
        ("base", -1, "damaged: base: input should be greater than or equal to 0"),
        ("surplus", 1, "damaged: surplus: unexpected keyword argument"),
    ],
)
def test_wrong_values_are_named(
    record: ComparisonRecord, tmp_path: Path, field: str, value: object, message: str
) -> None:
    path = tmp_path / "compared.json"
    write_json(record, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, field: value}), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        read_json(path)


def test_the_schema_takes_it(record: ComparisonRecord, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from slidesparse.bench.kinds import result_schema

    path = tmp_path / "compared.json"
    write_json(record, path)
    data = json.loads(path.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(result_schema())
    assert not list(validator.iter_errors(data))
    assert list(validator.iter_errors({**data, "columns": 3}))


def test_files_say_what_they_were(record: ComparisonRecord) -> None:
    assert [it.fingerprint for it in record.files] == [H200, replace(H100)]
    assert [it.name for it in record.differences if it.group == "machine"] == ["name", "memory_mib"]
