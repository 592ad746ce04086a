"""`slidesparse bench agreement`: tables and files agree, exit codes, bad input in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from agreement_engines import FACTORY, SCRIPT
from agreement_records import EAGER, GRAPHS, make_checkpoint, make_record
from cli_runs import assert_one_line
from click.testing import CliRunner, Result
from two_four_models import save_both

from slidesparse.bench.agreement.record import AgreementRecord, Served, read_json
from slidesparse.bench.agreement.run import AgreementRun
from slidesparse.bench.sweep.runner import Kind
from slidesparse.cli.agreement_table import print_agreement, verdict
from slidesparse.cli.bench_agreement import agreement, chosen, measure
from slidesparse.cli.console import make_console
from slidesparse.cli.main import cli
from slidesparse.devices import CPU, detect

HAS_VLLM = importlib.util.find_spec("vllm") is not None

Bench = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_both(tmp_path, torch.float8_e4m3fn)[1]


@pytest.fixture
def bench(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Run the command behind its checks of GPU and vLLM, with the scripted engine on the CPU."""
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([3 + index % 90 for index in range(300)]))
    small = ["--text", str(ids), "--tokens", "100", "--length", "32", "--modes", "eager"]
    small += ["--requests", "20", "--longest", "40", "--outputs", "8", "--alone", "10"]

    @click.command(params=agreement.params)
    def command(
        folders: tuple[Path, ...],
        device: str,
        cache_dir: Path | None,
        json_path: Path | None,
        quiet: bool,
        **given: Any,
    ) -> None:
        options = chosen(folders, given)
        measure(AgreementRun(options, CPU, detect(CPU), factory=FACTORY), json_path, quiet)

    def run(*arguments: str, script: dict[str, str] | None = None) -> Result:
        monkeypatch.setenv(SCRIPT, json.dumps(script or {}))
        given = [str(folder), *small, *arguments]
        return CliRunner().invoke(command, given, env={"COLUMNS": None})

    return run


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "agreement", *arguments], env={"COLUMNS": None})


def rows(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


@pytest.mark.slow
def test_from_command_line_to_file(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    result = bench("--json", str(file))
    assert result.exit_code == 0, result.output
    record = read_json(file)
    lines = result.stdout.splitlines()
    assert lines[0] == f"Comparing the plug-in with stock vLLM on {detect(CPU).name}: dense"
    shown = rows(result.stdout)
    assert ["stock, eager", "2.7183", "2.0", "10.0", "20", "1", "0", "10 of 10"] in shown
    assert ["ours, eager", "2.7183", "2.5 (1.25x)", "10.0", "20", "1", "0", "10 of 10"] in shown
    pair = ["ours against stock, eager", "100.00 %", "0 of 0", "+0.000 %", "0.0000"]
    assert pair in shown
    assert (
        "The plug-in gives what stock vLLM gives: the same token for at least 99 %, perplexity "
        "within 0.5 %"
    ) in lines
    assert lines[-1].startswith("124 tokens of ids.json in windows of 32; ")
    assert record.settings["modes"] == ["eager"]
    assert (record.limits.agreement, record.limits.perplexity) == (0.99, 0.005)
    assert "\x1b" not in result.stdout


@pytest.mark.slow
def test_limits_that_are_not_met_fail_the_run(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    script = {"ours eager score": "differ"}
    result = bench("--json", str(file), "--most-load", "20", script=script)
    assert_one_line(result, 1, "loading takes 25 % longer", "(and 1 more)")
    assert len(read_json(file).checkpoints[0].pairs) == 1
    marked = [line for line in result.stdout.splitlines() if line.startswith("NOT MET: ")]
    assert len(marked) == 2
    assert "The plug-in gives what" not in result.stdout
    looser = bench("--least-agreement", "80", "--most-load", "30", "-q", script=script)
    assert (looser.exit_code, looser.stdout, looser.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_vllm_that_fails_fails_the_run_and_is_in_the_table(bench: Bench) -> None:
    result = bench(script={"ours eager build": "kill"})
    assert_one_line(result, 1, "dense: ours, eager failed (crash): killed by SIGKILL")
    assert ["ours, eager", "crash", *"------"] in rows(result.stdout)


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = AgreementRun.run

    def interrupted(self: AgreementRun, prepared: Any) -> Iterator[Served]:
        for served in real(self, prepared):
            yield served
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(AgreementRun, "run", interrupted)
    file = tmp_path / "out.json"
    result = bench("--json", str(file))
    assert result.exit_code == 130, result.output
    record = read_json(file)
    assert record.interrupted
    assert [str(it) for it in record.checkpoints[0].served] == ["stock, eager"]
    assert "NOT MET" not in result.stdout


@pytest.mark.slow
def test_a_file_that_cannot_be_written_is_told_after_the_table(
    bench: Bench, tmp_path: Path
) -> None:
    result = bench("--json", str(tmp_path / "nowhere" / "out.json"))
    assert_one_line(result, 1, "cannot write")
    assert "ours against stock" in result.stdout


@contextmanager
def printed(capsys: pytest.CaptureFixture[str]) -> Iterator[list[list[str]]]:
    found: list[list[str]] = []
    yield found
    found.extend(rows(capsys.readouterr().out))


def test_the_table_of_a_whole_record(capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record()
    with printed(capsys) as shown:
        print_agreement(record, make_console())
    assert [
        "stock, graphs",
        "25.7903",
        "2.0",
        "21.5",
        "500",
        "25",
        "0",
        "48 of 50, else from 9",
    ] in (shown)
    assert ["ours, eager", "25.7903", "2.3 (1.15x)", "21.5", *"----"] in shown
    first = ["ours against stock, graphs", "99.60 %", "5 of 8", "+0.100 %", "0.0123"]
    assert first in shown
    assert ["stock, graphs against eager", "99.70 %", "5 of 6", "+0.100 %", "0.0123"] in shown
    assert ["tiny-6of8: ours, graphs: ours kernel x96"] in shown
    assert ["2,044 tokens of prose.txt in windows of 512; 202 s, seed 0"] in shown


def test_a_record_without_results_has_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    empty: AgreementRecord = make_record(checkpoints=(), interrupted=True)
    assert verdict(empty) == []
    assert verdict(make_record(interrupted=True)) == []
    assert len(verdict(make_record())) == 1
    with printed(capsys) as shown:
        print_agreement(empty, make_console())
    assert len(shown) == 1
    gone = {"loss": None, "tokens": 0, "failure": Kind.HANG, "reason": "no answer within 5 s"}
    failed = make_record(make_checkpoint(requests=None, **gone))
    with printed(capsys) as shown:
        print_agreement(failed, make_console())
    # It had started: what it took is there.
    assert ["ours, graphs", "hang", "2.3 (1.15x)", "21.5", *"----"] in shown
    assert verdict(failed) == [
        "NOT MET: tiny-6of8: ours, graphs failed (hang): no answer within 5 s"
    ]


def test_percents_become_shares_and_a_folder_runs_once(folder: Path) -> None:
    context = agreement.make_context(
        "agreement", [str(folder), f"{folder}/../dense", "--text", "t"]
    )
    given = dict(context.params)
    for name in ("device", "cache_dir", "json_path", "quiet"):
        given.pop(name)
    options = chosen(given.pop("folders"), given)
    assert options.folders == (folder,)
    assert (options.limits.agreement, options.limits.perplexity) == (0.99, 0.005)
    assert options.limits.load is None
    assert options.modes == (GRAPHS, EAGER)
    assert (options.tokens, options.requests, options.longest, options.aborts) == (
        2000,
        500,
        4000,
        0.05,
    )


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed here")
def test_without_vllm_it_says_what_to_install(folder: Path) -> None:
    assert_one_line(invoke(str(folder), "--text", "t"), 2, "pip install 'slidesparse[vllm]'")


@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed; pip install 'slidesparse[vllm]'")
def test_without_a_gpu_it_says_so(folder: Path) -> None:
    result = invoke(str(folder), "--text", "t", "--device", "cpu")
    assert_one_line(result, 2, "vLLM needs an NVIDIA GPU")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--tokens", "1000"), "ids.json has 300 tokens, of which 290 are scored"),
        (("--longest", "301"), "prompts of up to 301 need as many"),
        (("--length", "64"), "use a smaller --length"),
        (("--outputs", "60"), "use a smaller --longest or --outputs"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    arguments: tuple[str, ...], text: str, bench: Bench
) -> None:
    result = bench(*arguments, script={"stock eager build": "kill"})
    assert text in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "Missing argument 'DIR...'"),
        (("folder",), "Missing option '--text'"),
        (("folder", "--text", "t", "--modes", "lazy"), "unknown mode 'lazy'"),
        (("folder", "--text", "t", "--aborts", "2"), "'--aborts'"),
        (("folder", "--text", "t", "--least-agreement", "101"), "'--least-agreement'"),
        (("folder", "--text", "t", "--tokens", "0"), "'--tokens'"),
        (("folder", "--text", "t", "--json", "no/where.json"), "cannot write no/where.json"),
    ],
)
def test_bad_options_are_usage_errors(arguments: tuple[str, ...], text: str) -> None:
    assert_one_line(invoke(*arguments), 2, text)
