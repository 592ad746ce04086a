"""DCGM's command: its lines read, and a process that prints them as it does followed and ended."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from slidesparse.dcgm import FIELDS, DcgmSampler, parse_line
from slidesparse.devices import CPU

# As `dcgmi dmon -e 1002,1003,1004,1014,1013,1005` prints them, in DCGM 3 and 4.
HEADING = "#Entity   SMACT        SMOCC        TENSO        THMMA        TIMMA        DRAMA"
OLDER_HEADING = "# Entity  SMACT  SMOCC  TENSO  THMMA  TIMMA  DRAMA"
FIRST = "GPU 3     N/A          N/A          N/A          N/A          N/A          N/A"
LINE = "GPU 3     0.652        0.206        0.267        0.260        0.000        0.382"
OTHER = "GPU 2     0.111        0.111        0.111        0.111        0.111        0.111"

PROGRAM = """#!/bin/sh
echo "$@" > {folder}/arguments
echo $$ > {folder}/pid
{body}
"""
STREAM = f"""
echo '{HEADING}'
echo 'ID'
echo '{FIRST}'
while true; do
  echo '{OTHER}'
  echo '{LINE}'
  sleep 0.02
done
"""
REFUSAL = "echo 'Error: Unable to connect to host engine. Host engine is not running.'\nexit 250"


def program(folder: Path, body: str) -> str:
    path = folder / "dcgmi"
    path.write_text(PROGRAM.format(folder=folder, body=body))
    path.chmod(0o755)
    return str(path)


def lives(folder: Path) -> bool:
    try:
        os.kill(int((folder / "pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def test_a_line_is_shares_in_the_order_of_the_fields() -> None:
    assert parse_line(LINE, 3) == pytest.approx(
        {
            "sm_active": 65.2,
            "sm_occupancy": 20.6,
            "tensor_active": 26.7,
            "hmma_active": 26.0,
            "imma_active": 0.0,
            "dram_active": 38.2,
        }
    )
    assert list(FIELDS.values()) == [1002, 1003, 1004, 1014, 1013, 1005]


@pytest.mark.parametrize(
    "line", [HEADING, OLDER_HEADING, "ID", "", OTHER, LINE + " 0.1", "Error: no such GPU 3"]
)
def test_other_lines_say_nothing(line: str) -> None:
    assert parse_line(line, 3) is None


def test_a_value_that_is_not_there_is_left_out() -> None:
    assert parse_line(FIRST, 3) == {}
    found = parse_line(LINE.replace("0.000", "N/A"), 3)
    assert found is not None
    assert "imma_active" not in found
    assert len(found) == 5
    assert parse_line(LINE.replace("0.652", "inf"), 3) is not None
    assert "sm_active" not in (parse_line(LINE.replace("0.652", "inf"), 3) or {})


def test_dcgmi_is_followed_and_ended(tmp_path: Path) -> None:
    command = program(tmp_path, STREAM)
    with DcgmSampler(CPU, 250, command, index=3) as sampler:
        assert sampler.available
        assert (tmp_path / "arguments").read_text().split() == (
            ["dmon", "-e", "1002,1003,1004,1014,1013,1005", "-i", "3", "-d", "250"]
        )
        found = sampler.read()
        assert found is not None
        assert found["dram_active"] == pytest.approx(38.2)
        time.sleep(0.1)
        again = sampler.read()
        assert again is not None
        assert again["sm_active"] == pytest.approx(65.2)
    assert sampler.read() is None
    assert not lives(tmp_path)


def test_a_host_engine_that_does_not_run_is_the_reason(tmp_path: Path) -> None:
    with DcgmSampler(CPU, 100, program(tmp_path, REFUSAL), index=3) as sampler:
        assert not sampler.available
        assert "Host engine is not running" in sampler.why
        assert sampler.read() is None


def test_without_dcgmi_or_a_gpu_there_is_nothing_to_start() -> None:
    assert (
        DcgmSampler(CPU, command="no-such-dcgmi", index=0).why == "no-such-dcgmi is not installed"
    )
    with DcgmSampler(CPU) as sampler:
        assert (sampler.available, sampler.why) == (False, "cpu is no GPU")
        assert sampler.read() is None
