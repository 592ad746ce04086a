"""The engine `linear` on the CPU: what it says that it ran is what it ran."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sweep_records import OURS, OURS_SIX, STOCK

from slidesparse.bench.sweep.job import Job, Mode, Stage, Variant
from slidesparse.bench.sweep.linear import LinearEngine
from slidesparse.bench.sweep.timing import StepTime
from slidesparse.bench.watch import Watched
from slidesparse.devices import CPU
from slidesparse.errors import UsageError
from slidesparse.problem import DType

TINY = str(Path(__file__).resolve().parents[2] / "data" / "tiny")
JOB = Job(Stage.PREFILL, TINY, 1, DType.FP8, STOCK, Mode.EAGER, (1, 3), 8, 8, 2, 3)


@pytest.mark.parametrize("variant", [STOCK, OURS, OURS_SIX], ids=str)
@pytest.mark.parametrize("dtype", [DType.FP8, DType.INT8])
def test_cells_have_samples_and_no_readings_of_a_gpu(variant: Variant, dtype: DType) -> None:
    engine = LinearEngine(CPU, replace(JOB, variant=variant, dtype=dtype))
    ran = engine.build()
    for m in JOB.ms:
        found = engine.run(m)
        assert found.m == m
        assert len(found.step_us) == 2
        assert min(found.step_us) > 0
        assert (found.clock_mhz, found.power_w, found.joules_per_token) == (None, None, None)
        assert found.shares == {}
        assert found.largest == 192 * 64
    product = "torch._scaled_mm" if dtype is DType.FP8 else "torch._int_mm"
    assert (product in ran["gate_up"]) is (variant == STOCK)
    assert ran["step"].startswith("1 of 1 x (qkv o) with the weights of 1 in turn")
    assert "scaled" not in ran


def test_of_several_ranks_one_runs_and_it_says_so() -> None:
    engine = LinearEngine(CPU, replace(JOB, tp=2))
    assert engine.build()["tensor parallel"] == "one rank of 2, without communication"
    assert engine.run(1).largest == 96 * 64


def test_graphs_are_refused_without_a_gpu() -> None:
    with pytest.raises(UsageError, match=r"CUDA graphs need a GPU; use --modes eager"):
        LinearEngine(CPU, replace(JOB, mode=Mode.GRAPHS)).build()


def test_times_of_a_part_are_multiplied_for_the_whole_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = (Path(TINY) / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"num_hidden_layers": 1', '"num_hidden_layers": 1000')
    )
    taken = StepTime((10.0, 20.0), steps=2, watched=Watched(1500.0, 600.0, 4.0))
    monkeypatch.setattr("slidesparse.bench.sweep.linear.sample", lambda *_: taken)
    engine = LinearEngine(CPU, replace(JOB, model=str(tmp_path), variant=OURS))
    ran = engine.build()
    assert ran["scaled"] == "times and joules are multiplied by 1000 for all layers"
    assert ran["step"].startswith("1 of 1000 x (qkv o)")
    found = engine.run(4)
    assert found.step_us == (10_000.0, 20_000.0)
    # 4 J for two steps of 4 tokens.
    assert found.joules_per_token == 500.0
    assert (found.clock_mhz, found.power_w) == (1500.0, 600.0)


def test_routed_experts_are_left_out_and_named() -> None:
    ran = LinearEngine(CPU, replace(JOB, model="qwen3-30b-a3b")).build()
    assert ran["left out"] == "expert_gate_up, expert_down"
    assert ran["step"] == "1 of 48 x (qkv o) with the weights of 1 in turn"
    assert "expert_gate_up" not in ran
