"""The engine `linear` on the GPU: both sides agree, records are whole, wide cells pass."""

from __future__ import annotations

import gc
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from slidesparse.bench.sweep.chain import Chain, OurMember
from slidesparse.bench.sweep.compare import KINDS
from slidesparse.bench.sweep.job import CellTime, Job, Mode, Stage, System, Variant
from slidesparse.bench.sweep.linear import LinearEngine
from slidesparse.bench.sweep.record import read_json
from slidesparse.bench.sweep.timing import SAMPLE_US
from slidesparse.bench.sweep.torch_model import TorchFunctions, TorchMember
from slidesparse.bench.watch import POWER_S
from slidesparse.cli.main import cli
from slidesparse.devices import Device
from slidesparse.models import ModelSpec
from slidesparse.monitor import GpuMonitor
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import INT32_MAX, DType

SIX = Pattern.parse("6:8")
SPEC = ModelSpec("small", "llama", 1024, 2, 2816, 8, 2, 128, 128, "here", qkv_bias=True)

MOST_OFF = {DType.FP8: 0.15, DType.INT8: 0.05}
"""Of |ours - theirs| / |theirs|, as tests/bench/sweep/test_chain.py says."""

WIDE_M = 65536
"""Times 37888, the width of gate_up of Qwen2.5-7B, that passes 2^31 - 1."""

FREE_GIB = 60


@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
@pytest.mark.parametrize("pattern", [DENSE, SIX])
def test_ours_and_compiled_torch_compute_the_same(
    dtype: DType, pattern: Pattern, gpu: Device, seed: int
) -> None:
    where = torch.device(str(gpu))
    functions = TorchFunctions(dtype, compiles=True)
    rest = (where, seed, 0, True)
    ours = Chain(
        SPEC, SPEC.linears(), pattern, partial(OurMember, pattern=pattern, dtype=dtype), *rest
    )
    theirs = Chain(SPEC, SPEC.linears(), pattern, partial(TorchMember, functions=functions), *rest)
    # Few rows, one, and many are cases of their own for torch.compile.
    for m in (1, 7, 16, 17, 129, 4096):
        got, want = ours.inputs(m)().double(), theirs.inputs(m)().double()
        off = float((got - want).norm() / want.norm())
        assert off < MOST_OFF[dtype], f"M={m}: off by {off:.3f}"


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("variant", [Variant(System.STOCK), Variant(System.OURS, SIX)], ids=str)
def test_a_cell_has_samples_readings_and_shares(mode: Mode, variant: Variant, gpu: Device) -> None:
    # So many samples take longer than the second of which NVML tells the power.
    repeats = math.ceil(1.2 * POWER_S * 1e6 / SAMPLE_US)
    job = Job(
        *(Stage.DECODE, "llama3.2-1b", 1, DType.FP8, variant, mode, (1, 64, 512)),
        *(128, 128, repeats, 7),
    )
    engine = LinearEngine(gpu, job)
    ran = engine.build()
    assert "16 of 16 x (qkv o)" in ran["step"]
    assert "scaled" not in ran
    assert ran["o"] != "reference"
    for m in job.ms:
        found = engine.run(m)
        assert len(found.step_us) == repeats
        check_step(found, m)
        with GpuMonitor(gpu) as monitor:
            if monitor.available:
                check_readings(found, m)


def check_step(found: CellTime, m: int) -> None:
    """A step reads 0.97 billion weights of a byte: 0.1 ms at 10 TB/s, which no GPU here has."""
    assert found.m == m
    assert 60 < min(found.step_us) <= max(found.step_us) < 1e6
    assert set(found.shares) == set(KINDS)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.shares["gemm"] > 0.2
    assert found.shares["fused"] > 0


def check_readings(found: CellTime, m: int) -> None:
    assert found.power_w is not None
    assert found.clock_mhz is not None
    assert 30 < found.power_w < 2000
    assert 200 < found.clock_mhz < 5000
    if found.joules_per_token is not None:
        told = found.power_w * min(found.step_us) * 1e-6 / m
        assert found.joules_per_token == pytest.approx(told, rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [Variant(System.STOCK), Variant(System.OURS, SIX)], ids=str)
def test_tensors_past_2_to_the_31_pass_and_are_told(variant: Variant, gpu: Device) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(gpu.index)[0] / 2**30
    if free < FREE_GIB:
        pytest.skip(f"{free:.0f} GiB are free, and {FREE_GIB} are needed")
    job = Job(
        *(Stage.PREFILL, "qwen2.5-7b", 1, DType.FP8, variant, Mode.GRAPHS, (WIDE_M,)),
        *(1024, 128, 2, 7),
    )
    engine = LinearEngine(gpu, job)
    ran = engine.build()
    assert ("in 2 pieces" in ran["gate_up"]) is (variant.system is System.STOCK)
    found = engine.run(WIDE_M)
    assert found.largest == WIDE_M * 37888 > INT32_MAX
    assert min(found.step_us) > 1e5


def test_the_command_fills_a_whole_record(gpu: Device, tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    done = CliRunner().invoke(
        cli,
        [
            *("bench", "prefill", "--engine", "linear", "--model", "llama3.2-1b", "--dtype", "fp8"),
            *("--m", "64,512", "--patterns", "dense,2:4", "--modes", "graphs", "--repeats", "3"),
            *("--seed", "3", "--json", str(file), "--csv", str(tmp_path / "sweep.csv")),
        ],
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Sweeping prefill of llama3.2-1b on ")
    record = read_json(file)
    assert record.fingerprint.is_gpu
    assert record.failed == ()
    assert [f"{cell.key.label} {cell.m}" for cell in record.cells] == [
        f"{label} {m}"
        for label in ("stock", "ours dense", "ours 2:4", "stock again")
        for m in (64, 512)
    ]
    for cell in record.cells:
        assert cell.figures is not None
        assert set(cell.figures.shares) == set(KINDS)
        assert not cell.wide
