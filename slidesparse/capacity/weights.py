"""Bytes of the weights that one GPU holds, from the sizes of the model."""

from __future__ import annotations

from collections.abc import Iterator

from slidesparse.candidate import Provenance
from slidesparse.capacity.figure import Part
from slidesparse.capacity.settings import Quant, Settings
from slidesparse.models import LinearLayer, ModelSpec
from slidesparse.pattern import Pattern

FLOAT = 2
"""Bytes of what is never quantised: BF16, or FP16 where the GPU has no BF16."""

VOCAB_PADDING = 64
"""vLLM pads the whole vocabulary to a multiple of it (DEFAULT_VOCAB_PADDING_SIZE)."""


def total_parameters(spec: ModelSpec) -> int:
    """Every parameter of the whole model, as its card counts them: biases and norms included."""
    linears = spec.linears()
    biases = sum(layer.n * layer.count for layer in linears if layer.bias)
    heads = spec.vocab * spec.hidden * (1 if spec.tied else 2)
    return spec.parameters + biases + heads + _small(spec, 1)


def weight_parts(settings: Settings) -> tuple[Part, ...]:
    """The weights of one rank as vLLM and our plug-in hold them.

    Linears are stored as the quantisation says; embedding, output head, routers and norms stay in
    16 bits. With a pattern each dense linear is held in its sparse form, 0.625 bytes for each of
    its N x K' slid weights (values 0.5, metadata 0.125). Experts stay dense: SlideSparse leaves
    them to vLLM.
    """
    return tuple(part for part in _parts(settings) if part.bytes)


def second_forms(settings: Settings) -> int:
    """Bytes of the dense forms beside the sparse ones.

    `memory_format=fastest`, the default of the plug-in, keeps both forms of a weight where some
    numbers of tokens run faster dense, as long as all second forms take a tenth of the GPU's memory
    at most; what a machine keeps follows from its tuning cache. This is the most that it can be.
    """
    if settings.pattern.dense:
        return 0
    layers = settings.spec.linears(settings.tp)
    return sum(each.parameters for each in layers if is_sparse(each))


def is_sparse(layer: LinearLayer) -> bool:
    """Whether SlideSparse runs a linear at all: experts stay with vLLM's fused kernels."""
    return layer.kind != "expert"


def sparse_bytes(n: int, k: int, pattern: Pattern) -> int:
    """Bytes of a weight [n, k] in its sparse form, without its scales: 5/8 of n K'.

    cuSPARSELt's compressed size and our packed blocks: half of the values, and a quarter as many
    bits again of metadata for 8-bit values.
    """
    return n * pattern.expanded_k(k) * 5 // 8


def linear_bytes(layer: LinearLayer, quant: Quant, pattern: Pattern) -> int:
    """Bytes of one weight of a linear with its scales and bias."""
    bias = FLOAT * layer.n if layer.bias else 0
    if pattern.dense or not is_sparse(layer):
        return quant.weight_bytes(layer.n, layer.k) + bias
    return sparse_bytes(layer.n, layer.k, pattern) + 4 * layer.n + bias


def padded_vocab(spec: ModelSpec, tp: int) -> int:
    """Rows of the embedding that one rank holds: the padded vocabulary, divided by the ranks."""
    padded = -(-spec.vocab // VOCAB_PADDING) * VOCAB_PADDING
    return -(-padded // tp)


def _parts(settings: Settings) -> Iterator[Part]:
    spec, tp, quant = settings.spec, settings.tp, settings.quant
    for layer in spec.linears(tp):
        sparse = not settings.pattern.dense and is_sparse(layer)
        form = f"{quant}, {settings.pattern} packed" if sparse else _spelled(quant)
        taken = layer.count * linear_bytes(layer, quant, settings.pattern)
        how = f"{layer.count:,} x [{layer.n:,}, {layer.k:,}], {form}"
        yield Part(layer.name, taken, Provenance.DERIVED, how)
    rows = padded_vocab(spec, tp)
    table = FLOAT * rows * spec.hidden
    how = f"[{rows:,}, {spec.hidden:,}], 16 bits"
    yield Part("embedding", table, Provenance.DERIVED, how)
    if spec.tied:
        yield Part("output head", 0, Provenance.DERIVED, "is the embedding")
    else:
        yield Part("output head", table, Provenance.DERIVED, how)
    yield Part(
        "norms, routers, rotary table",
        FLOAT * (_small(spec, tp) + spec.longest * spec.head_dim),
        Provenance.DERIVED,
        "16 bits",
    )


def _small(spec: ModelSpec, tp: int) -> int:
    """Parameters of norms, routers, their gates, and of a DeltaNet besides its linears.

    From transformers' modelling files, which a test compares with.
    """
    count = (spec.norms * spec.layers + 1) * spec.hidden
    if spec.qk_norm:
        count += 2 * spec.head_dim * spec.attention_layers
    if spec.sub_norms:
        count += spec.layers * (spec.heads * spec.head_dim + spec.intermediate)
    if spec.moe:
        gate = spec.hidden if spec.moe.shared_intermediate else 0
        count += spec.moe.layers * (spec.moe.experts * spec.hidden + gate)
    net = spec.delta_net
    if net:
        convolved = (2 * net.key_width + net.value_width) * net.conv_kernel
        each = (convolved + 2 * net.value_heads) // tp + net.value_head_dim
        count += net.layers * each
    return count


def _spelled(quant: Quant) -> str:
    return "16 bits" if quant is Quant.NONE else str(quant)
