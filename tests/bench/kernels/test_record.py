"""A result file of the kernels reads back as it was written; a damaged one says what is wrong."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_records import make_record

from slidesparse.bench.kernels.record import CSV_COLUMNS, read_json, write_csv, write_json
from slidesparse.errors import UsageError


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    write_json(make_record(), path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_record_comes_back_whole(written: Path) -> None:
    assert read_json(written) == make_record()
    assert [path.name for path in written.parent.iterdir()] == ["result.json"]


def test_the_file_is_plain(written: Path) -> None:
    data = json.loads(written.read_text())
    assert (data["kind"], data["schema_version"]) == ("slidesparse-kernels-bench", 1)
    assert data["rows"][0]["problem"]["pattern"] == "6:8"
    assert data["rows"][0]["config"]["block"] == 2048
    assert data["rows"][0]["error"] is None
    assert data["rows"][2]["median_us"] is None


def test_figures_follow_from_bytes_and_time() -> None:
    row = make_record().rows[1]
    assert row.gbs == pytest.approx(40_000 * 4096 / 50e-6 / 1e9)
    assert row.percent_of_copy == pytest.approx(row.gbs / 4000 * 100)
    assert row.floor_us == pytest.approx(1.5 + 40_000 * 4096 / 4000e9 * 1e6)


def test_the_fastest_way_of_an_alternative_is_its_ratio() -> None:
    small, large, wrong = make_record().rows
    assert small.ratio("vllm") == 3.0 / 4.0
    assert small.ratio("torch.compile") == 1.5
    assert large.ratio("vllm") is None
    assert wrong.ratio("vllm") is None
    assert make_record().names == ("vllm", "torch.compile")


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "no.json"
    assert refusal(path) == f"cannot read {path}: No such file or directory"
    assert refusal(tmp_path) == f"cannot read {tmp_path}: Is a directory"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file(written: Path, share: float) -> None:
    content = written.read_bytes().rstrip()
    written.write_bytes(content[: int(share * len(content))])
    assert refusal(written).startswith(f"{written} is not JSON: ")


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"kind": "slidesparse-search"}', "null"])
def test_a_file_of_another_kind(written: Path, content: str) -> None:
    written.write_text(content)
    assert refusal(written) == f"{written} is not a result file of slidesparse bench kernels"


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (0, "measure again with slidesparse bench kernels"),
        (2, "update slidesparse"),
        (None, "measure again with slidesparse bench kernels"),
        ("1", "measure again with slidesparse bench kernels"),
    ],
)
def test_another_schema(written: Path, version: Any, remedy: str) -> None:
    data = json.loads(written.read_text())
    data["schema_version"] = version
    written.write_text(json.dumps(data))
    assert refusal(written) == f"{written} has schema version {version}, this is 1; {remedy}"


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("rows", 0, "median_us"), -1.0, "rows.0.median_us: "),
        (("rows", 0, "median_us"), "fast", "rows.0.median_us: "),
        (("rows", 0, "median_us"), float("nan"), "rows.0.median_us: "),
        (("rows", 0, "bytes"), 1.5, "rows.0.bytes: "),
        (("rows", 0, "problem", "m"), 0, "rows.0.problem: m: "),
        (("rows", 0, "problem", "op"), "multiply", "rows.0.problem: op: "),
        (("rows", 0, "alternatives", 0, "name"), "", "rows.0.alternatives.0.name: "),
        (("rows", 0, "tuned"), 1, "rows.0.tuned: "),
        (("rows", 0, "colour"), "red", "rows.0.colour: "),
        (("ceilings", "copy_gbs"), 0, "ceilings.copy_gbs: "),
        (("fingerprint", "sm"), -1, "fingerprint: sm: "),
        (("skipped", 0, "problem", "out"), "fp8_e4m3", "skipped.0.problem: dequantize cannot "),
    ],
)
def test_damaged_fields_are_named(written: Path, path: tuple, value: Any, reason: str) -> None:
    data = json.loads(written.read_text())
    place = data
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    written.write_text(json.dumps(data))
    text = refusal(written)
    assert text.startswith(f"{written} is damaged: ")
    assert reason in text


@pytest.mark.parametrize("field", ["seconds", "rows", "ceilings", "settings", "created", "commit"])
def test_missing_fields_are_named(written: Path, field: str) -> None:
    data = json.loads(written.read_text())
    del data[field]
    written.write_text(json.dumps(data))
    assert refusal(written) == f"{written} is damaged: it lacks '{field}'"


def test_a_missing_field_of_a_row_is_named(written: Path) -> None:
    data = json.loads(written.read_text())
    del data["rows"][1]["wide_us"]
    written.write_text(json.dumps(data))
    assert refusal(written) == f"{written} is damaged: it lacks 'rows.1.wide_us'"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for write in (write_json, write_csv):
        path = tmp_path / "no" / "file"
        with pytest.raises(UsageError) as caught:
            write(make_record(), path)
        assert str(caught.value) == f"cannot write {path}: No such file or directory"


def test_csv_has_a_line_for_ours_and_for_each_alternative(tmp_path: Path) -> None:
    path = tmp_path / "result.csv"
    write_csv(make_record(), path)
    with path.open(newline="") as file:
        header, *lines = list(csv.reader(file))
    assert tuple(header) == CSV_COLUMNS
    assert {len(line) for line in lines} == {len(CSV_COLUMNS)}
    named = [dict(zip(header, line, strict=True)) for line in lines]
    assert [line["what"] for line in named] == [
        *("slidesparse", "vllm", "vllm", "torch.compile"),
        *("slidesparse", "torch.compile", "vllm"),
        "slidesparse",
    ]
    assert named[0]["op"] == "quantize"
    assert named[0]["tuned"] == "0"
    assert named[2]["ratio_to_ours"] == "0.750"
    assert named[6]["reason"] == "vLLM is not installed"
    assert (named[7]["median_us"], named[7]["reason"]) == ("", "3.00% of the values differ")


def test_the_record_is_stamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDESPARSE_COMMIT", "abc123")
    stamped = replace(make_record(), commit="", created="").stamped()
    assert stamped.commit == "abc123"
    assert stamped.created.endswith("+00:00")
