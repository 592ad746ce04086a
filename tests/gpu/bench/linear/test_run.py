"""The benchmark of whole linears on the GPU: the record is whole, torch's side is torch's best."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from slidesparse.bench.linear.case import make_weights, without_ties
from slidesparse.bench.linear.record import read_json
from slidesparse.bench.linear.torch_ways import TorchWays, dynamic, plain
from slidesparse.cli.main import cli
from slidesparse.models import LinearLayer
from slidesparse.pattern import Pattern
from slidesparse.problem import DType

LAYER = LinearLayer("o", 2048, 2048, 16, bias=True)

MOST_OFF = 3e-3
"""Two results that are rounded to BF16, one summed faster than the other, differ by up to 2e-3."""


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_every_way_of_torchs_gives_what_the_plain_function_gives(dtype, gpu, seed):
    where = torch.device(str(gpu))
    weight = make_weights(LAYER, dtype, Pattern.parse("6:8"), 1, where, seed).theirs[0]
    ways = TorchWays(dtype, weight, True, (256,))
    failed = []
    for m in (1, 7, 16, 17, 129, 4096):
        x = dynamic(without_ties(torch.randn((m, LAYER.k), device=where, dtype=torch.bfloat16)))
        want = weight.run(plain(dtype, m), x).double()
        for way in ways.of(m):
            try:
                got = weight.run(way.make(), x).double()
                off = float((got - want).norm() / want.norm())
                said = "" if off < MOST_OFF else f"off by {off:.2e}"
            except Exception as error:  # A compiler's: the other ways are still of interest.
                said = f"{type(error).__name__}: {error}"
            if said:
                failed.append(f"M={m} {way.how}: {said}")
    assert not failed, "\n".join(failed)


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
        assert row.torch is not None, record.ways
        assert row.sets > 1
        assert row.ratio is not None
        assert 0.1 < row.ratio < 10
        assert row.torch_how.startswith("torch.compile")
    for ways in record.ways:
        assert len(ways.ways) == (2 if ways.problem.m == 512 else 1)
        assert all(not way.reason for way in ways.ways)
