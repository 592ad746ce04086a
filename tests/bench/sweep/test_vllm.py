"""The engine's arguments for vLLM and what it refuses, without vLLM."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from slidesparse.bench.sweep.job import Job, Mode, Stage, System, Variant
from slidesparse.bench.sweep.vllm import VllmEngine, check_system, engine_arguments, largest_tensor
from slidesparse.bench.sweep.vllm_cells import random_prompts
from slidesparse.bench.sweep.vllm_model import Served
from slidesparse.devices import CPU, Device
from slidesparse.errors import UsageError
from slidesparse.models import load_model
from slidesparse.pattern import Pattern
from slidesparse.problem import INT32_MAX, DType

SIX = Pattern.parse("6:8")
JOB = Job(
    stage=Stage.PREFILL,
    model="qwen2.5-7b",
    tp=1,
    dtype=DType.FP8,
    variant=Variant(System.OURS, SIX),
    mode=Mode.GRAPHS,
    ms=(512, 65536),
    prompt=1024,
    outputs=128,
    repeats=3,
    seed=7,
)
SERVED = Served(Path("folder"), load_model("qwen2.5-7b"), True, 131072)


def test_a_prefill_engine_batches_its_largest_cell() -> None:
    made = engine_arguments(JOB, SERVED)
    assert made["max_num_batched_tokens"] == 65536
    # 64 prompts that end and 64 that begin fit into what vLLM allows by default.
    assert "max_num_seqs" not in made
    assert made["max_model_len"] == 2048
    assert made["enable_prefix_caching"] is False


def test_many_short_prompts_need_more_sequences() -> None:
    made = engine_arguments(replace(JOB, prompt=128), SERVED)
    assert made["max_num_seqs"] == 2 * 512
    made = engine_arguments(replace(JOB, ms=(512,), prompt=1), SERVED)
    assert made["max_num_seqs"] == 1024
    # vLLM refuses more sequences than tokens.
    assert made["max_num_batched_tokens"] == 1024


def test_prefill_and_decode_share_compiled_graphs() -> None:
    """They are cached by the length, among other things."""
    lengths = {
        engine_arguments(replace(JOB, stage=stage, ms=(64,)), SERVED)["max_model_len"]
        for stage in Stage
    }
    assert lengths == {2048}
    long = replace(JOB, prompt=8000, ms=(16384,))
    assert engine_arguments(long, SERVED)["max_model_len"] == 8000 + 1 + 16


def test_a_prompt_is_no_longer_than_a_cell() -> None:
    short = replace(SERVED, longest=100)
    assert engine_arguments(replace(JOB, ms=(64,)), short)["max_model_len"] == 100


def test_a_decode_engine_keeps_vllms_batch_size() -> None:
    made = engine_arguments(replace(JOB, stage=Stage.DECODE, ms=(1, 256)), SERVED)
    assert "max_num_batched_tokens" not in made
    assert "max_num_seqs" not in made
    assert made["max_model_len"] >= 1024 + 128
    made = engine_arguments(replace(JOB, stage=Stage.DECODE, ms=(1, 512)), SERVED)
    assert made["max_num_seqs"] == 512


def test_only_the_plugin_differs_between_the_systems() -> None:
    ours = engine_arguments(JOB, SERVED)
    stock = engine_arguments(replace(JOB, variant=Variant(System.STOCK, SIX)), SERVED)
    assert stock.pop("additional_config") == {"slidesparse": {"off": True}}
    assert ours.pop("additional_config") == {"slidesparse": {}}
    assert ours == stock


def test_random_weights_are_asked_for_by_seed_and_pattern() -> None:
    made = engine_arguments(JOB, SERVED)
    assert made["load_format"] == "slidesparse_random"
    assert made["model_loader_extra_config"] == {"seed": 7, "pattern": "6:8"}
    assert "load_format" not in engine_arguments(JOB, replace(SERVED, random=False))


@pytest.mark.parametrize("mode", list(Mode))
def test_eager_is_the_only_mode_that_changes_vllm(mode: Mode) -> None:
    made = engine_arguments(replace(JOB, mode=mode), SERVED)
    assert made["enforce_eager"] is (mode is Mode.EAGER)
    assert "compilation_config" not in made


def test_sequences_that_the_model_does_not_take_are_refused() -> None:
    with pytest.raises(UsageError, match="1025 tokens are longer than the 1024"):
        engine_arguments(JOB, replace(SERVED, longest=1024))
    assert engine_arguments(JOB, replace(SERVED, longest=1025))["max_model_len"] == 1025


@pytest.mark.parametrize(
    ("variant", "elements"),
    [
        (Variant(System.STOCK), 65536 * 37888),
        # The output of gate_up is larger than the lifted input of down, 18944 * 1.5 = 28416.
        (Variant(System.OURS, SIX), 65536 * 37888),
    ],
)
def test_the_largest_tensor_of_a_step(variant: Variant, elements: int) -> None:
    found = largest_tensor(replace(JOB, variant=variant), SERVED, 65536)
    assert found == elements
    assert found > INT32_MAX


def test_a_lifted_input_can_be_the_largest() -> None:
    served = replace(SERVED, spec=replace(SERVED.spec, intermediate=1000, heads=4, kv_heads=4))
    stock = replace(JOB, variant=Variant(System.STOCK, SIX))
    assert largest_tensor(stock, served, 10) == 10 * 3584
    assert largest_tensor(JOB, served, 10) == 10 * 5376


def test_the_plugin_must_be_where_it_should_be() -> None:
    said = {"linears": "CutlassFP8ScaledMMLinearKernel x112"}
    with pytest.raises(UsageError, match=r"did not load the plug-in.*Cutlass"):
        check_system(System.OURS, said)
    with pytest.raises(UsageError, match="should be stock vLLM: 0 of 112"):
        check_system(System.STOCK, {**said, "slidesparse": "0 of 112"})
    check_system(System.STOCK, said)
    check_system(
        System.OURS, {**said, "slidesparse": "slidesparse 0.1.0: 1 of 112 W8A8 linears taken"}
    )
    none = "slidesparse 0.1.0: 0 of 112 W8A8 linears taken; left to vLLM: no tuning result 112"
    with pytest.raises(UsageError, match=f"^the plug-in took no layer, .*: {none}$"):
        check_system(System.OURS, {**said, "slidesparse": none})


def test_prompts_are_distinct_and_repeat_with_their_seeds() -> None:
    lengths = (32, 32, 5)
    first = random_prompts(lengths, 1000, 1, 2)
    assert [len(prompt) for prompt in first] == [32, 32, 5]
    assert first[0] != first[1]
    assert all(0 <= token < 1000 for prompt in first for token in prompt)
    assert random_prompts(lengths, 1000, 1, 2) == first
    assert random_prompts(lengths, 1000, 1, -2)[0] != first[0]


def test_a_cpu_and_a_second_gpu_are_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match="--engine linear"):
        VllmEngine(CPU, JOB).build()
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=1 and use --device cuda:0"):
        VllmEngine(Device("cuda", 1), JOB).build()


def test_a_cell_needs_a_model() -> None:
    with pytest.raises(UsageError, match="call build first"):
        VllmEngine(Device("cuda", 0), JOB).run(512)


def test_without_vllm_it_says_what_to_install() -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed; what happens without it cannot be seen")
    with pytest.raises(UsageError, match=r"pip install 'slidesparse\[vllm\]'"):
        VllmEngine(Device("cuda", 0), JOB).build()
