"""The nearest changes: each fits, none could be smaller, and where there is none, none is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from slidesparse.capacity import KvDtype, Quant, Settings, make_plan
from slidesparse.capacity.nearest import KNOBS, nearest_changes
from slidesparse.gpus import find_gpu
from slidesparse.models import load_model
from slidesparse.pattern import Pattern

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

Make = Callable[..., Settings]


def options(given: Settings) -> dict[str, str]:
    return {change.knob: change.option for change in nearest_changes(make_plan(given))}


def test_what_fits_needs_no_change(make_settings: Make) -> None:
    assert nearest_changes(make_plan(make_settings("llama3.2-1b", "h200"))) == ()


def test_the_example_of_the_documentation(make_settings: Make) -> None:
    changes = {"max_seqs": 256, "context": 49152, "batch": 32, "quant": Quant.AWQ}
    assert options(make_settings("qwen3-14b", "h100-80gb", **changes)) == {
        "sequences": "--batch 8",
        "context": "--context 12304",
        "KV dtype + sequences": "--kv-dtype fp8 --batch 16",
        "tensor parallel": "--tp 4",
    }


def test_one_more_would_not_fit(make_settings: Make) -> None:
    given = make_settings("qwen3-14b", max_seqs=256, batch=64, context=16384)
    found = {change.knob: change.plan.settings for change in nearest_changes(make_plan(given))}
    fewer, shorter = found["sequences"], found["context"]
    assert not make_plan(replace(given, batch=fewer.batch + 1)).fits
    assert not make_plan(replace(given, context=shorter.context + 16)).fits
    ranks = found["tensor parallel"].tp
    assert ranks > 2
    assert not make_plan(replace(given, tp=ranks // 2)).fits


def test_a_single_change_of_each_kind(make_settings: Make) -> None:
    """BF16 weights and cache a little too large: eight bits of either are enough."""
    given = make_settings("qwen3-14b", max_seqs=16, context=20480)
    found = options(given)
    assert found["KV dtype"] == "--kv-dtype fp8"
    assert found["quantisation"] == "--quant int8"
    assert found["tensor parallel"] == "--tp 2"
    slightly = make_settings("qwen3-14b", max_seqs=14, context=20480)
    assert options(slightly)["memory fraction"] == "--memory-fraction 0.93"
    assert not make_plan(replace(slightly, memory_fraction=0.91)).fits


def test_too_large_a_fraction_is_made_smaller(make_settings: Make) -> None:
    given = make_settings("llama3.2-1b", "h100-sxm", memory_fraction=1.0)
    assert options(given) == {"memory fraction": "--memory-fraction 0.99"}


def test_weights_that_are_too_large_take_two_changes(make_settings: Make) -> None:
    """14 B in 16 bits on 24 GB: four bits, and then a shorter context or fewer sequences."""
    given = make_settings("qwen3-14b", "l4", max_seqs=64, context=40960)
    found = nearest_changes(make_plan(given))
    assert found
    assert all(" + " in change.knob and change.plan.fits for change in found)
    assert "--quant awq --batch 1" in {change.option for change in found}


def test_fewer_bits_and_fewer_sequences_where_weights_alone_are_too_much(
    make_settings: Make,
) -> None:
    """A V100 has no AWQ: GPTQ, with as many sequences as that leaves; more GPUs stand beside it."""
    found = options(make_settings("qwen3-14b", "v100", max_seqs=4, context=40960))
    assert found == {
        "quantisation + sequences": "--quant gptq --batch 2",
        "tensor parallel": "--tp 2",
    }
    # One sequence cannot be made fewer.
    one = make_settings("qwen3-14b", "v100-16gb", max_seqs=1, context=40960)
    (change, *_) = nearest_changes(make_plan(one))
    assert change.knob == "quantisation + context"
    assert change.option == f"--quant gptq --context {change.plan.settings.context}"
    longer = replace(change.plan.settings, context=change.plan.settings.context + 16)
    assert not make_plan(longer).fits


def test_a_pattern_keeps_its_eight_bits(make_settings: Make) -> None:
    six = Pattern.parse("6:8")
    given = make_settings("qwen3-14b", max_seqs=256, context=8192, quant=Quant.FP8, pattern=six)
    assert not any("quantisation" in knob for knob in options(given))


def test_nothing_helps(make_settings: Make) -> None:
    """80 B on a fifth of V100s of 16 GB: not in four bits, nor on eight of them."""
    given = make_settings("qwen3-next-80b-a3b", "v100-16gb", max_seqs=1)
    assert options(given) == {"quantisation + tensor parallel": "--quant gptq --tp 4"}
    assert options(replace(given, memory_fraction=0.2)) == {}


def test_nothing_is_recommended_that_vllm_refuses(make_settings: Make) -> None:
    """Eight ranks would fit, and tear the groups of the AWQ weights of `down`."""
    wanted = {"max_seqs": 90, "context": 131072, "kv_dtype": KvDtype.FP8}
    torn = make_settings("qwen2.5-14b", "b200", quant=Quant.AWQ, **wanted)
    assert make_plan(replace(torn, tp=8)).fits
    assert not make_plan(replace(torn, tp=4)).fits
    assert "tensor parallel" not in options(torn)
    assert options(replace(torn, quant=Quant.GPTQ))["tensor parallel"] == "--tp 8"
    tight = {"max_seqs": 1, "context": 4096}
    assert options(make_settings("qwen3-8b", "rtx-5080", **tight))["quantisation"] == "--quant fp8"
    assert options(make_settings("qwen3-14b", "l4", **tight))["quantisation"] == "--quant int8"


@settings(max_examples=40)
@given(
    model=st.sampled_from(["qwen2.5-7b", "qwen3-14b", "qwen3-30b-a3b", "qwen3-next-80b-a3b"]),
    gpu=st.sampled_from(["l4", "a100-40gb", "h100-sxm", "h200"]),
    batch=st.integers(1, 512),
    context=st.integers(1, 130_000),
    quant=st.sampled_from(list(Quant)),
    kv_dtype=st.sampled_from(list(KvDtype)),
    fraction=st.sampled_from([0.5, 0.9, 0.99]),
)
def test_whatever_is_recommended_fits(
    model: str,
    gpu: str,
    batch: int,
    context: int,
    quant: Quant,
    kv_dtype: KvDtype,
    fraction: float,
) -> None:
    wanted = Settings(
        load_model(model), find_gpu(gpu), 512, context, batch, quant, kv_dtype, fraction
    )
    plan = make_plan(wanted)
    for change in nearest_changes(plan):
        assert change.plan.fits
        assert make_plan(change.plan.settings).fits
        assert change.plan.settings != wanted
        assert set(change.knob.split(" + ")) <= set(KNOBS)
