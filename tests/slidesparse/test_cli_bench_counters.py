"""`slidesparse bench decode --counters`: tables and files agree, resume, Ctrl-C, bad options."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_runs import assert_one_line, assert_usage_error_without_torch, ended, wait_for
from click.testing import CliRunner, Result
from counters_engines import FACTORY
from counters_records import LOAD, heading, record
from sweep_engines import LOG, SCRIPT, calls, pids

from slidesparse.bench.counters import book as counters_book
from slidesparse.bench.counters.record import CountersRecord, LoadCell, LoadFigures, read_json
from slidesparse.bench.counters.sampler import Source
from slidesparse.bench.sweep.job import Mode
from slidesparse.bench.sweep.runner import Kind
from slidesparse.cli import bench_counters
from slidesparse.cli.bench_counters import first_lines
from slidesparse.cli.counters_table import _notes, cost_line
from slidesparse.cli.main import cli
from slidesparse.cli.progress import ProgressLine
from slidesparse.counters import METRICS

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"
SUPPORT = Path(__file__).resolve().parents[1] / "support"
SMALL = ("--counters", "--model", str(TINY), "--concurrency", "2,4,8", "--seed", "5")

Command = Callable[..., Result]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    monkeypatch.setenv(LOG, str(path))
    return path


def scripted(patch: pytest.MonkeyPatch) -> Command:
    """Run the command with the scripted engine."""
    patch.setattr(bench_counters, "_check_vllm", lambda device: None)
    patch.setattr(bench_counters, "check_gpus", lambda tp, device: None)
    patch.setattr(bench_counters, "version_of", lambda name: "0.25.1")
    engine = replace(counters_book.LOAD_ENGINE, factory=FACTORY)
    patch.setattr(counters_book, "LOAD_ENGINE", engine)

    def run(*arguments: str, script: dict[str, str] | None = None) -> Result:
        patch.setenv(SCRIPT, json.dumps(script or {}))
        return invoke(*SMALL, *arguments)

    return run


@pytest.fixture
def load(log: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command with the scripted engine."""
    return scripted(monkeypatch)


class Run(NamedTuple):
    """One of several runs on one file: what it printed, what it called, and what the file holds."""

    result: Result
    calls: list[str]
    record: CountersRecord


class Story(NamedTuple):
    """A run in which cells fail, the same command again, and again: processes take seconds."""

    file: Path
    table: Path
    failed: Run
    continued: Run
    idle: Run
    said: list[str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Cells are refused, lack figures or give none; then all are measured, one short of KV cache.

    What a process that dies costs is in tests/bench/sweep/test_runner.py.
    """
    folder = tmp_path_factory.mktemp("story")
    file, table, log = folder / "out.json", folder / "out.csv", folder / "log"
    failing = {
        **{"* eager C=2": "refuse", "* eager C=8": "blind"},
        **{"* graphs C=2": "refuse", "* graphs C=8": "nothing"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOG, str(log))
        load, said, say = scripted(patch), list[str](), ProgressLine.say

        def noted(line: ProgressLine, text: str) -> None:
            said.append(text)
            say(line, text)

        patch.setattr(ProgressLine, "say", noted)

        def run(*arguments: str, script: dict[str, str] | None = None) -> Run:
            log.write_text("")
            result = load(*arguments, script=script)
            return Run(result, calls(log), read_json(file))

        failed = run("--json", str(file), script=failing)
        crowded = {"* graphs C=8": "crowded"}
        continued = run("--json", str(file), "--csv", str(table), script=crowded)
        return Story(file, table, failed, continued, run("--resume", str(file)), said)


def invoke(*arguments: str) -> Result:
    rest = ["--device", "cpu"]
    return CliRunner().invoke(cli, ["bench", "decode", *arguments, *rest], env={"COLUMNS": "120"})


def cells(output: str) -> list[list[str]]:
    return [re.split(r"\s{1,}", line.strip()) for line in output.splitlines()]


def figures(cell: LoadCell) -> LoadFigures:
    assert cell.figures is not None
    return cell.figures


def test_failures_are_told_and_the_rest_is_measured(story: Story) -> None:
    result, called, made = story.failed
    assert_one_line(result, 1, "4 of 6 cells failed, first", "sequences of 9 tokens are too long")
    assert not made.interrupted
    assert [cell.failure for cell in made.cells] == [
        *(Kind.ERROR, None, Kind.ERROR),
        *(Kind.ERROR, None, Kind.ERROR),
    ]
    assert called == [
        *("stock eager build 2,4,8", "stock eager C=2", "stock eager C=4", "stock eager C=8"),
        *("stock graphs build 2,4,8", "stock graphs C=2", "stock graphs C=4", "stock graphs C=8"),
    ]
    assert ["graphs", "2", "error"] in cells(result.stdout)
    turn = f"{TINY} fp8_e4m3 eager stock"
    assert story.said[:3] == [f"{turn}: building", f"{turn} C=2", f"{turn} C=4"]
    text = " ".join(result.stdout.split())
    assert f"FAILED {TINY} fp8_e4m3 graphs C=2: error: sequences of 9 tokens" in text
    assert "the engine's running is missing" in text
    assert "gave no figures of C=8 but None" in text


def test_the_same_command_measures_what_failed(story: Story) -> None:
    result, called, made = story.continued
    assert result.exit_code == 0, result.output
    assert called == [
        *("stock eager build 2,8", "stock eager C=2", "stock eager C=8"),
        *("stock graphs build 2,8", "stock graphs C=2", "stock graphs C=8"),
    ]
    assert [(str(cell.mode), cell.concurrency) for cell in made.cells] == [
        *(("eager", 2), ("eager", 4), ("eager", 8)),
        *(("graphs", 2), ("graphs", 4), ("graphs", 8)),
    ]
    assert [cell.session for cell in made.cells] == [1, 0, 1, 1, 0, 1]
    assert made.cells[1] == story.failed.record.cells[1]
    # The cost of sampling is measured at the smallest and the largest concurrency of all.
    assert [figures(cell).cost is not None for cell in made.cells[:3]] == [True, False, True]


def test_a_file_that_is_complete_needs_no_process(story: Story) -> None:
    result, called, made = story.idle
    assert result.exit_code == 0
    assert f"every cell is in {story.file}; --fresh measures anew" in result.stderr
    assert called == []
    assert made.cells == story.continued.record.cells


def test_tables_and_files_say_the_same(story: Story) -> None:
    result, _, made = story.continued
    printed = cells(result.stdout)
    row = ["graphs", "4", "1,000", "1.0", "%", "60.0", "20.0", "10.0", "0.0", "25.0", "450", "55"]
    assert [*row, "1,980", "30.0", "4", "0", "0"] in printed
    # Side by side, and what is left.
    assert [str(TINY), "4", "400", "1,000", "2.50", "1.12", "/", "0.45"] in printed
    assert ["eager", "4", "40.0", "75.0", "250", "70.0", "630,000"] in printed
    text = " ".join(result.stdout.split())
    assert "int tensor: integer products alone, which does not see FP8" in text
    assert "start and drain cut off" in text
    assert "Eager leaves out torch.compile as well as CUDA graphs" in text
    assert f"{TINY} fp8_e4m3 eager C=4: cut off 5.5 s and 1,000 tokens before the window" in text
    assert "eager C=8: sampling costs +0.50 % of the throughput (median of 6 pairs" in text
    assert "Headroom is not additive" in text
    short = "4 of 8 ran: the KV cache of 900,000 tokens was 100 % full, 7 preemptions"
    assert f"graphs C=8: {short}" in text
    assert "n/a" not in text
    assert "6 of 6 cells in " in text
    lines = list(csv.DictReader(io.StringIO(story.table.read_text())))
    assert [line["concurrency"] for line in lines] == ["2", "4", "8", "2", "4", "8"]
    assert float(lines[4]["tokens_per_s"]) == figures(made.cells[4]).tokens_per_s == 1000.0


def test_the_defaults_of_counters_are_its_own(load: Command, tmp_path: Path) -> None:
    file, again = tmp_path / "out.json", tmp_path / "again.json"
    none = ("--budget", "1e-9")
    result = load("--json", str(file), *none)
    assert result.exit_code == 0, result.output
    assert "6 cells are left: the budget of 1e-09 s was used up" in result.stderr
    settings = read_json(file).settings
    assert (settings["prompt"], settings["max_tokens"]) == (30, 512)
    assert settings["dtypes"] == ["fp8_e4m3"]
    assert settings["modes"] == ["eager", "graphs"]
    assert (settings["seconds"], settings["sample_ms"]) == (15.0, 100)
    other = ("--dtype", "int8", "--prompt", "64", "--modes", "graphs", "--max-tokens", "32")
    assert load("--json", str(again), *other, *none).exit_code == 0
    settings = read_json(again).settings
    assert (settings["prompt"], settings["max_tokens"]) == (64, 32)
    assert (settings["dtypes"], settings["modes"]) == (["int8"], ["graphs"])


def test_what_is_expected_is_said_first() -> None:
    lines = first_lines(heading(), LOAD.turns())
    assert lines[0] == "Loading qwen3-30b-a3b on NVIDIA H200, vLLM 0.25.1, the plug-in off"
    assert "30 tokens of prompt, 512 generated" in lines[1]
    assert re.match(r"Expected: about [67] min for 6 cells in 2 processes \(estimated: ", lines[2])


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (("--prompt", "64"), "prompt 64 here, 30 there"),
        (("--seconds", "20"), "seconds 20.0 here, 15.0 there"),
        (("--max-tokens", "64"), "max_tokens 64 here, 512 there"),
        (("--counter-source", "none"), "counter_source none here, auto there"),
        (("--seed", "6"), "seed 6 here, 5 there"),
    ],
)
def test_a_file_of_other_settings_is_refused(
    changed: tuple[str, ...], text: str, load: Command, log: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    assert load("--json", str(file), "--budget", "1e-9").exit_code == 0
    content = file.read_bytes()
    assert_one_line(load("--json", str(file), *changed), 2, str(file), text, "--fresh")
    assert file.read_bytes() == content
    assert not log.exists()


@pytest.mark.parametrize("content", ['{"kind": "slidesparse-cou', '{"kind": "slidesparse-sweep"}'])
def test_a_damaged_file_is_neither_read_nor_overwritten(
    content: str, load: Command, log: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    file.write_text(content)
    assert_one_line(load("--json", str(file)), 2, str(file), "--fresh")
    assert file.read_text() == content
    assert not log.exists()


def test_dry_run_lists_processes_and_runs_none(load: Command, log: Path) -> None:
    result = load("--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[3:] == [
        "2 processes, 6 cells:",
        f"  {TINY} fp8_e4m3 eager stock: C=2,4,8",
        f"  {TINY} fp8_e4m3 graphs stock: C=2,4,8",
    ]
    assert not log.exists()


def test_quiet_prints_nothing(load: Command, tmp_path: Path) -> None:
    table = tmp_path / "out.csv"
    result = load("-q", "--modes", "eager", "--concurrency", "2", "--csv", str(table))
    assert (result.exit_code, result.output) == (0, "")
    assert len(table.read_text().splitlines()) == 1 + 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--counters", "--m", "4"), "--counters does not take --m: give --concurrency"),
        (("--counters", "--outputs", "4"), "does not take --outputs: give --max-tokens"),
        (("--counters", "--repeats", "4"), "does not take --repeats: give --seconds"),
        (("--counters", "--patterns", "6:8"), "--counters does not take --patterns"),
        (("--counters", "--same-weights"), "--counters does not take --same-weights"),
        (("--counters", "--figure", "x.png"), "--counters does not take --figure"),
        (("--counters", "--engine", "linear"), "does not take --engine linear"),
        (("--concurrency", "4"), "--concurrency belongs to --counters; add --counters"),
        (("--max-tokens", "4"), "--max-tokens belongs to --counters"),
        (("--seconds", "4"), "--seconds belongs to --counters"),
        (("--sample-ms", "50"), "--sample-ms belongs to --counters"),
        (("--counter-source", "gpm"), "--counter-source belongs to --counters"),
        (("--counters", "--concurrency", "4,x"), "C='x' is not an integer"),
        (("--counters", "--concurrency", "0"), "C=0 is not a positive number of requests"),
        (("--counters", "--seconds", "1"), "use --seconds 2.4 or more, or a smaller --sample-ms"),
        (("--counters", "--sample-ms", "5"), "--sample-ms"),
        (("--counters", "--settle", "-1"), "--settle"),
        (("--counters", "--settle", "nan"), "--settle nan is not a number of seconds"),
        (("--counters", "--seconds", "0"), "0 is not a positive number of seconds"),
        (("--counters", "--seconds", "300"), "600 s counts as hung; use less, or a longer --cell"),
        (("--counters", "--concurrency", "1000000000"), "C=1000000000 is more than 65536 requests"),
        (
            ("--counters", "--concurrency", "8192", "--prompt", "32768"),
            "8192 requests of 32768 + 512 tokens are 272629760 together",
        ),
        (("--counters", "--counter-source", "ncu"), "ncu"),
        (("--counters", "--model", "nope"), "nope"),
        (("--counters", "--model", "qwen2.5-7b", "--tp", "3"), "tp=3 does not divide"),
        (("--counters", "--json", "/no/such/folder/x.json"), "/no/such/folder does not exist"),
        (("--counters", "--json", "same", "--csv", "same"), "--json and --csv both name same"),
        (("--counters", "--resume", "gone.json"), "there is no such file; begin with --json"),
        (("--counters", "--max-tokens", "2147483640"), "sequences of more than 2147483647"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options(options: tuple[str, ...], text: str) -> None:
    result = invoke(*options)
    assert result.stdout == ""
    assert_one_line(result, 2, text)


def test_a_machine_that_cannot_serve_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_counters, "find_spec", lambda name: None)
    assert_one_line(invoke("--counters"), 2, "needs vLLM: pip install 'slidesparse[vllm]'")
    monkeypatch.setattr(bench_counters, "find_spec", lambda name: object())
    assert_one_line(invoke("--counters"), 2, "--counters needs a GPU, and this would run on cpu")


@pytest.mark.parametrize("given", [("--m", "4"), ("--seconds", "1"), ("--concurrency", "0")])
def test_usage_errors_do_not_wait_for_torch(given: tuple[str, ...]) -> None:
    assert_usage_error_without_torch("bench", "decode", "--counters", *given)


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        ([995.0] * 6, "sampling costs +0.50 % of the throughput"),
        ([970.0] * 6, "MORE than 1 %, raise --sample-ms"),
        ([985.0, 995.0] * 3, "whether it is less than 1 % is inside the error"),
    ],
)
def test_the_verdict_on_sampling_minds_its_error(rates: list[float], text: str) -> None:
    from slidesparse.bench.counters.record import Cost
    from slidesparse.stats import interquartile

    made = figures(record().cells[2])
    percents = sorted(100 * (1 - rate / 1000) for rate in rates)
    middle = (percents[2] + percents[3]) / 2
    cost = Cost(middle, interquartile(percents), tuple(rates), (1000.0,) * 6)
    assert text in cost_line(replace(made, cost=cost))


def test_what_is_not_told_is_said_once_for_each_reason() -> None:
    made = record()
    told = figures(made.cells[0])

    def without(names: set[str], **changes: object) -> LoadFigures:
        left = {name: it for name, it in told.quantities.items() if name not in names}
        return replace(told, quantities=left, **changes)

    def lines(*found: LoadFigures) -> list[str]:
        measured = tuple(
            replace(cell, figures=it) for cell, it in zip(made.cells, found, strict=False)
        )
        return [
            line
            for line in _notes(replace(made, cells=measured))
            if "n/a" in line or line.startswith("No ")
        ]

    assert lines(told, told) == []
    partly = without({"imma_active"})
    key = made.cells[0].key
    assert lines(partly, told) == [f"n/a: gpm did not tell imma_active of {key}"]
    none = without(set(METRICS), source=Source.NONE, why="cuda:0 has no GPM counters")
    assert lines(none, none) == ["No hardware counters: cuda:0 has no GPM counters."]
    chosen = without({*METRICS, "power_w"}, source=Source.NONE, why="")
    assert lines(chosen) == [
        "No hardware counters: --counter-source none.",
        f"n/a: NVML did not tell power_w of {key}",
    ]


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, log: Path, load: Command) -> None:
    file = tmp_path / "out.json"
    path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))
    script = {"* eager C=4": "hang"}
    rest = ("--device", "cpu", "--json", str(file))
    process = subprocess.Popen(
        [sys.executable, str(SUPPORT / "counters_engines.py"), "bench", "decode", *SMALL, *rest],
        env={**os.environ, "PYTHONPATH": path, SCRIPT: json.dumps(script), LOG: str(log)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(log, "eager C=4")
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"{file} holds what was measured; the same command goes on" in errors
    assert "Traceback" not in errors
    assert "1 of 1 cells in " in output
    made: CountersRecord = read_json(file)
    assert made.interrupted
    assert [cell.key[2:] for cell in made.cells] == [(Mode.EAGER, 2)]
    assert all(ended(pid) for pid in pids(log))
