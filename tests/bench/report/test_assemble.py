"""What a report shows follows from its files: sections with data, and a word on those without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_records import make_counters, read_all, write_results

from slidesparse.bench.counters.record import write_json
from slidesparse.bench.published.record import PublishedRecord, PublishedStep
from slidesparse.bench.report.assemble import PARTS, _unique, build_report
from slidesparse.bench.report.format import (
    cell,
    cleaned,
    number,
    pattern_look,
    ratio_cell,
    slug,
)
from slidesparse.bench.report.view import Cell, Group, LineChart, Report, Section, Table
from slidesparse.bench.rows import ResultFile
from slidesparse.bench.sweep.job import Stage
from slidesparse.errors import UsageError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ResultFile]:
    paths = write_results(tmp_path_factory.mktemp("results"))
    return {file.path.stem: file for file in read_all(paths)}


def build(*files: ResultFile) -> Report:
    return build_report(files, "A title")


def section(report: Report, key: str) -> Section:
    return next(it for it in report.sections if it.key == key)


def test_every_part_is_there_with_data_for_it(files: dict[str, ResultFile]) -> None:
    report = build(*files.values())
    keys = [it.key for it in report.sections]
    assert keys == ["speedup", "roofline", "shares", "utilisation", "pareto", "rows"]
    assert report.absent == ()
    assert report.title == "A title"
    assert "from 7 result files: NVIDIA H200, dated 2026-03-03" in report.summary


def test_a_part_without_data_is_named_with_its_command(files: dict[str, ResultFile]) -> None:
    report = build(files["kernels"])
    assert [it.key for it in report.sections] == ["rows"]
    assert [(it.title, it.remedy) for it in report.absent] == [
        (part.title, part.remedy) for part in PARTS
    ]
    assert all(it.remedy.startswith("slidesparse ") for it in report.absent)


def test_nothing_to_show_is_an_error_in_one_line(files: dict[str, ResultFile]) -> None:
    empty = replace(files["kernels"], rows=())
    with pytest.raises(UsageError, match=r"nothing to show: kernels\.json hold no figure"):
        build(empty)
    with pytest.raises(UsageError, match="nothing to show: no files"):
        build()


def test_charts_of_files_with_one_name_have_different_keys(files: dict[str, ResultFile]) -> None:
    report = build(files["sweep"], files["sweep"])
    keys = [chart.key for chart in report.charts]
    assert len(keys) == len(set(keys)) == 8
    assert keys[1] == f"{keys[0]}-2"


def test_keys_are_unique_and_short_whatever_the_names(files: dict[str, ResultFile]) -> None:
    names = ("a", "a", "a/m512-2", "x" * 240, "x" * 241)
    named = [replace(files["sweep"], path=Path(f"{name}.json")) for name in names]
    named.append(replace(files["sweep"], path=Path("א.json")))
    keys = [chart.key for chart in build(*named).charts]
    assert len(keys) == len(set(keys)) == 24
    assert max(map(len, keys)) < 130


def test_a_number_that_makes_a_key_unique_is_not_anothers(files: dict[str, ResultFile]) -> None:
    # The second chart would be called as the third is.
    charts = [build(files["sweep"]).charts[0]] * 2
    charts.append(replace(charts[0], key=f"{charts[0].key}-2"))
    sections = [Section("s", "t", "a", (Group("g", charts=tuple(charts)),))]
    keys = [chart.key for it in _unique(sections) for g in it.groups for chart in g.charts]
    assert len(set(keys)) == 3


def test_runs_that_ended_early_are_named_first(files: dict[str, ResultFile]) -> None:
    assert build(files["sweep"]).cautions == ()
    early = replace(files["sweep"], record=replace(files["sweep"].record, interrupted=True))
    (line,) = build(early, files["linear"]).cautions
    assert line.endswith(": sweep.json.")


def published(file: ResultFile) -> ResultFile:
    steps = (
        PublishedStep(Stage.DECODE, "tiny", DType.INT8, 64, DENSE, 1000.0),
        PublishedStep(Stage.DECODE, "tiny", DType.INT8, 64, Pattern.parse("6:8"), 1250.0),
    )
    record = PublishedRecord("H100", "a paper", None, {}, {}, steps, ())
    return replace(file, path=Path("theirs.json"), machine="H100 (published)", record=record)


def test_what_others_published_is_folded_and_called_that(files: dict[str, ResultFile]) -> None:
    report = build(files["sweep"], published(files["sweep"]))
    ours, theirs = section(report, "speedup").groups
    assert (ours.folded, theirs.folded) == (False, True)
    assert theirs.tables[0].folded
    assert "published on H100 (published); the dense time is theirs" in theirs.tables[0].caption
    assert "the mean of both runs of the stock engine" in ours.tables[0].caption
    assert theirs.charts[0].title.startswith("published decode step, tiny int8")
    assert [row[0].text for row in report.digests[0].rows] == [
        "prefill step, qwen2.5-7b fp8_e4m3 graphs, sweep.json"
    ]


def test_charts_that_would_be_called_the_same_name_their_files(
    files: dict[str, ResultFile],
) -> None:
    again = replace(files["search"], path=Path("again.json"))
    titles = [chart.title for chart in build(files["search"]).charts]
    both = [
        chart.title for chart in section(build(files["search"], again), "speedup").groups[0].charts
    ]
    assert both == [f"{titles[0]}, search.json", f"{titles[0]}, again.json"]


def test_each_row_has_its_own_dense_way(files: dict[str, ResultFile]) -> None:
    torch = replace(files["sweep"].record, engine="torch")
    both = build(files["sweep"], replace(files["sweep"], record=torch))
    (table,) = section(both, "speedup").groups[0].tables
    assert table.caption.startswith("Speedup over stock vLLM, stock torch, measured")
    assert table.rows[0][0].text.endswith(", over stock vLLM")
    assert table.rows[-1][0].text.endswith(", over stock torch")


def test_the_digest_counts_faster_slower_and_neither(files: dict[str, ResultFile]) -> None:
    (digest,) = build(files["sweep"], files["linear"]).digests
    assert [cell.text for cell in digest.rows[0]] == [
        "prefill step, qwen2.5-7b fp8_e4m3 graphs, sweep.json",
        *("NVIDIA H200", "1.25x", "6:8", "65536", "1.33x"),
        # What ours gains there without pruning, so that no pattern is praised for it.
        "1.03x",
        *("3", "1", "1"),
    ]
    assert [cell.text for cell in digest.rows[1]][6:] == ["~ 1.00x", "0", "1", "0"]


def test_speedups_with_their_bound(files: dict[str, ResultFile]) -> None:
    (group,) = section(build(files["sweep"]), "speedup").groups
    (chart,) = group.charts
    assert isinstance(chart, LineChart)
    assert [(one.name, one.bound) for one in chart.series] == [
        ("ours, dense", None),
        ("6:8", 4 / 3),
    ]
    assert "6:8: 0.90 at M=512, 1.25 at M=65536, bound 1.33." in chart.alt
    assert [mark.hollow for mark in chart.series[1].marks] == [False, True, False, False, False]
    (table,) = group.tables
    assert table.columns == ("model", "M", "dense, ms", "ours, dense", "6:8", "file")
    assert [row[4].text for row in table.rows] == ["0.90x", "~ 1.00x", "1.12x", "1.20x", "1.25x"]


def test_what_is_planned_stands_beside_a_search(files: dict[str, ResultFile]) -> None:
    totals, every = section(build(files["search"]), "speedup").groups[0].tables
    assert totals.columns == ("model", "M", "dense, ms", "6:8", "6:8, planned", "file")
    assert [it.text for it in totals.rows[0]][1:5] == ["64", "0.280", "1.25x", "1.25x"]
    assert every.folded
    assert [it.text for it in every.rows[0]][-3:] == ["cublaslt", "cusparselt", "measured"]


def test_shares_are_of_stocks_time(files: dict[str, ResultFile]) -> None:
    (group,) = section(build(files["sweep"]), "shares").groups
    # Of five M the first, the middle one and the last.
    assert [chart.title for chart in group.charts] == [
        f"M={m} tokens, prefill step, qwen2.5-7b fp8_e4m3 graphs, NVIDIA H200"
        for m in (512, 4096, 65536)
    ]
    bars = {bar.name: bar for bar in group.charts[2].bars}  # type: ignore[union-attr]
    assert sum(bars["stock"].parts) == pytest.approx(1.0)
    assert sum(bars["ours 6:8"].parts) == pytest.approx(1 / 1.25)
    assert bars["ours 6:8"].parts[0] == pytest.approx(0.58 / 1.25)


def test_utilisation_of_each_mode(files: dict[str, ResultFile]) -> None:
    found = section(build(files["counters"]), "utilisation")
    rates, eager, graphs = found.groups[0].charts
    assert isinstance(rates, LineChart)
    assert isinstance(eager, LineChart)
    assert [one.name for one in rates.series] == ["eager", "graphs"]
    assert [(mark.x, mark.y) for mark in rates.series[1].marks][1] == (256, 15703.0)
    names = ["SM active", "SM occupancy", "tensor active", "DRAM active", "KV cache used"]
    assert [one.name for one in eager.series] == names
    assert [mark.y for mark in eager.series[0].marks] == [3.6, 20.0, 55.3]
    assert "SM active: 27.5 % at C=1, 50.0 % at C=1024" in graphs.alt
    assert found.findings[0].startswith(
        "Serving qwen3-30b-a3b fp8_e4m3, NVIDIA H200: at most 16,610 tokens/s, at C=1024, eager"
    )


def test_a_gpu_without_counters_says_so(tmp_path: Path) -> None:
    path = tmp_path / "counters.json"
    write_json(make_counters(counted=False), path)
    (group,) = section(build(*read_all([path])), "utilisation").groups
    assert group.notes == ("Without hardware counters: the GPU has no GPM.",)
    assert "SM active" not in group.tables[0].columns
    assert "KV cache used" in group.tables[0].columns


def test_rows_of_other_kinds_in_a_table_per_metric(files: dict[str, ResultFile]) -> None:
    (group,) = section(build(files["kernels"]), "rows").groups
    shown = sum(len(table.rows) for table in group.tables)
    assert shown == len(files["kernels"].rows) > 5
    assert all("provenance" in table.columns for table in group.tables)


def test_too_many_rows_are_cut_and_it_is_said(files: dict[str, ResultFile]) -> None:
    file = files["kernels"]
    (group,) = section(build(replace(file, rows=file.rows * 200)), "rows").groups
    assert sum(len(table.rows) for table in group.tables) == 1000
    assert group.notes[1] == f"The first 1,000 of {200 * len(file.rows):,} rows; the file has " + (
        "the rest."
    )


def test_sources_have_every_file_and_what_differs(files: dict[str, ResultFile]) -> None:
    sources = build(*files.values()).sources
    listed, provenance = sources.groups[0].tables
    assert [row[0].text for row in listed.rows] == [f"{name}.json" for name in files]
    assert {row[0].text for row in provenance.rows} >= {"measured", "derived"}
    machine = sources.groups[1].tables[0]
    told = {(row[0].text, row[1].text): row[2].text for row in machine.rows}
    assert told["sm count", "132"] == "all"
    assert told["vllm", "0.25.1"] == "sweep.json, counters.json"
    assert len(sources.groups[2].tables) == len(files)


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="1 cells, 2 columns"):
        Table("t", ("a", "b"), ((Cell("1"),),))
    assert Table("t", ("a", "b"), ()).numeric == (False, False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *(
            (0, "0"),
            (2, "2.00"),
            (0.5, "0.500"),
            (99.96, "100"),
            (164.2, "164"),
            (-3.14159, "-3.14"),
        ),
        *((16384, "16,384"), (0.00123, "0.00123"), (0.000123, "1.23e-04"), (999.6, "1,000")),
    ],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


def test_cells() -> None:
    assert cell(None) == Cell("n/a")
    assert cell(3, "three") == Cell("three", 3.0)
    assert ratio_cell(1.234, clear=False) == Cell("~ 1.23x", 1.234)
    assert slug("Speedup: Qwen2.5-7B, <FP8>") == "speedup-qwen2-5-7b-fp8"
    assert len(slug("x" * 500)) < 130


def test_names_cannot_turn_the_text_after_them_round() -> None:
    assert cleaned("a\u202eb\u2066c\x9bd \u05d0 \U0001f600") == (
        "a\ufffdb\ufffdc\ufffdd \u05d0 \U0001f600"
    )


def test_patterns_can_be_told_apart() -> None:
    names = ("dense", "2:4", "4:6", "6:8", "8:10", "10:12", "12:14", "14:16")
    looks = [pattern_look(Pattern.parse(name)) for name in names]
    assert len({it.mark for it in looks}) == len({it.hue for it in looks}) == len(looks)
