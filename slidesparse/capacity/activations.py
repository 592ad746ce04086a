"""The peak of activations that vLLM 0.25.1 profiles before it sizes its KV cache.

vLLM runs one step of max_num_batched_tokens tokens in max_num_seqs sequences, without attention,
and then samples; the peak of what torch allocates meanwhile is kept free (gpu_worker.py,
determine_available_memory). Three moments can be the peak: compiling the model, which happens in
that step; the widest layer of the forward pass, with what torch.compile keeps alive around it; or
the sampler's copies of the logits. All are counted from the shapes here; how well that holds is
what `slidesparse plan --check` measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from slidesparse.candidate import Provenance
from slidesparse.capacity.figure import Part, total
from slidesparse.capacity.settings import Quant, Settings
from slidesparse.capacity.weights import FLOAT, is_sparse, padded_vocab
from slidesparse.models import Experts

V2_MOE = frozenset({"qwen2_moe"})
"""Families with experts that run in vLLM's model runner V2 (DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES);
other experts and hybrid models run in V1."""

LOGITS_V2 = FLOAT + 4
"""Bytes per logit when V2's dummy run samples: the head's output and a float32 copy; no top-k."""

LOGITS_V1 = FLOAT + 4 + 4 + 4
"""V1's samples with top-k and top-p: besides them the probabilities and the exponential noise."""

SEGMENT, UNSPLIT = 2 * 2**20, 2**20
"""torch's allocator takes large blocks in multiples of the first and gives all of one to a tensor
that leaves no more than the second (c10/cuda/CUDACachingAllocator, should_split)."""


@dataclass(frozen=True)
class Tensor:
    """A tensor that is alive at the peak.

    Args:
        name: what it is.
        bytes: that it takes.
    """

    name: str
    bytes: int


def runs_v2(settings: Settings) -> bool:
    """Whether vLLM 0.25.1 runs the model in its model runner V2: dense models, and few others."""
    spec = settings.spec
    if spec.delta_net is not None:
        return False
    return spec.moe is None or spec.architecture in V2_MOE


def activation_parts(settings: Settings) -> tuple[Part, ...]:
    """The tensors alive at the peak, largest first; their sum is the peak."""
    step = f"a step of {settings.batched_tokens:,} tokens"
    moments = [(f"at the peak of {step}", list(moment)) for moment in _moments(settings)]
    if not settings.eager:
        moments.append((f"while {step} is compiled", list(_compiling(settings))))
    how, peak = max(moments, key=lambda moment: _sum(moment[1]))
    largest_first = sorted(peak, key=lambda tensor: -tensor.bytes)
    return tuple(
        Part(tensor.name, tensor.bytes, Provenance.ESTIMATED, how)
        for tensor in largest_first
        if tensor.bytes
    )


def peak_activations(settings: Settings) -> int:
    """Bytes of the peak."""
    return total(activation_parts(settings))


def _moments(settings: Settings) -> Iterator[Iterable[Tensor]]:
    """The moments of a running step."""
    yield _attention(settings)
    if settings.spec.dense_layers:
        yield _mlp(settings)
    if settings.spec.moe:
        yield _experts(settings, settings.spec.moe)
    yield _sampler(settings)


def _compiling(settings: Settings) -> Iterator[Tensor]:
    """While Inductor times the kernel behind the embedding, on tensors that it makes for that.

    vLLM sets benchmark_combo_kernel (config/compilation.py), with which Inductor times every kernel
    of a piece on random tensors of its arguments' shapes (torch/_inductor/scheduler.py,
    speedup_by_combo_kernel). The first kernel looks tokens up, norms the rows and, where torch code
    does that (QuantFP8, not INT8's operator), quantises them: its arguments include a whole
    embedding. Peaks that vLLM reported on an H200 equal this sum to 50 kB: qwen2.5-7b and
    llama3.1-8b in FP8, qwen2.5-14b in INT8. A start that finds the compiled graphs on disk has no
    such moment.
    """
    spec, tokens = settings.spec, settings.batched_tokens
    table = FLOAT * padded_vocab(spec, settings.tp) * spec.hidden
    left = -table % SEGMENT
    yield Tensor("second embedding, to time kernels with", table + (left if left <= UNSPLIT else 0))
    yield Tensor("residual stream", FLOAT * tokens * spec.hidden)
    # An all-reduce parts the norm from the look-up, and so does our operator of norm and linear.
    if settings.tp == 1 and settings.pattern.dense:
        yield Tensor("normed hidden states", FLOAT * tokens * spec.hidden)
        if settings.quant is Quant.FP8:
            yield Tensor("quantised hidden states", tokens * (spec.hidden + 4))


def _attention(settings: Settings) -> Iterator[Tensor]:
    """Around an attention layer: qkv, rotated queries and keys, the output, the residual stream."""
    spec, tokens, tp = settings.spec, settings.batched_tokens, settings.tp
    widths = {layer.name: layer.n for layer in spec.linears(tp)}
    queries = spec.heads // tp * spec.head_dim
    keys = max(1, spec.kv_heads // tp) * spec.head_dim
    widest = max(widths.get("qkv", 0), widths.get("in_proj_qkvz", 0))
    yield Tensor("qkv projection", FLOAT * tokens * widest)
    yield Tensor("rotated queries and keys", FLOAT * tokens * (queries + keys))
    yield Tensor("attention output", FLOAT * tokens * queries)
    yield Tensor("residual stream", FLOAT * tokens * spec.hidden)


def _mlp(settings: Settings) -> Iterator[Tensor]:
    """In the MLP: gate_up's output, the activation, and what the compiled piece was given."""
    spec, tokens = settings.spec, settings.batched_tokens
    width = spec.intermediate // settings.tp
    yield Tensor("gate and up projection", FLOAT * tokens * 2 * width)
    yield Tensor("MLP activation", tokens * _input_bytes(settings, width))
    yield from _stream(settings)


def _experts(settings: Settings, moe: Experts) -> Iterator[Tensor]:
    """In the experts: two workspaces of every routed copy, and its quantised form.

    TritonExperts.workspace_shapes: [M, topk, max(I, K)] and [M, topk, max(2I, K)].
    """
    spec, tokens = settings.spec, settings.batched_tokens
    copies, width = tokens * moe.active, moe.intermediate // settings.tp
    yield Tensor("experts' workspace", FLOAT * copies * max(2 * width, spec.hidden))
    yield Tensor("experts' activations", FLOAT * copies * max(width, spec.hidden))
    if settings.quant.eight_bit:
        yield Tensor("experts' quantised inputs", copies * width + tokens * spec.hidden)
    shared = moe.shared_intermediate // settings.tp
    yield Tensor("shared expert", FLOAT * tokens * 3 * shared)
    yield Tensor("router", 4 * tokens * moe.experts)
    yield Tensor("experts' output", FLOAT * tokens * spec.hidden)
    yield from _stream(settings)


def _stream(settings: Settings) -> Iterator[Tensor]:
    """What lives through a layer: the residual stream, its normed copy, the attention's output."""
    spec, tokens = settings.spec, settings.batched_tokens
    yield Tensor("residual stream", FLOAT * tokens * spec.hidden)
    yield Tensor("normed hidden states", FLOAT * tokens * spec.hidden)
    queries = spec.heads // settings.tp * spec.head_dim
    yield Tensor("attention output", FLOAT * tokens * queries)


def _sampler(settings: Settings) -> Iterator[Tensor]:
    """While sampling: the hidden states of the step and the logits of every sequence."""
    spec, rows = settings.spec, settings.max_seqs
    each = LOGITS_V2 if runs_v2(settings) else LOGITS_V1
    yield Tensor("hidden states", FLOAT * settings.batched_tokens * spec.hidden)
    yield Tensor("logits and their copies", each * rows * spec.vocab)
    if settings.tp > 1:  # The ranks' shares are gathered.
        yield Tensor("gathered logits", FLOAT * rows * spec.vocab)


def _input_bytes(settings: Settings, width: int) -> int:
    """Bytes of one row that `down` reads: 16 bits, or quantised (and lifted) with its scale."""
    if not settings.quant.eight_bit:
        return FLOAT * width
    down = next(each for each in settings.spec.linears(settings.tp) if each.name == "down")
    pattern = settings.pattern
    lifted = pattern.expanded_k(width) if is_sparse(down) else width
    return lifted + 4


def _sum(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.bytes for tensor in tensors)
