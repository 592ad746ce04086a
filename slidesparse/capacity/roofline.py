"""What bounds each layer of a prefill step and of a decode step: tensor cores, memory or NVLink.

A layer takes at least the longest of three times: its FLOP over the dense tensor-core rate, the
bytes that it cannot avoid over the memory's bandwidth, and what the ranks exchange over NVLink
(roofline model, Williams, Waterman and Patterson 2009). A GEMM that the tuning cache of this GPU
knows takes what was measured. Power limits, launches and what vLLM does between layers are not
modelled, so a sum of bounds is a ceiling that no engine reaches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from slidesparse.candidate import Provenance
from slidesparse.capacity.figure import weakest
from slidesparse.capacity.gemm_times import GemmTimes
from slidesparse.capacity.kv_cache import state_bytes
from slidesparse.capacity.settings import Quant, Settings
from slidesparse.capacity.weights import FLOAT, is_sparse, linear_bytes, padded_vocab
from slidesparse.models import LinearLayer
from slidesparse.pattern import DENSE
from slidesparse.problem import DType

TENSOR = "tensor cores"
MEMORY = "memory bandwidth"
LINK = "NVLink"
UNKNOWN_RATE = "memory, or tensor"
"""Where nobody publishes the tensor-core rate of a GPU: no more can be said than the memory's."""

DTYPES = {Quant.FP8: DType.FP8, Quant.INT8: DType.INT8}


@dataclass(frozen=True)
class LayerTime:
    """One kind of layer in one step.

    Args:
        name: "qkv", "attention", "output head".
        count: how often the model has it.
        flops: of one, on one rank.
        bytes: that one has to move.
        us: microseconds of one: measured, or the longest of its bounds.
        tensor_us: FLOP over the tensor-core rate; None where the rate is not published.
        memory_us: bytes over the bandwidth.
        bound: the resource with the longest bound.
        provenance: of `us`.
        how: where the time is from.
    """

    name: str
    count: int
    flops: float
    bytes: float
    us: float
    tensor_us: float | None
    memory_us: float
    bound: str
    provenance: Provenance
    how: str

    @property
    def total_us(self) -> float:
        """Of all of them."""
        return self.us * self.count


@dataclass(frozen=True)
class StepTime:
    """A step of the model.

    Args:
        stage: "prefill" or "decode".
        tokens: that it computes.
        context: tokens that each of its sequences attends to.
        layers: in the order of the model.
    """

    stage: str
    tokens: int
    context: int
    layers: tuple[LayerTime, ...]

    @property
    def us(self) -> float:
        """Microseconds of the step."""
        return sum(layer.total_us for layer in self.layers)

    @property
    def tokens_per_s(self) -> float:
        """Tokens that it gets through in a second: of prompts, or generated."""
        return self.tokens / self.us * 1e6

    @property
    def provenance(self) -> Provenance:
        """Of the whole."""
        return weakest(layer.provenance for layer in self.layers)

    @property
    def bound(self) -> str:
        """The resource that most of the time is bound by."""
        times: dict[str, float] = {}
        for layer in self.layers:
            times[layer.bound] = times.get(layer.bound, 0.0) + layer.total_us
        return max(times, key=lambda name: times[name])


def prefill(settings: Settings, times: GemmTimes | None = None) -> StepTime:
    """A step of one prompt's tokens, in the middle of a prompt of the full context.

    Args:
        settings: what is served.
        times: measured GEMMs of this GPU, None for datasheet rates alone.
    """
    tokens = min(settings.batched_tokens, settings.context)
    before = (settings.context - tokens) // 2
    return _step("prefill", settings, tokens, 1, before, times)


def decode(settings: Settings, times: GemmTimes | None = None) -> StepTime:
    """A step of one token for each of `batch` sequences that hold the full context."""
    batch = settings.batch
    return _step("decode", settings, batch, batch, settings.context - 1, times)


def keys_seen(before: int, new: int, window: int) -> int:
    """Keys that `new` tokens attend to, summed: the i-th sees min(before + i, window) of them."""
    growing = min(max(window - before, 0), new)
    return growing * before + growing * (growing + 1) // 2 + (new - growing) * window


def _step(
    stage: str,
    settings: Settings,
    tokens: int,
    sequences: int,
    before: int,
    times: GemmTimes | None,
) -> StepTime:
    step = _Step(settings, tokens, sequences, before, times)
    layers = tuple(layer for layer in step.layers() if layer.count)
    return StepTime(stage, tokens, settings.context, layers)


@dataclass(frozen=True)
class _Step:
    """The layers of one step.

    Args:
        settings: what is served.
        tokens: of the step.
        sequences: that they belong to.
        before: tokens of each sequence that were computed before the step.
        times: measured GEMMs.
    """

    settings: Settings
    tokens: int
    sequences: int
    before: int
    times: GemmTimes | None

    def layers(self) -> Iterator[LayerTime]:
        settings = self.settings
        spec = settings.spec
        for linear in spec.linears(settings.tp):
            yield self._linear(linear)
        yield from self._attention()
        yield self._between()
        yield self._head()
        if settings.tp > 1 and settings.gpu.nvlink_gbs:
            yield self._all_reduce()

    def _linear(self, linear: LinearLayer) -> LayerTime:
        settings, tokens = self.settings, self.tokens
        quant, pattern = settings.quant, settings.pattern
        sparse = not pattern.dense and is_sparse(linear)
        rows = inputs = tokens
        count, weights = linear.count, 1.0
        if linear.experts:
            # One grouped GEMM per layer; of E experts a token picks A, so tokens leave
            # E (1 - A/E)^tokens of them unused on average.
            rows, count = tokens * linear.active, linear.count // linear.experts
            unused = (1 - linear.active / linear.experts) ** tokens
            weights = linear.experts * (1 - unused)
            # A token is one row for all its experts until each has made another of it.
            inputs = rows if linear.name.endswith("down") else tokens
        flops = 2.0 * rows * linear.n * linear.k
        k_read = pattern.expanded_k(linear.k) if sparse else linear.k
        read = (1 if quant.eight_bit else FLOAT) * inputs * k_read
        moved = weights * linear_bytes(linear, quant, pattern) + read + FLOAT * rows * linear.n
        speedup = float(pattern.bound) if sparse else 1.0
        rate = self._rate(quant)
        tensor = flops / (rate * 1e6 * speedup) if rate else None
        layer = self._bounded(linear.name, count, flops, moved, tensor)
        return self._measured(layer, linear, sparse)

    def _measured(self, layer: LayerTime, linear: LinearLayer, sparse: bool) -> LayerTime:
        """The same with its measured time, where there is one."""
        dtype = DTYPES.get(self.settings.quant)
        if self.times is None or dtype is None or linear.experts:
            return layer
        pattern = self.settings.pattern if sparse else DENSE
        found = self.times.find(self.tokens, linear.n, linear.k, dtype, pattern)
        if found is None:
            return layer
        return replace(layer, us=found.us, provenance=found.provenance, how=found.how)

    def _attention(self) -> Iterator[LayerTime]:
        """Softmax attention: 2 GEMMs of heads x tokens x keys x head_dim; keys and values read.

        Causal: the i-th of n new tokens sees `before + i` keys, or the last `window` of them. Read
        are all keys that any of them sees.
        """
        settings, spec = self.settings, self.settings.spec
        new = self.tokens // self.sequences
        held = self.before + new
        heads = spec.heads // settings.tp
        kept = 2 * max(1, spec.kv_heads // settings.tp) * spec.head_dim * settings.kv_dtype.bytes
        plain = spec.attention_layers - spec.window_layers
        for name, count, window in (
            ("attention", plain, held),
            ("attention, window", spec.window_layers, spec.window),
        ):
            seen = keys_seen(self.before, new, window)
            flops = 4.0 * self.sequences * seen * heads * spec.head_dim
            own = 2 * FLOAT * self.tokens * heads * spec.head_dim
            moved = float(self.sequences * min(held, window + new - 1) * kept + own)
            rate = self._rate(Quant.NONE)
            yield self._bounded(name, count, flops, moved, flops / (rate * 1e6) if rate else None)
        net = spec.delta_net
        if net is not None:
            state = 2.0 * self.sequences * state_bytes(spec, settings.tp)
            width = (net.key_width * 2 + net.value_width) // settings.tp
            moved = state + 2 * FLOAT * self.tokens * width
            matrix = net.value_heads // settings.tp * net.value_head_dim * net.key_head_dim
            flops = 6.0 * self.tokens * matrix
            rate = self._rate(Quant.NONE)
            tensor = flops / (rate * 1e6) if rate else None
            yield self._bounded("delta rule", net.layers, flops, moved, tensor)

    def _between(self) -> LayerTime:
        """Norms, activation and quantisation: what they have to read and write."""
        settings, spec = self.settings, self.settings.spec
        one = 1 if settings.quant.eight_bit else FLOAT
        width = spec.intermediate if spec.dense_layers else 0
        if spec.moe and not spec.dense_layers:
            width = spec.moe.active * spec.moe.intermediate + spec.moe.shared_intermediate
        width //= settings.tp
        # Twice a layer: read the sum, read and write the residual stream, write the normed rows.
        norms = 2 * (3 * FLOAT + one) * spec.hidden
        moved = float(self.tokens * (norms + (2 * FLOAT + one) * width))
        layer = self._bounded("norms, activation", spec.layers, 0.0, moved, None)
        return replace(layer, provenance=Provenance.ESTIMATED, how="bytes of fused kernels")

    def _head(self) -> LayerTime:
        """The output head: one row for each sequence."""
        spec = self.settings.spec
        rows, n = self.sequences, padded_vocab(spec, self.settings.tp)
        flops = 2.0 * rows * n * spec.hidden
        moved = float(FLOAT * (n * spec.hidden + rows * (n + spec.hidden)))
        rate = self._rate(Quant.NONE)
        tensor = flops / (rate * 1e6) if rate else None
        return self._bounded("output head", 1, flops, moved, tensor)

    def _all_reduce(self) -> LayerTime:
        """Two ring all-reduces a layer: 2 (tp - 1) / tp of the hidden states each, one way."""
        settings, spec = self.settings, self.settings.spec
        moved = FLOAT * self.tokens * spec.hidden * 2 * (settings.tp - 1) / settings.tp
        us = moved / (settings.gpu.nvlink_gbs / 2 * 1e3)
        how = f"{settings.gpu.nvlink_gbs / 2:,.0f} GB/s one way, datasheet"
        count = 2 * spec.layers
        return LayerTime(
            "all-reduce", count, 0.0, moved, us, None, 0.0, LINK, Provenance.DERIVED, how
        )

    def _bounded(
        self, name: str, count: int, flops: float, moved: float, tensor: float | None
    ) -> LayerTime:
        gpu = self.settings.gpu
        memory = moved / (gpu.bandwidth_gbs * 1e3)
        us = max(memory, tensor or 0.0)
        bound = TENSOR if tensor is not None and tensor >= memory else MEMORY
        if tensor is None and flops:
            bound = UNKNOWN_RATE
        how = "datasheet rates"
        return LayerTime(
            name, count, flops, moved, us, tensor, memory, bound, Provenance.DERIVED, how
        )

    def _rate(self, quant: Quant) -> float | None:
        """TFLOP/s of the products: of the weights' dtype where the GPU has it, of 16 bits else."""
        tflops = self.settings.gpu.tflops
        if quant.eight_bit and str(quant) in tflops:
            return tflops[str(quant)]
        return tflops.get("bf16", tflops.get("fp16"))
