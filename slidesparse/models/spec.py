"""ModelSpec: what a config.json says, and the linear layers that follow from it.

Layers are fused and sharded as vLLM serves them (vllm/model_executor: layers/linear.py, models/
llama.py, models/qwen3_next.py, layers/mamba/gdn/qwen_gdn_linear_attn.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from slidesparse.errors import ModelError

Kind = Literal["dense", "shared", "expert"]
"""dense: every token passes. shared: an expert that every token passes. expert: routed tokens."""


@dataclass(frozen=True)
class LinearLayer:
    """One linear shape of a model on one tensor-parallel rank: D[m, n] = X[m, k] @ W[n, k]^T.

    Args:
        name: of the fused layer: "qkv", "o", "gate_up", "down", "expert_gate_up", ...
        n: output channels on this rank.
        k: input channels on this rank, before any expansion.
        count: weights of this shape in the model; a routed expert counts once per expert and layer.
        kind: "dense", "shared" or "expert".
        bias: whether the layer adds bias[n].
        experts: routed experts per layer, 0 unless kind is "expert".
        active: experts that one token is routed to, 0 unless kind is "expert".
    """

    name: str
    n: int
    k: int
    count: int
    kind: Kind = "dense"
    bias: bool = False
    experts: int = 0
    active: int = 0

    @property
    def parameters(self) -> int:
        """Weights of all `count` layers together, on this rank."""
        return self.n * self.k * self.count

    def rows(self, m: int) -> int:
        """Rows of X that one GEMM sees for a batch of `m` tokens.

        All `m`, except for a routed expert: m * active / experts, rounded up, which is the mean
        over the experts; the router decides the true number at run time.
        """
        if self.kind != "expert":
            return m
        return -(-m * self.active // self.experts)

    def grouped_rows(self, m: int) -> int:
        """Rows of the tensor that holds X for a batch of `m` tokens.

        For routed experts m * active: a grouped GEMM keeps every routed copy in one tensor.
        """
        return m * self.active if self.kind == "expert" else m


@dataclass(frozen=True)
class Experts:
    """The mixture-of-experts part of a model.

    Args:
        experts: routed experts per layer.
        active: experts per token.
        intermediate: width of one routed expert.
        shared_intermediate: width of the expert that every token passes, 0 if there is none.
        layers: how many decoder layers have experts; the others have a dense MLP.
    """

    experts: int
    active: int
    intermediate: int
    shared_intermediate: int
    layers: int


@dataclass(frozen=True)
class DeltaNet:
    """The gated DeltaNet (linear attention) part of a hybrid model.

    Args:
        layers: how many decoder layers use it instead of full attention.
        key_heads: heads of the queries and of the keys.
        value_heads: heads of the values, of the gate z and of the decays b and a.
        key_head_dim: width of one query or key head.
        value_head_dim: width of one value or gate head.
        conv_kernel: width of the convolution over queries, keys and values.
    """

    layers: int
    key_heads: int
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int = 4

    @property
    def key_width(self) -> int:
        """Width of all keys."""
        return self.key_heads * self.key_head_dim

    @property
    def value_width(self) -> int:
        """Width of all values."""
        return self.value_heads * self.value_head_dim


@dataclass(frozen=True)
class ModelSpec:
    """The sizes of a decoder-only model that decide its linear layers.

    The token embedding, the output head (lm_head), the routers of experts and their one-column
    gates are not listed by `linears`: W8A8 checkpoints keep them unquantised.

    Args:
        name: preset name, directory name or Hugging Face id.
        architecture: family as config.json's model_type spells it, for example "qwen2".
        hidden: width of the residual stream.
        layers: decoder layers.
        intermediate: width of the dense MLP, 0 if the config does not state one.
        heads: query heads.
        kv_heads: key heads, and as many value heads.
        head_dim: width of one head; heads * head_dim need not be `hidden`.
        vocab: rows of the token embedding.
        source: where the sizes come from: a Hugging Face repository id or a path.
        moe: the experts, None for a dense model.
        delta_net: the linear-attention layers of a hybrid model, None without any.
        output_gate: whether the query projection is doubled by an output gate (Qwen3-Next).
        qkv_bias: whether qkv adds a bias.
        o_bias: whether o adds a bias.
        mlp_bias: whether gate_up and down of the dense MLP add a bias.
        tied: whether the output head is the token embedding, one tensor.
        norms: norms of the width of the residual stream in one decoder layer.
        qk_norm: whether queries and keys have norms of head_dim each.
        sub_norms: whether the inputs of o and of down have norms (BitNet).
        window: tokens that layers with a sliding window see, 0 without such layers.
        window_layers: how many layers have it.
        longest: tokens of the longest sequence that the model is made for, 0 if not stated.
    """

    name: str
    architecture: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    source: str
    moe: Experts | None = None
    delta_net: DeltaNet | None = None
    output_gate: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    norms: int = 2
    qk_norm: bool = False
    sub_norms: bool = False
    window: int = 0
    window_layers: int = 0
    longest: int = 0

    @property
    def dense_layers(self) -> int:
        """Decoder layers whose MLP is dense."""
        return self.layers - (self.moe.layers if self.moe else 0)

    @property
    def attention_layers(self) -> int:
        """Decoder layers with full (softmax) attention."""
        return self.layers - (self.delta_net.layers if self.delta_net else 0)

    @property
    def parameters(self) -> int:
        """Weights of all linear layers that `linears` lists."""
        return sum(layer.parameters for layer in self.linears())

    def linears(self, tp: int = 1) -> tuple[LinearLayer, ...]:
        """List the linear layers of one rank, fused as vLLM serves them.

        Column-parallel layers (qkv, gate_up, in_proj_*) have N divided by `tp`, row-parallel ones
        (o, down, out_proj) K. With more ranks than key/value heads each rank holds one replicated
        key and value head. Experts are sharded like a dense MLP (not expert-parallel).

        Args:
            tp: tensor-parallel size, the number of GPUs that share each layer.

        Raises:
            ModelError: `tp` does not divide what has to be divided; says which sizes would do.
        """
        complaint = self._tp_complaint(tp)
        if complaint:
            sizes = ", ".join(str(size) for size in self.tp_sizes())
            raise ModelError(f"{complaint} of {self.name}; use a tensor-parallel size of: {sizes}")
        layers = (*self._attention(tp), *self._linear_attention(tp), *self._mlps(tp))
        return tuple(layer for layer in layers if layer.count)

    def tp_sizes(self) -> tuple[int, ...]:
        """Every tensor-parallel size that `linears` accepts."""
        return tuple(tp for tp in range(1, self.heads + 1) if not self._tp_complaint(tp))

    def _attention(self, tp: int) -> Iterator[LinearLayer]:
        count = self.attention_layers
        queries = self.heads // tp * (2 if self.output_gate else 1)
        keys_values = 2 * max(1, self.kv_heads // tp)
        qkv = (queries + keys_values) * self.head_dim
        yield LinearLayer("qkv", qkv, self.hidden, count, bias=self.qkv_bias)
        o_width = self.heads // tp * self.head_dim
        yield LinearLayer("o", self.hidden, o_width, count, bias=self.o_bias)

    def _linear_attention(self, tp: int) -> Iterator[LinearLayer]:
        net = self.delta_net
        if net is None:
            return
        qkvz = 2 * (net.key_width + net.value_width) // tp
        yield LinearLayer("in_proj_qkvz", qkvz, self.hidden, net.layers)
        yield LinearLayer("in_proj_ba", 2 * net.value_heads // tp, self.hidden, net.layers)
        yield LinearLayer("out_proj", self.hidden, net.value_width // tp, net.layers)

    def _mlps(self, tp: int) -> Iterator[LinearLayer]:
        yield from self._mlp("", self.intermediate // tp, self.dense_layers, "dense")
        moe = self.moe
        if moe is None:
            return
        if moe.shared_intermediate:
            yield from self._mlp("shared_", moe.shared_intermediate // tp, moe.layers, "shared")
        count = moe.layers * moe.experts
        yield from self._mlp("expert_", moe.intermediate // tp, count, "expert")

    def _mlp(self, prefix: str, width: int, count: int, kind: Kind) -> Iterator[LinearLayer]:
        bias = self.mlp_bias and kind == "dense"
        routed = self.moe if kind == "expert" else None
        experts, active = (routed.experts, routed.active) if routed else (0, 0)
        for name, n, k in (("gate_up", 2 * width, self.hidden), ("down", self.hidden, width)):
            yield LinearLayer(prefix + name, n, k, count, kind, bias, experts, active)

    def _tp_complaint(self, tp: int) -> str:
        """What forbids `tp`, with both values; empty if nothing does."""
        if tp < 1:
            return f"tp={tp} is not a positive number of GPUs for the layers"
        for key, size in self._divided():
            if size % tp:
                return f"tp={tp} does not divide {key}={size}"
        small, large = sorted((tp, self.kv_heads))
        if large % small:
            relation = "does not divide" if tp < self.kv_heads else "is not a multiple of"
            return f"tp={tp} {relation} num_key_value_heads={self.kv_heads}"
        if self.moe and tp > self.moe.experts:
            return f"tp={tp} is larger than num_experts={self.moe.experts}"
        return ""

    def _divided(self) -> Iterator[tuple[str, int]]:
        """Name and value of every size that the tensor-parallel size has to divide."""
        yield "num_attention_heads", self.heads
        if self.delta_net:
            yield "linear_num_key_heads", self.delta_net.key_heads
            yield "linear_num_value_heads", self.delta_net.value_heads
        if self.dense_layers:
            yield "intermediate_size", self.intermediate
        if self.moe:
            yield "the experts' intermediate size", self.moe.intermediate
            yield "shared_expert_intermediate_size", self.moe.shared_intermediate
