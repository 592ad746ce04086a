"""Ctrl-C, SIGKILL and two searches at once, on the real command in real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from slidesparse.bench.search.record import read_json
from slidesparse.cache import TuningCache
from slidesparse.candidate import Provenance
from slidesparse.devices import CPU, detect

HERE = Path(__file__).resolve().parent
TINY = Path(__file__).resolve().parents[1] / "data" / "tiny" / "config.json"
CONFIG = json.loads(TINY.read_text())


class Command:
    """`slidesparse search` on a tiny model, in a process group of its own as in a terminal."""

    def __init__(self, tmp_path, log):
        self._log = log
        self.cache = tmp_path / "cache"
        self.model = tmp_path / "tiny"
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps(CONFIG))

    def start(self, *arguments, **environment):
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "slidesparse", "search", "--model", str(self.model)]
        options = ["--device", "cpu", "--effort", "quick", "--cache-dir", str(self.cache)]
        return subprocess.Popen(
            [*command, *options, *arguments],
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def slow(self, *arguments):
        backend = ("--backends", "fake_backends:Slow", "--dtype", "fp8", "--m", "7")
        return self.start(*backend, "--patterns", "dense", "--quiet", *arguments, FAKE_STEP_MS="2")

    def tried(self):
        """(problem, candidate) pairs as they were prepared; the log is emptied."""
        text = self._log.read_text()
        self._log.write_text("")
        return [tuple(line.split()) for line in text.split("\n")[:-1]]

    def wait_for(self, count, process):
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            if self._log.read_text().count("\n") >= count:
                return
            time.sleep(0.01)
        raise AssertionError(f"{count} candidates were not reached: {process.communicate()}")

    def entries(self):
        return TuningCache(self.cache, detect(CPU)).user_entries()


@pytest.fixture
def command(tmp_path, fakes):
    return Command(tmp_path, fakes)


def assert_nothing_is_repeated(before, after):
    """Over both runs each candidate is prepared once, but the one in flight and the finalists."""
    finished = [pair for pair in before if pair != before[-1]]
    problems = list(dict.fromkeys(problem for problem, _ in before))
    done = problems[:-1]
    assert done, "the first problem should have been through"
    assert not [pair for pair in after if pair[0] in done], "a finished problem was begun anew"
    counts = Counter(after)
    for problem, candidate in finished:
        if problem == problems[-1] and candidate not in {"0", "19"}:
            assert counts[problem, candidate] == 0, (problem, candidate)
    together = {pair for pair in [*before, *after] if pair[0] == problems[-1]}
    assert len(together) == 20


@pytest.mark.parametrize("end", ["ctrl-c", "sigkill"])
def test_a_search_that_was_stopped_resumes(command, end):
    process = command.slow()
    command.wait_for(24, process)
    if end == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    output, errors = process.communicate(timeout=30)
    assert output == ""
    if end == "ctrl-c":
        assert process.returncode == 130
        assert errors == "interrupted; finished work is kept, the same command resumes\n"
    else:
        assert process.returncode == -signal.SIGKILL
    time.sleep(0.5)  # The worker of a killed search ends by itself.
    before = command.tried()
    assert len(command.entries()) == 1
    (journal,) = (TuningCache(command.cache, detect(CPU)).journal_directory).iterdir()
    assert 4 <= len(journal.read_text().splitlines()) <= 20

    result = command.model.parent / "result.json"
    process = command.slow("--json", str(result))
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (0, "", "")
    assert_nothing_is_repeated(before, command.tried())
    record = read_json(result)
    provenances = Counter(provenance for _, provenance in record.results.values())
    assert provenances == {Provenance.CACHED: 1, Provenance.MEASURED: 2}
    for found, _ in record.results.values():
        assert found.best.candidate.params["i"] == 19
        assert found.tried == 20
    assert list(journal.parent.iterdir()) == []


@pytest.mark.parametrize("after_s", [0.2, 1.2, 2.0])
def test_ctrl_c_while_everything_loads_is_an_interruption(command, after_s):
    """In the first seconds Python imports and the worker starts: no traceback, the same code."""
    process = command.slow()
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode in {130, -signal.SIGINT}, errors
    assert output == ""
    if after_s > 0.5:  # Before that the command is not yet ours: Python itself is loading.
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert errors.startswith("interrupted")


def test_two_searches_at_once_lose_nothing(command):
    """Same folder, different problems, many writes that meet."""
    both = [
        command.start("--dtype", dtype, "--m", "7,33,129", "--patterns", "dense,6:8", "--quiet")
        for dtype in ("fp8", "int8")
    ]
    for process in both:
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, output, errors) == (0, "", "")
    entries = command.entries()
    assert len(entries) == 2 * 3 * 3 * 2, "dtypes, shapes (qkv and gate_up share one), M, patterns"
    assert {str(r.problem.dtype) for r in entries.values()} == {"fp8_e4m3", "int8"}
    assert all(r.best is not None for r in entries.values())


def test_two_searches_of_the_same_problems_at_once_both_end_well(command):
    both = [command.slow("--json", str(command.cache.parent / f"{i}.json")) for i in range(2)]
    for process in both:
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, output) == (0, "")
        assert not re.search("Traceback|damaged", errors), errors
    assert len(command.entries()) == 3
    for i in range(2):
        assert len(read_json(command.cache.parent / f"{i}.json").results) == 3
