"""Result files of `slidesparse plan --check`."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from capacity_records import MACHINE, make_check, make_entry
from rich.console import Console

from slidesparse.bench.capacity.check_record import CheckEntry, read_json, rows, write_json
from slidesparse.bench.kinds import read_results
from slidesparse.candidate import Provenance
from slidesparse.cli.plan_check import earlier, print_check
from slidesparse.errors import UsageError


def test_a_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    record, path = make_check(), tmp_path / "check.json"
    write_json(record, path)
    assert read_json(path) == record
    found = read_results(path)
    assert found.machine == "NVIDIA H200"
    assert found.versions["vllm"] == "0.25.1"


@pytest.mark.parametrize(("planned", "near"), [(97_000, True), (103_000, True), (96_999, False)])
def test_three_percent(planned: int, near: bool) -> None:
    assert make_entry(planned=planned).within(0.03) is near


def test_rows_are_planned_and_reported_tokens() -> None:
    plan, vllm = rows(make_check(make_entry(planned=99_000)))
    assert (plan.value, plan.provenance) == (99_000, Provenance.ESTIMATED)
    assert (vllm.value, vllm.provenance) == (100_000, Provenance.MEASURED)
    assert plan.workload == vllm.workload
    assert plan.variant != vllm.variant


def failed() -> CheckEntry:
    good = make_entry("llama3.1-8b")
    reason = "vLLM did not start: out of memory"
    return CheckEntry(good.model, good.settings, (), 0, 0, {}, reason)


def test_a_model_that_did_not_start_is_tried_again() -> None:
    record = make_check(make_entry(), failed())
    assert record.kept("qwen2.5-7b", record.entries[0].settings) == record.entries[0]
    assert record.kept("qwen2.5-7b", {}) is None
    assert record.kept("llama3.1-8b", record.entries[1].settings) is None
    assert not record.entries[1].within(0.03)
    assert len(rows(record)) == 2


def test_what_is_printed() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    print_check(make_check(make_entry(planned=98_000), failed()), console)
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    assert ["KV-cache", "tokens", "98,000", "100,000", "-2.0", "%"] in lines
    assert ["weights", "8.00", "GiB", "8.00", "GiB", "+0.0", "%"] in lines
    assert "vLLM did not start: out of memory" in text


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"kind": "slidesparse-sweep"}')
    with pytest.raises(UsageError, match="is not a result file of slidesparse plan --check"):
        read_json(path)


def test_a_run_goes_on_from_its_file(tmp_path: Path) -> None:
    record, path = make_check(), tmp_path / "check.json"
    assert earlier(None, MACHINE) is None
    assert earlier(path, MACHINE) is None
    write_json(record, path)
    assert earlier(path, MACHINE) == record
    with pytest.raises(UsageError) as caught:
        earlier(path, replace(MACHINE, driver="600.1"))
    assert str(caught.value) == (
        f"{path} is of another machine or other versions (driver 600.1 here, 580.159.04 there); "
        "name another file"
    )
