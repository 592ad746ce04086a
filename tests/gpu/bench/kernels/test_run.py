"""The benchmark of the kernels on the GPU: the record is whole, the alternatives are right."""

from __future__ import annotations

import pytest
import torch

from slidesparse.bench.alternatives import checked_rows, differs, two_steps
from slidesparse.bench.ceilings import Copy
from slidesparse.bench.compiled import Compiled
from slidesparse.bench.kernels.record import read_json
from slidesparse.bench.kernels.run import KernelBench
from slidesparse.bench.vllm_kernels import vllm_alternatives
from slidesparse.cli.main import cli
from slidesparse.devices import l2_bytes
from slidesparse.kernel_problem import KernelProblem, Op
from slidesparse.kernels.case import Case
from slidesparse.kernels.config import Table
from slidesparse.kernels.warm import launch_config
from slidesparse.libraries import vllm_reason
from slidesparse.pattern import Pattern
from slidesparse.problem import DType

RAW = {DType.INT8: DType.INT32, DType.FP8: DType.BF16}


@pytest.mark.parametrize("pattern", ["dense", "6:8", "4:6"])
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("op", [op for op in Op if op.quantizes])
@pytest.mark.parametrize("m", [1, 129])
def test_every_alternative_that_runs_here_is_right(op, dtype, pattern, m, gpu, seed):
    residual = op in (Op.RMSNORM_QUANTIZE, Op.DEQUANT_RMSNORM_QUANTIZE)
    source = RAW[dtype] if op.dequantizes else DType.BF16
    problem = KernelProblem(op, m, 3584, source, dtype, Pattern.parse(pattern), residual)
    where = torch.device(str(gpu))
    case = Case(problem, where, seed, 0)
    assert case.wrong(launch_config(problem, gpu)) is None
    rows = checked_rows(m, where)
    ours = tuple(tensor[rows].clone() for tensor in case.sets[0].outputs)
    compiled = Compiled(problem, where).of(case)
    for other in (*vllm_alternatives(case), compiled, *two_steps(case, gpu)):
        if other.run is None:
            assert other.reason
            continue
        for tensor in case.sets[0].outputs:
            tensor.view(torch.uint8).fill_(0xA5)
        assert differs(other.run(0), ours, rows) is None, other


def test_the_command_fills_a_whole_record(gpu, tmp_path):
    from click.testing import CliRunner

    file = tmp_path / "kernels.json"
    done = CliRunner().invoke(
        cli,
        [
            *("bench", "kernels", "--m", "64", "--ops", "quantize", "--json", str(file)),
            *("--model", "llama3.2-1b", "--cache-dir", str(tmp_path / "cache"), "--seed", "3"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Timing the kernels of llama3.2-1b on ")
    record = read_json(file)
    assert record.fingerprint.is_gpu
    assert record.ceilings.copy_gbs > 100
    assert 0.2 < record.ceilings.empty_us < 20
    assert len(record.rows) >= 4
    assert not record.skipped
    for row in record.rows:
        assert row.error is None
        assert row.config is not None
        assert row.median_us is not None
        assert row.median_us > 0.5 * row.floor_us
        assert row.wide_us is not None
        ran = {a.name for a in row.alternatives if a.median_us}
        wanted = {"torch.compile"} | (set() if row.problem.pattern.dense else {"two-step"})
        if not vllm_reason():
            wanted |= {"vllm"}
        assert ran == wanted, row.alternatives


def test_a_copy_is_cold(gpu):
    copy = Copy(2**20, gpu)
    assert copy.sets * 2**20 >= min(3 * l2_bytes(gpu), 64 * 2**20)


def test_the_ceilings_of_two_runs_agree(gpu, seed):
    first, second = (KernelBench(gpu, Table(), seed).ceilings() for _ in range(2))
    assert second.copy_gbs == pytest.approx(first.copy_gbs, rel=0.1)
