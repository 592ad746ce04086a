"""What the engine of `bench agreement` asks of vLLM, and what it refuses, without vLLM."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from slidesparse.bench.agreement.requests import Request
from slidesparse.bench.agreement.vllm import AgreementEngine, Task, engine_arguments
from slidesparse.bench.sweep.job import Mode, System
from slidesparse.devices import CPU
from slidesparse.errors import UsageError


@pytest.mark.parametrize("mode", list(Mode))
def test_the_systems_differ_in_the_plugin_only(mode: Mode) -> None:
    stock, ours = (engine_arguments(Task("folder", system, mode, 2, 4096, 5)) for system in System)
    assert stock.pop("additional_config") == {"slidesparse": {"off": True}}
    assert ours.pop("additional_config") == {"slidesparse": {}}
    assert stock == ours
    assert stock["enforce_eager"] is (mode is Mode.EAGER)
    assert (stock["tensor_parallel_size"], stock["max_model_len"]) == (2, 4096)
    # Nothing is told of caches, batches and sequences: they are as vLLM has them.
    assert not {"enable_prefix_caching", "max_num_batched_tokens", "max_num_seqs"} & stock.keys()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_it_says_what_to_install() -> None:
    engine = AgreementEngine(CPU, Task("folder", System.OURS, Mode.EAGER, 1, 64, 0))
    with pytest.raises(UsageError, match=r"pip install 'slidesparse\[vllm\]'"):
        engine.build()


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.score([((1, 2), 1)]),
        lambda engine: engine.together([Request((1,), 1)]),
        lambda engine: engine.alone({0: Request((1,), 1)}),
    ],
)
def test_an_engine_has_to_be_built(call: Callable[[AgreementEngine], Any]) -> None:
    engine = AgreementEngine(CPU, Task("folder", System.OURS, Mode.EAGER, 1, 64, 0))
    with pytest.raises(UsageError, match="call build first"):
        call(engine)
