"""The KV cache as vLLM 0.25.1 lays it out: blocks, groups of layers, and what a sequence takes.

From vllm/v1/core/kv_cache_utils.py and vllm/v1/kv_cache_interface.py. All layers share blocks of
one size. Layers of a kind form groups of equally many layers; a sequence takes blocks for each
group: those with full attention for all its tokens, those with a sliding window for the window and
one step, those with a constant state (gated DeltaNet) one block each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from slidesparse.capacity.settings import BLOCK_TOKENS, FLOAT_STATE, Settings
from slidesparse.models import ModelSpec

FEWER = 1.5
"""Kinds of layers whose counts differ by less are padded to the larger count."""


@dataclass(frozen=True)
class KvLayout:
    """How the cache of one rank is laid out.

    Args:
        block_tokens: of a block of attention; 16, or more where a DeltaNet's state must fit one.
        page: bytes of one block of one layer.
        group_size: layers of a group; a block takes `page` bytes for each.
        full: groups of layers with full attention.
        windowed: groups of layers with a sliding window.
        constant: groups of layers with a state of constant size.
        window: tokens that the windowed ones see.
        token_bytes: of keys and values of one token in all layers with full attention.
        state_bytes: of one sequence in all layers with a constant state, before padding.
    """

    block_tokens: int
    page: int
    group_size: int
    full: int
    windowed: int
    constant: int
    window: int
    token_bytes: int
    state_bytes: int

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers that share it."""
        return self.page * self.group_size

    def sequence_blocks(self, context: int, batched_tokens: int) -> int:
        """Blocks that one sequence of `context` tokens takes at most."""
        full = -(-context // self.block_tokens)
        return self.full * full + self._fixed(context, batched_tokens)

    def blocks_in(self, memory: int) -> int:
        """Blocks that so many bytes hold."""
        return max(0, memory) // self.block_bytes

    def sequences_in(self, memory: int, context: int, batched_tokens: int) -> int:
        """Sequences of the full context that so many bytes hold at once."""
        # vLLM keeps one block for itself, which stands for none.
        free = max(0, self.blocks_in(memory) - 1)
        return free // self.sequence_blocks(context, batched_tokens)

    def longest_in(self, memory: int, sequences: int, batched_tokens: int, most: int) -> int:
        """The longest context of which so many sequences fit, 0 if none; at most `most`."""
        free = max(0, self.blocks_in(memory) - 1) // sequences
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.sequence_blocks(middle, batched_tokens) <= free:
                low = middle
            else:
                high = middle - 1
        return low

    def tokens_in(self, memory: int, context: int, batched_tokens: int) -> int:
        """Tokens of the cache as vLLM reports them when it starts.

        max_model_len times how many sequences of it fit (get_kv_cache_capacity); with full
        attention alone that is blocks x block size where the context is whole blocks.
        """
        blocks = self.blocks_in(memory)
        return blocks * context // self.sequence_blocks(context, batched_tokens)

    def _fixed(self, context: int, batched_tokens: int) -> int:
        held = min(self.window - 1 + batched_tokens, context)
        window = -(-held // self.block_tokens) + 1 if self.windowed else 0
        return self.windowed * window + self.constant


def kv_layout(settings: Settings) -> KvLayout:
    """The layout for a model on one of `tp` ranks."""
    spec, tp = settings.spec, settings.tp
    # With more ranks than key/value heads each rank holds one replicated head.
    heads = max(1, spec.kv_heads // tp)
    per_token = 2 * heads * spec.head_dim * settings.kv_dtype.bytes
    state = state_bytes(spec, tp)
    block = BLOCK_TOKENS
    if state:
        block *= max(1, -(-state // (BLOCK_TOKENS * per_token)))
    plain = spec.attention_layers - spec.window_layers
    net_layers = spec.delta_net.layers if spec.delta_net else 0
    counts = (plain, spec.window_layers, net_layers)
    size = _group_size([count for count in counts if count])
    full, windowed, constant = (-(-count // size) for count in counts)
    return KvLayout(
        block_tokens=block,
        page=block * per_token,
        group_size=size,
        full=full,
        windowed=windowed,
        constant=constant,
        window=spec.window,
        token_bytes=per_token * plain,
        state_bytes=state * net_layers,
    )


def state_bytes(spec: ModelSpec, tp: int) -> int:
    """What one sequence keeps in one DeltaNet layer of one rank, 0 for models without.

    The convolution's last inputs, (kernel - 1) x (2 keys + values), and one matrix [value, key] per
    value head, in 16 bits (gated_delta_net_state_shape in vllm/.../mamba/mamba_utils.py).
    """
    net = spec.delta_net
    if net is None:
        return 0
    convolution = (2 * net.key_width + net.value_width) // tp * (net.conv_kernel - 1)
    matrices = net.value_heads // tp * net.value_head_dim * net.key_head_dim
    return FLOAT_STATE * (convolution + matrices)


def describe(layout: KvLayout) -> str:
    """How the cache grows, in a few words."""
    return ", ".join(_words(layout))


def _words(layout: KvLayout) -> Iterator[str]:
    if layout.full:
        yield f"{layout.token_bytes:,} bytes a token"
    if layout.windowed:
        many = layout.windowed * layout.group_size
        yield f"a window of {layout.window:,} tokens in {many} layers"
    if layout.constant:
        yield f"{layout.state_bytes:,} bytes of state a sequence"
    yield f"blocks of {layout.block_tokens} tokens"


def _group_size(counts: list[int]) -> int:
    """Layers of a group: of the rarest kind, or of the commonest where both are about as many."""
    least, most = min(counts), max(counts)
    return most if most < least * FEWER else least
