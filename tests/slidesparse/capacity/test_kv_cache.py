"""The KV cache: bytes per token, blocks, windows, constant states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from slidesparse.capacity import KvDtype, Settings
from slidesparse.capacity.kv_cache import describe, kv_layout, state_bytes
from slidesparse.gpus import GpuSpec, find_gpu
from slidesparse.models import DeltaNet, ModelSpec, load_model, spec_from_config

pytest.importorskip("hypothesis")
from hypothesis import given
from hypothesis import strategies as st

Make = Callable[..., Settings]

SPEC = ModelSpec("toy", "llama", 64, 6, 96, 8, 2, 16, 128, "here")
NET = DeltaNet(layers=0, key_heads=4, value_heads=8, key_head_dim=16, value_head_dim=16)


def test_bytes_per_token_are_those_of_grouped_queries(make_settings: Make) -> None:
    """2 (keys and values) x 40 layers x 8 heads x 128 x 2 bytes."""
    layout = kv_layout(make_settings("qwen3-14b"))
    assert layout.token_bytes == 163_840
    assert layout.block_bytes == 16 * 163_840
    eight = kv_layout(make_settings("qwen3-14b", kv_dtype=KvDtype.FP8))
    assert eight.token_bytes == 81_920


def test_experts_have_no_kv_cache(make_settings: Make) -> None:
    """Qwen3-30B-A3B: 2 x 48 layers x 4 heads x 128 x 2 bytes, however many experts."""
    assert kv_layout(make_settings("qwen3-30b-a3b")).token_bytes == 98_304


def test_ranks_share_heads_until_one_is_left(make_settings: Make) -> None:
    bytes_of = {
        tp: kv_layout(make_settings("llama3.1-8b", tp=tp)).token_bytes for tp in (1, 2, 8, 16)
    }
    assert bytes_of[2] * 2 == bytes_of[8] * 8 == bytes_of[1] == 2 * 32 * 8 * 128 * 2
    assert bytes_of[16] == bytes_of[8]  # Replicated from eight ranks on.


def test_a_sequence_takes_whole_blocks(make_settings: Make) -> None:
    layout = kv_layout(make_settings())
    assert [layout.sequence_blocks(n, 8192) for n in (1, 16, 17, 4096)] == [1, 1, 2, 256]


def test_vllm_keeps_one_block_for_itself(make_settings: Make) -> None:
    layout = kv_layout(make_settings())
    ten = 10 * layout.block_bytes
    assert layout.blocks_in(ten + layout.block_bytes - 1) == 10
    assert layout.sequences_in(ten, 48, 8192) == 3
    assert layout.longest_in(ten, 1, 8192, 10**6) == 9 * 16
    assert layout.longest_in(ten, 4, 8192, 10**6) == 2 * 16
    assert layout.longest_in(ten, 10, 8192, 10**6) == 0
    assert layout.longest_in(-5, 1, 8192, 10**6) == layout.sequences_in(-5, 48, 8192) == 0


def test_qwen3_next_has_the_blocks_that_vllm_logs(make_settings: Make) -> None:
    """vLLM: "Setting attention block size to 544 tokens", 12 layers of each of four groups."""
    settings = make_settings("qwen3-next-80b-a3b")
    layout = kv_layout(settings)
    # (2 x 2048 + 4096) x 3 of the convolution, 32 matrices 128 x 128, 2 bytes each.
    assert state_bytes(settings.spec, 1) == 2 * (8192 * 3 + 32 * 128 * 128)
    assert layout.block_tokens == 544
    assert (layout.group_size, layout.full, layout.constant) == (12, 1, 3)
    assert layout.page == 544 * 2 * 2 * 256 * 2
    # One block for 544 tokens, and one for each of three groups' states.
    assert [layout.sequence_blocks(n, 8192) for n in (1, 544, 545)] == [4, 4, 5]
    assert "bytes of state a sequence" in describe(layout)


def test_the_state_does_not_grow_with_the_context(make_settings: Make) -> None:
    layout = kv_layout(make_settings("qwen3-next-80b-a3b"))
    grown = layout.sequence_blocks(544 * 101, 8192) - layout.sequence_blocks(544, 8192)
    assert grown == 100


def test_a_sliding_window_bounds_the_blocks(make_settings: Make) -> None:
    """Mistral 7B v0.1: all layers see 4096 tokens."""
    config = {
        "model_type": "mistral",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "sliding_window": 4096,
    }
    spec = spec_from_config(config, "mistral", "here", "config.json")
    assert (spec.window, spec.window_layers) == (4096, 32)
    layout = kv_layout(replace(make_settings(), spec=spec))
    # The window, a step's tokens, and one block since it begins anywhere.
    most = -(-(4095 + 2048) // 16) + 1
    assert layout.sequence_blocks(10**6, 2048) == most
    assert layout.sequence_blocks(1024, 2048) == 64 + 1
    assert "a window of 4,096 tokens in 32 layers" in describe(layout)


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"sliding_window": None}, (0, 0)),
        ({"sliding_window": 0}, (0, 0)),
        ({"sliding_window": 64}, (0, 0)),  # use_sliding_window is false where it is absent.
        ({"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1}, (64, 3)),
        ({"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 9}, (0, 0)),
        ({"sliding_window": 64, "use_sliding_window": True}, (64, 4)),
        (
            {
                "sliding_window": 64,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (64, 2),
        ),
        ({"model_type": "gemma2", "sliding_window": 64}, (64, 2)),
        ({"model_type": "llama", "sliding_window": 64}, (0, 0)),
    ],
)
def test_which_layers_have_a_window(changes: dict[str, object], window: tuple[int, int]) -> None:
    config = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 96,
        "num_attention_heads": 8,
        "vocab_size": 128,
        **changes,
    }
    spec = spec_from_config(config, "toy", "here", "toy.json")
    assert (spec.window, spec.window_layers) == window


def test_gemma2_has_two_groups(make_settings: Make) -> None:
    spec = replace(SPEC, layers=26, window=4096, window_layers=13)
    layout = kv_layout(replace(make_settings(), spec=spec))
    assert (layout.group_size, layout.full, layout.windowed) == (13, 1, 1)
    assert layout.token_bytes == 13 * 2 * 2 * 16 * 2


@given(full=st.integers(1, 40), windowed=st.integers(0, 40), constant=st.integers(0, 40))
def test_groups_hold_every_layer(full: int, windowed: int, constant: int) -> None:
    net = replace(NET, layers=constant) if constant else None
    spec = replace(
        SPEC,
        layers=full + windowed + constant,
        window=512,
        window_layers=windowed,
        delta_net=net,
    )
    settings = Settings(spec, _gpu(), 4, 128, 4)
    layout = kv_layout(settings)
    for groups, count in (
        (layout.full, full),
        (layout.windowed, windowed),
        (layout.constant, constant),
    ):
        assert groups * layout.group_size >= count
        assert (groups - 1) * layout.group_size < max(1, count)
    if constant:
        assert layout.page >= state_bytes(spec, 1)


@given(
    model=st.sampled_from(["qwen3-14b", "qwen3-next-80b-a3b", "llama3.2-1b"]),
    memory=st.integers(0, 2**38),
    context=st.integers(1, 300_000),
    batched=st.integers(1, 20_000),
)
def test_what_fits_fits_and_no_more(model: str, memory: int, context: int, batched: int) -> None:
    layout = kv_layout(Settings(load_model(model), _gpu(), 4, 128, 4))
    each = layout.sequence_blocks(context, batched) * layout.block_bytes
    count = layout.sequences_in(memory, context, batched)
    own = layout.block_bytes
    assert count * each + own <= memory or count == 0
    assert (count + 1) * each + own > memory
    longest = layout.longest_in(memory, max(1, count), batched, 2**24)
    assert count == 0 or longest >= context


def _gpu() -> GpuSpec:
    return find_gpu("h100-sxm")
