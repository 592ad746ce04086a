"""Our arithmetic of cache, graphs and vocabulary against vLLM's own, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from slidesparse.capacity import KvDtype, Settings
from slidesparse.capacity.graphs import graph_sizes
from slidesparse.capacity.kv_cache import KvLayout, kv_layout, state_bytes
from slidesparse.capacity.weights import padded_vocab
from slidesparse.models import load_model

pytest.importorskip("vllm", reason="vLLM is not installed: its own arithmetic was not compared")

Make = Callable[..., Settings]

MODELS = ["qwen3-14b", "qwen2.5-7b", "qwen3-30b-a3b", "qwen3-next-80b-a3b", "llama3.2-1b"]
TOKENS = 2048


def specs_of(settings: Settings, layout: KvLayout) -> dict[str, Any]:
    """vLLM's specification of every layer's cache."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec

    spec = settings.spec
    dtype = torch.bfloat16 if settings.kv_dtype is KvDtype.BF16 else torch.uint8
    heads = max(1, spec.kv_heads // settings.tp)
    common = {
        "block_size": layout.block_tokens,
        "num_kv_heads": heads,
        "head_size": spec.head_dim,
        "dtype": dtype,
    }
    plain = spec.attention_layers - spec.window_layers
    found: dict[str, Any] = {f"full.{i}": FullAttentionSpec(**common) for i in range(plain)}
    for i in range(spec.window_layers):
        found[f"window.{i}"] = SlidingWindowSpec(**common, sliding_window=spec.window)
    for i in range(spec.delta_net.layers if spec.delta_net else 0):
        found[f"state.{i}"] = MambaSpec(
            block_size=settings.context,
            shapes=((state_bytes(spec, settings.tp) // 2,),),
            dtypes=(torch.bfloat16,),
            page_size_padded=layout.page,
        )
    return found


def config_of(settings: Settings) -> Any:
    parallel = SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1)
    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=settings.context),
        parallel_config=parallel,
        scheduler_config=SimpleNamespace(
            max_num_batched_tokens=settings.batched_tokens, disable_hybrid_kv_cache_manager=False
        ),
        cache_config=SimpleNamespace(num_gpu_blocks_override=None, mamba_cache_mode="none"),
        kv_transfer_config=None,
    )


def compare(settings: Settings, memory: int) -> None:
    from vllm.v1.core import kv_cache_utils as theirs

    layout = kv_layout(settings)
    config: Any = config_of(settings)
    groups = theirs.get_kv_cache_groups(config, specs_of(settings, layout))
    needed = theirs._max_memory_usage_bytes_from_groups(config, groups)
    each = layout.sequence_blocks(settings.context, settings.batched_tokens)
    assert each * layout.block_bytes == needed
    made = theirs.get_kv_cache_config_from_groups(config, groups, memory)
    assert layout.blocks_in(memory) == made.num_blocks
    tokens, _ = theirs.get_kv_cache_capacity(config, made)
    ours = layout.tokens_in(memory, settings.context, settings.batched_tokens)
    assert ours == pytest.approx(tokens, abs=1)  # Theirs is a float's floor.


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("context", [100, 4096, 40960])
def test_blocks_and_tokens_are_vllms(model: str, context: int, make_settings: Make) -> None:
    settings = make_settings(model, context=context, batched_tokens=TOKENS)
    compare(settings, 40 * 2**30 + 12345)


@pytest.mark.parametrize("layers", [(26, 13), (30, 20), (24, 24), (25, 12)])
def test_sliding_windows_are_vllms(layers: tuple[int, int], make_settings: Make) -> None:
    settings = make_settings("llama3.1-8b", context=32768, batched_tokens=TOKENS)
    spec = replace(settings.spec, layers=layers[0], window=1000, window_layers=layers[1])
    compare(replace(settings, spec=spec), 40 * 2**30)


@pytest.mark.parametrize(
    ("max_seqs", "batched"),
    [
        (1, 8192),
        (3, 300),
        (8, 8192),
        (100, 8192),
        (200, 300),
        (256, 300),
        (256, 8192),
        (1024, 1024),
    ],
)
def test_captured_sizes_are_vllms(max_seqs: int, batched: int, make_settings: Make) -> None:
    from vllm.config import VllmConfig

    changes = {"max_seqs": max_seqs, "batch": 1, "batched_tokens": batched}
    settings = make_settings("qwen2.5-7b", **changes)
    compilation = SimpleNamespace(
        cudagraph_mode="full",
        max_cudagraph_capture_size=None,
        cudagraph_capture_sizes=None,
        pass_config=SimpleNamespace(enable_sp=False),
        post_init_cudagraph_sizes=lambda: None,
        compile_sizes=None,
    )
    config = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False),
        compilation_config=compilation,
        num_speculative_tokens=0,
        scheduler_config=SimpleNamespace(max_num_seqs=max_seqs, max_num_batched_tokens=batched),
        performance_mode="balanced",
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
    )
    VllmConfig._set_cudagraph_sizes(config)
    assert list(graph_sizes(settings)) == compilation.cudagraph_capture_sizes


def test_the_defaults_of_a_server_are_vllms() -> None:
    import inspect

    from vllm.config import SchedulerConfig
    from vllm.engine.arg_utils import EngineArgs

    from slidesparse.capacity.settings import LARGE_BATCH, LARGE_GIB, SMALL_BATCH

    config = inspect.getsource(SchedulerConfig)
    assert "if self.max_num_batched_tokens < self.max_num_seqs:\n            raise" in config
    source = inspect.getsource(EngineArgs.get_batch_defaults)
    assert f"device_memory >= {LARGE_GIB} * GiB_bytes" in source
    assert f"OPENAI_API_SERVER: {LARGE_BATCH}" in source
    assert f"OPENAI_API_SERVER: {SMALL_BATCH}" in source


@pytest.mark.parametrize("vocab", [32000, 32003, 151936, 128256])
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_the_padding_of_the_vocabulary_is_vllms(vocab: int, tp: int) -> None:
    from vllm.model_executor.layers.vocab_parallel_embedding import pad_vocab_size

    spec = replace(load_model("qwen3-14b"), vocab=vocab)
    assert padded_vocab(spec, tp) * tp == pad_vocab_size(vocab)
