"""CapacityPlan: the sum, the verdict, vLLM's two ways of counting, and what grows with what."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from slidesparse.candidate import Provenance
from slidesparse.capacity import KvDtype, Quant, Settings, make_plan
from slidesparse.capacity.activations import activation_parts, peak_activations, runs_v2
from slidesparse.capacity.figure import GIB, size, total
from slidesparse.capacity.graphs import graph_part, graph_sizes
from slidesparse.capacity.limits import limits
from slidesparse.gpus import find_gpu
from slidesparse.models import load_model, preset_names
from slidesparse.pattern import Pattern

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

Make = Callable[..., Settings]

SPECS = [load_model(name) for name in preset_names()]
SETTINGS = st.builds(
    Settings,
    spec=st.sampled_from([spec for spec in SPECS if 2 in spec.tp_sizes()]),
    gpu=st.sampled_from([find_gpu(key) for key in ("l4", "h100-sxm", "h200", "b200")]),
    max_seqs=st.just(2048),
    context=st.integers(1, 100_000),
    batch=st.integers(1, 2048),
    quant=st.sampled_from(list(Quant)),
    kv_dtype=st.sampled_from(list(KvDtype)),
    memory_fraction=st.floats(0.3, 0.99),
    tp=st.sampled_from([1, 2]),
    batched_tokens=st.sampled_from([2048, 8192]),
)


def test_the_example_of_the_documentation(make_settings: Make) -> None:
    """What document D calls 485 % of the memory, and 3.5 GB of weights."""
    changes = {"max_seqs": 256, "context": 49152, "batch": 32, "quant": Quant.AWQ}
    plan = make_plan(make_settings("qwen3-14b", "h100-80gb", **changes))
    assert plan.budget == math.ceil(0.9 * plan.settings.gpu.memory_bytes)
    assert plan.kv_cache.bytes == 32 * 49152 * 163_840 + 16 * 163_840
    assert total(plan.weights) / 1e9 == pytest.approx(9.98, abs=0.05)
    assert not plan.fits
    assert plan.starts
    assert plan.sequences == 8
    assert plan.verdict == (
        "does not fit: 179.87 GiB too much, 251.13 GiB of 71.26 GiB (0.9 of H100 SXM 80 GB), "
        "352.4 %"
    )


def test_the_verdict_of_what_fits(make_settings: Make) -> None:
    plan = make_plan(make_settings("llama3.2-1b", "h200"))
    assert plan.fits
    assert plan.verdict == (
        f"fits: {size(plan.spare)} to spare, {size(plan.needed)} of 125.82 GiB (0.9 of H200 SXM "
        f"141 GB), {100 * plan.needed / plan.budget:.1f} %"
    )
    two = make_plan(make_settings("llama3.2-1b", "h200", tp=2))
    assert two.verdict.startswith("fits on each of the GPUs: ")


def test_what_lies_beside_the_fraction_has_to_fit_too(make_settings: Make) -> None:
    plan = make_plan(make_settings("llama3.2-1b", "h200", memory_fraction=1.0))
    assert plan.spare > 0
    assert not plan.fits
    assert not plan.starts
    lacking = size(plan.context.bytes + plan.graphs.bytes)
    assert plan.verdict == (
        f"does not fit: beside the 139.80 GiB that vLLM may use {lacking} lack for the CUDA "
        "context and graphs; use a smaller memory fraction"
    )


@pytest.mark.parametrize(
    ("model", "v2"),
    [("qwen3-14b", True), ("qwen3-30b-a3b", False), ("qwen3-next-80b-a3b", False)],
)
def test_graphs_count_inside_in_runner_v1_and_beside_in_v2(
    model: str, v2: bool, make_settings: Make
) -> None:
    plan = make_plan(make_settings(model, "h200"))
    assert runs_v2(plan.settings) is v2
    assert plan.graphs_inside is not v2
    eager = make_plan(replace(plan.settings, eager=True))
    assert eager.graphs.bytes == 0
    compiling = peak_activations(plan.settings) - peak_activations(eager.settings)
    gained = eager.available - plan.available - compiling
    assert gained == (0 if v2 else plan.graphs.bytes)


def test_parts_say_where_they_are_from(make_settings: Make) -> None:
    plan = make_plan(make_settings())
    assert {part.provenance for part in plan.weights} == {Provenance.DERIVED}
    assert {part.provenance for part in plan.activations} == {Provenance.ESTIMATED}
    assert plan.kv_cache.provenance is Provenance.DERIVED
    assert plan.provenance is Provenance.ESTIMATED


def test_the_peak_is_the_widest_layer_or_the_sampler(make_settings: Make) -> None:
    wide = make_settings("qwen3-14b", max_seqs=1, eager=True)
    names = [part.name for part in activation_parts(wide)]
    assert names[0] == "gate and up projection"
    # 8192 tokens: gate_up 34816 and down's input 17408 wide, three of the hidden width, 2 bytes.
    assert peak_activations(wide) == 8192 * 2 * (34816 + 17408 + 3 * 5120)
    sampled = make_settings("qwen3-14b", max_seqs=8192)
    assert activation_parts(sampled)[0].name == "logits and their copies"
    assert activation_parts(sampled)[0].bytes == 6 * 8192 * 151936


@pytest.mark.parametrize(
    ("model", "quant", "max_seqs", "reported"),
    [
        ("qwen2.5-7b", Quant.FP8, 256, 1237364224),
        ("llama3.1-8b", Quant.FP8, 256, 1218490880),
        ("qwen2.5-14b", Quant.INT8, 128, 1726001664),
    ],
)
def test_the_peak_while_compiling_is_what_vllm_reported(
    make_settings: Make, model: str, quant: Quant, max_seqs: int, reported: int
) -> None:
    """Peaks of vLLM 0.25.1 on an H200, read by `slidesparse plan --check` at 4c2ea9d."""
    settings = make_settings(model, "h200", quant=quant, max_seqs=max_seqs)
    parts = activation_parts(settings)
    assert parts[0].name == "second embedding, to time kernels with"
    assert parts[0].how == "while a step of 8,192 tokens is compiled"
    assert 0 <= reported - peak_activations(settings) < 50_000
    assert peak_activations(replace(settings, eager=True)) < peak_activations(settings)


def test_ranks_compile_for_their_share_of_the_embedding(make_settings: Make) -> None:
    one, two = (make_settings("qwen2.5-14b", "h200", max_seqs=1, tp=tp) for tp in (1, 2))
    embedding, stream = 152064 * 5120 * 2, 8192 * 5120 * 2
    assert peak_activations(one) == embedding + 2**20 + 2 * stream  # In whole 2 MiB.
    parts = {part.name: part.bytes for part in activation_parts(two)}
    assert parts == {
        "second embedding, to time kernels with": pytest.approx(embedding // 2, abs=2**21),
        "residual stream": stream,
    }


def test_eight_bits_halve_the_activation_in_the_mlp(make_settings: Make) -> None:
    quant = peak_activations(make_settings(max_seqs=1, quant=Quant.FP8, eager=True))
    plain = peak_activations(make_settings(max_seqs=1, eager=True))
    assert plain - quant == 8192 * (2 * 17408 - 17408 - 4)
    pattern = Pattern.parse("6:8")
    six = make_settings(max_seqs=1, quant=Quant.FP8, pattern=pattern, eager=True)
    assert peak_activations(six) - quant == 8192 * (17408 * 3 // 2 - 17408)


def test_experts_take_two_workspaces(make_settings: Make) -> None:
    settings = make_settings("qwen3-30b-a3b", "h200", max_seqs=1)
    parts = {part.name: part.bytes for part in activation_parts(settings)}
    assert parts["experts' workspace"] == 8192 * 8 * 2048 * 2
    assert parts["experts' activations"] == 8192 * 8 * 2048 * 2


def test_ranks_gather_their_logits(make_settings: Make) -> None:
    one, two = (make_settings(max_seqs=8192, tp=tp) for tp in (1, 2))
    assert peak_activations(two) - peak_activations(one) == 2 * 8192 * 151936


def test_captured_sizes(make_settings: Make) -> None:
    assert graph_sizes(make_settings(max_seqs=4)) == (1, 2, 4, 8)
    assert len(graph_sizes(make_settings(max_seqs=256))) == 51
    assert graph_sizes(make_settings(eager=True)) == ()
    assert graph_part(make_settings(eager=True)).how == "off: --eager"


@pytest.mark.parametrize(
    ("model", "gpu", "changes", "note"),
    [
        (
            "qwen3-14b",
            "h100-sxm",
            {"context": 49152},
            "the model is made for 40,960 tokens: 49,152 need RoPE scaling in its config, or vLLM "
            "refuses",
        ),
        (
            "qwen3-14b",
            "h100-sxm",
            {"max_seqs": 256, "batch": 2},
            "the plan is for 2 sequences of the full context; --max-seqs 256 sizes the sampler and "
            "the graphs, and as many run where they are shorter",
        ),
        (
            "qwen3-14b",
            "h100-sxm",
            {"max_seqs": 256, "context": 40960},
            "vLLM would start: it holds 6 of 256 sequences of 40,960 tokens at once and lets the "
            "others wait",
        ),
        (
            "qwen2.5-7b",
            "h200",
            {"quant": Quant.FP8, "pattern": Pattern.parse("6:8")},
            "weights are counted in the sparse form alone (memory_format=smallest); fastest, the "
            "default, may keep up to 6.08 GiB of dense forms besides, as the tuning cache says",
        ),
        (
            "qwen3-30b-a3b",
            "h200",
            {"quant": Quant.FP8, "pattern": Pattern.parse("6:8")},
            "experts stay with vLLM's own kernels: the pattern changes nothing of them",
        ),
        (
            "qwen3-8b",
            "a100",
            {"quant": Quant.FP8},
            "A100 SXM 80 GB has no FP8 tensor cores: vLLM multiplies FP8 weights in 16 bits",
        ),
        (
            "llama3.2-1b",
            "v100",
            {},
            "V100 SXM2 32 GB has no BF16: FP16 is planned, which takes as many bytes",
        ),
        (
            "qwen2.5-14b",
            "h100-sxm",
            {"quant": Quant.AWQ, "tp": 8},
            "AWQ weights share scales in groups of 128, which do not divide the 1,728 inputs of "
            "down on each rank: vLLM refuses such a checkpoint",
        ),
        (
            "qwen3-14b",
            "rtx-4090",
            {"tp": 2},
            "GeForce RTX 4090 24 GB has no NVLink: what the ranks exchange over PCIe is in no "
            "ceiling",
        ),
        (
            "qwen3-14b",
            "h100-pcie",
            {"tp": 4},
            "NVLink bridges join two H100 PCIe 80 GB: 4 ranks exchange over PCIe, too, which is "
            "slower than the ceilings say",
        ),
        (
            "llama3.2-1b",
            "gb10",
            {},
            "its memory is shared with the CPU: what other programs use is not there",
        ),
        (
            "llama3.2-1b",
            "gb10",
            {},
            "nobody publishes the tensor-core rates of GB10 (DGX Spark) 128 GB: the ceilings are "
            "those of its memory, and prefill is further below them",
        ),
    ],
)
def test_notes(
    model: str, gpu: str, changes: dict[str, object], note: str, make_settings: Make
) -> None:
    assert note in list(make_plan(make_settings(model, gpu, **changes)).notes())


def test_limits_are_what_still_fits(make_settings: Make) -> None:
    settings = make_settings("qwen3-14b", max_seqs=256, batch=32, context=8192)
    found = limits(make_plan(settings))
    assert make_plan(replace(settings, context=found.context)).fits
    assert not make_plan(replace(settings, context=found.context + 1)).fits
    assert make_plan(replace(settings, batch=found.sequences)).fits
    assert not make_plan(replace(settings, batch=found.sequences + 1)).fits
    assert make_plan(replace(settings, batch=1, context=found.alone)).fits


@given(SETTINGS)
def test_more_needs_more(settings: Settings) -> None:
    plan = make_plan(settings)
    assert plan.needed == plan.fixed + plan.kv_cache.bytes
    assert plan.fits == (plan.spare >= 0 and plan.short_outside <= 0)
    longer = make_plan(replace(settings, context=settings.context + 16))
    assert longer.needed >= plan.needed
    assert longer.sequences <= plan.sequences
    if settings.batch > 1:
        fewer = make_plan(replace(settings, batch=settings.batch - 1))
        assert fewer.needed < plan.needed
    eight = make_plan(replace(settings, kv_dtype=KvDtype.FP8))
    assert eight.kv_cache.bytes <= plan.kv_cache.bytes + plan.layout.block_bytes
    more = make_plan(replace(settings, memory_fraction=min(1.0, settings.memory_fraction + 0.01)))
    assert more.available >= plan.available


@given(SETTINGS)
def test_a_plan_that_fits_holds_its_sequences(settings: Settings) -> None:
    plan = make_plan(settings)
    if plan.spare >= 0:
        assert plan.sequences >= settings.batch
    else:
        assert plan.sequences < settings.batch


def test_sizes_are_spelled_in_gib() -> None:
    assert size(3 * GIB // 2) == "1.50 GiB"
    assert size(2**20) == "1.0 MiB"
    assert size(-2 * GIB) == "-2.00 GiB"
