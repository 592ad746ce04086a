"""The benchmark of whole linears on the GPU: the record is whole, torch's side is torch's best."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from slidesparse.bench.linear_case import make_weights
from slidesparse.bench.linear_record import read_json
from slidesparse.bench.torch_linear import TorchWays, plain
from slidesparse.cli.main import cli
from slidesparse.models import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import DType

LAYER = LinearLayer("o", 2048, 2048, 16, bias=True)


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_every_way_of_torchs_gives_what_the_plain_function_gives(dtype, gpu, seed):
    where = torch.device(str(gpu))
    weight = make_weights(LAYER, dtype, Pattern.parse("6:8"), 1, where, seed).theirs[0]
    ways = TorchWays(dtype, weight, True, (256,))
    for m in (1, 7, 16, 17, 129, 4096):
        x = torch.randn((m, LAYER.k), device=where, dtype=torch.bfloat16)
        want = weight.run(plain(dtype, m), x).double()
        for way in ways.of(m):
            got = weight.run(way.make(), x).double()
            assert float((got - want).norm() / want.norm()) < 3e-3, (m, way.how)


def test_the_command_fills_a_whole_record(gpu, tmp_path):
    file = tmp_path / "linear.json"
    done = CliRunner().invoke(
        cli,
        [
            *("bench", "linear", "--m", "1,16,512", "--layers", "o,down", "--json", str(file)),
            *("--model", "llama3.2-1b", "--patterns", "dense,2:4,6:8", "--seed", "3"),
            *("--autotune", "512"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Timing the linears of llama3.2-1b on ")
    record = read_json(file)
    assert record.fingerprint.is_gpu
    assert len(record.rows) == 2 * 2 * 3 * 3
    assert not record.skipped
    assert record.compile_seconds > 0
    for row in record.rows:
        assert row.error is None
        assert row.plan
        assert row.plan != "reference"
        assert row.ours is not None
        assert row.torch is not None
        assert row.sets > 1
        assert 0.1 < row.ratio < 10
        assert row.torch_how.startswith("torch.compile")
    for ways in record.ways:
        assert len(ways.ways) == (2 if ways.problem.m == 512 else 1)
        assert all(not way.reason for way in ways.ways)
