"""Without a result a safe way runs, and one line says what search mends it."""

from __future__ import annotations

import logging
import re
from typing import Any

import layer_plans as plans
import pytest
import torch
from layer_plans import CUBLASLT, INT_MM, NATIVE, REFERENCE, SCALED_MM, race, shape_of, steps_of

from slidesparse.cache import TuningCache
from slidesparse.cli.search import _template
from slidesparse.cli.search import command as search_command
from slidesparse.devices import Fingerprint
from slidesparse.errors import CacheError, DeviceError
from slidesparse.layers import forget, plan_layer, planning
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, Scales

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
FP8 = shape_of()
INT8 = FP8._replace(dtype=DType.INT8)
COMMAND = re.compile(r"run slidesparse (search .*)$")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def gpu_of(monkeypatch: pytest.MonkeyPatch, sm: int) -> None:
    """The GPU that plans are made for from now on."""
    made = Fingerprint("NVIDIA Test", sm, 64, 8192, cublaslt="13.1.0")
    monkeypatch.setattr(planning, "detect", lambda device: made)


@pytest.mark.parametrize(("shape", "wanted"), [(FP8, SCALED_MM), (INT8, INT_MM)])
def test_torch_runs_on_a_gpu(hopper, shape, wanted):
    made = plan_layer(shape, GPU)
    assert steps_of(made) == [(16, wanted)]
    assert {made.at(m).candidate for m in (1, 16, 17, 65536)} == {wanted}
    assert made.forms == ("dense",)


@pytest.mark.parametrize("shape", [FP8, INT8], ids=["fp8", "int8"])
@pytest.mark.parametrize("change", [{"n": 8}, {"n": 250}, {"k": 100}], ids=str)
def test_plain_torch_runs_where_torch_has_no_gemm(hopper, shape, change):
    assert steps_of(plan_layer(shape._replace(**change), GPU)) == [(16, REFERENCE)]


def test_the_cpu_runs_plain_torch_without_a_word(monkeypatch, caplog):
    monkeypatch.setattr(planning, "detect", None)  # No machine is asked for, no file is read.
    monkeypatch.setattr(planning, "TuningCache", None)
    for shape in (FP8, INT8, FP8._replace(out=DType.FP32), FP8._replace(pattern=DENSE)):
        assert steps_of(plan_layer(shape, CPU)) == [(16, REFERENCE)]
    assert not warnings(caplog)


def test_the_warning_says_what_is_missing_and_what_mends_it(hopper, caplog):
    plan_layer(FP8, GPU)
    assert warnings(caplog) == [
        "no tuning result for N=256 K=512 fp8_e4m3 6:8 on NVIDIA H200: torch's dense GEMM runs; "
        "run slidesparse search --model MODEL --dtype fp8 --scales rowcol --patterns 6:8"
    ]


def test_one_warning_for_each_dtype_and_pattern(hopper, caplog):
    patterns = [Pattern.parse(text) for text in ("dense", "2:4", "6:8")]
    for shape in (FP8, INT8):
        for n in (256, 512):
            for pattern in patterns:
                plan_layer(shape._replace(n=n, pattern=pattern), GPU)
    said = warnings(caplog)
    assert len(said) == 6
    assert len({line.partition("--dtype")[2] for line in said}) == 6
    forget()
    plan_layer(FP8, GPU)
    assert len(warnings(caplog)) == 7


def test_no_warning_where_something_was_measured(hopper, caplog):
    hopper.put(race(FP8, 16, {NATIVE: 5.0}))
    plan_layer(FP8, GPU)
    assert not warnings(caplog)


@pytest.mark.parametrize("shape", [FP8, INT8], ids=["fp8", "int8"])
@pytest.mark.parametrize("pattern", ["dense", "2:4", "6:8", "14:16"])
def test_the_search_that_is_named_finds_what_was_missing(hopper, caplog, shape, pattern):
    """The real command line reads it, and its problems are those that plans look for."""
    wanted = shape._replace(pattern=Pattern.parse(pattern))
    plan_layer(wanted, GPU)
    (line,) = warnings(caplog)
    found = COMMAND.search(line)
    assert found is not None
    _, *arguments = found[1].split()
    arguments[arguments.index("MODEL")] = "qwen2.5-7b"
    parsed: dict[str, Any] = search_command.make_context("search", arguments).params
    template = _template(parsed["dtype"], parsed["out_dtype"], parsed["scales"])
    assert (template.dtype, template.out) == (wanted.dtype, wanted.out)
    assert template.scales is Scales.ROWCOL
    assert parsed["patterns"] == (wanted.pattern,)
    assert parsed["model"] == "qwen2.5-7b"


def test_fp8_on_a_gpu_without_it_is_refused(monkeypatch, hopper):
    gpu_of(monkeypatch, 80)
    with pytest.raises(DeviceError) as raised:
        plan_layer(FP8, GPU)
    assert str(raised.value) == (
        "an FP8 layer needs SM 8.9 or newer and NVIDIA Test is SM 8.0; use int8"
    )
    assert steps_of(plan_layer(INT8, GPU)) == [(16, INT_MM)]


@pytest.mark.parametrize("sm", [89, 100, 120])
def test_other_gpus_run_torch_whatever_was_measured(monkeypatch, hopper, sm):
    """The native kernel and cuBLASLt's two scale vectors are Hopper's."""
    gpu_of(monkeypatch, sm)
    hopper.put(race(FP8, 16, {NATIVE: 1.0, CUBLASLT: 2.0, SCALED_MM: 9.0}))
    assert steps_of(plan_layer(FP8, GPU)) == [(16, SCALED_MM)]
    hopper.put(race(INT8, 16, {NATIVE: 1.0, CUBLASLT: 2.0, INT_MM: 9.0}))
    assert steps_of(plan_layer(INT8, GPU)) == [(16, CUBLASLT)]


def test_results_are_read_once_until_they_are_forgotten(monkeypatch, hopper):
    reads = []

    def reopened(root: object, fingerprint: Fingerprint) -> TuningCache:
        reads.append(root)
        return TuningCache(hopper.root, hopper.fingerprint, bundled=hopper._bundled_folder)

    monkeypatch.setattr(planning, "TuningCache", reopened)
    assert steps_of(plan_layer(FP8, GPU)) == [(16, SCALED_MM)]
    hopper.put(race(FP8, 16, {NATIVE: 5.0}))
    assert steps_of(plan_layer(FP8, GPU)) == [(16, SCALED_MM)]
    assert reads == [None]
    forget()
    assert steps_of(plan_layer(FP8, GPU)) == [(16, NATIVE)]
    assert reads == [None, None]


def test_a_cache_can_be_given(monkeypatch, hopper):
    monkeypatch.setattr(planning, "TuningCache", None)
    hopper.put(race(FP8, 16, {NATIVE: 5.0}))
    assert steps_of(plan_layer(FP8, GPU, cache=hopper)) == [(16, NATIVE)]


@pytest.mark.parametrize("error", [CacheError("the lock is kept"), PermissionError("denied")])
def test_a_cache_that_cannot_be_opened_costs_a_warning(monkeypatch, hopper, caplog, error):
    def fail(root: object, fingerprint: object) -> None:
        raise error

    monkeypatch.setattr(planning, "TuningCache", fail)
    assert steps_of(plan_layer(FP8, GPU)) == [(16, SCALED_MM)]
    assert warnings(caplog)[0] == f"tuning results are not used: {error}"


def test_a_damaged_cache_file_costs_a_warning(hopper, caplog):
    hopper.put(race(FP8, 16, {NATIVE: 5.0}))
    hopper.path.write_text("{")
    hopper.refresh()
    assert steps_of(plan_layer(FP8, GPU)) == [(16, SCALED_MM)]
    assert str(hopper.path) in warnings(caplog)[0]


def test_plans_of_a_machine_without_results_are_like_those_of_an_empty_cache(hopper):
    assert plan_layer(FP8, GPU, "smallest") == plan_layer(FP8, GPU, "fastest")
    assert plans.steps_of(plan_layer(FP8._replace(bias=True), GPU)) == [(16, SCALED_MM)]
