"""`slidesparse profile show --gpu here`: the GPU of this machine, found in the table or named."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from slidesparse.cli.main import cli
from slidesparse.devices import Device, detect
from slidesparse.gpus import gpu_of


def test_the_gpu_that_is_here(tmp_path: Path) -> None:
    command = ["profile", "show", "--gpu", "here", "--json", "--cache-dir", str(tmp_path)]
    result = CliRunner().invoke(cli, command)
    fingerprint = detect(Device("cuda"))
    spec = gpu_of(fingerprint)
    if spec is None:
        assert result.exit_code == 2
        assert f"{fingerprint} is not in the GPU table" in result.stderr
        return
    assert result.exit_code == 0, result.output
    (profile,) = json.loads(result.stdout)["profiles"]
    assert profile["gpu"] == spec.key
