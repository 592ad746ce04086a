"""What is loaded under one vLLM configuration: options, layers taken, the line at start."""

from __future__ import annotations

import json
import logging
import os
import weakref
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from slidesparse import __version__
from slidesparse.cache_store import ENVIRONMENT
from slidesparse.checkpoint.config import BLOCK, provenance
from slidesparse.errors import CheckpointError, UsageError
from slidesparse.layers.planning import forget
from slidesparse.pattern import DENSE, Pattern
from slidesparse.vllm import compat
from slidesparse.vllm.graph_pass import FusionPass, Ledger
from slidesparse.vllm.options import Options, parse_options
from slidesparse.vllm.taken import LeftToVllm, Packed, Taken, bytes_of, decide, pack

log = logging.getLogger("vllm.slidesparse")  # Where vLLM shows it like its own lines.

SUMMARY_M = 4096
"""Tokens of the step whose GEMMs and gain the summary names."""

MOST_EXTRA = 0.1
"""Of a GPU's memory: what further forms of weights may take in all. What a model keeps beyond its
weights is missing from the KV cache."""

_ENVIRONMENT = os.environ.get(ENVIRONMENT)
"""Where tuning results were before any option said something else."""


@dataclass(frozen=True)
class Layer:
    """One layer that vLLM made for us.

    Args:
        place: in the ledger.
        dtype: of the model's activations.
        named: patterns that the checkpoint says its weights have, where GPUs share a layer and may
            cut them; none otherwise, or if it says nothing.
    """

    place: int
    dtype: torch.dtype
    named: frozenset[Pattern]


@dataclass
class Session:
    """All layers of the models that share a compilation: a draft model too.

    Args:
        options: of the plug-in.
    """

    options: Options
    ledger: Ledger | None = None
    """What compiled graphs depend on; None before the first layer, or if they cannot be made to."""
    made: int = 0
    waiting: int = 0
    """Layers that were made and whose weights are not there yet."""
    taken: list[Taken] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    """How many layers stay with vLLM, by reason."""
    cut: int = 0
    """Layers that lost the pattern of their checkpoint: a shard of K begins inside a block."""
    extra: int = 0
    """Bytes of weights beyond those that vLLM would keep."""

    def open_layer(self, config: Any) -> Layer:
        """Note a layer that was made under a configuration."""
        if not self.made:
            self.ledger = _ledger(config)
        self.made += 1
        self.waiting += 1
        place = -1 if self.ledger is None else self.ledger.open()
        dtype = getattr(config.model_config, "dtype", torch.bfloat16)
        named = frozenset[Pattern]()
        if compat.shards(config) > 1:
            named = named_patterns(json.dumps(compat.model_block(config, BLOCK), default=str))
        return Layer(place, dtype, named)

    def decide(
        self,
        layer: Layer,
        q: torch.Tensor,
        scales: tuple[torch.Tensor, torch.Tensor | None],
        out: torch.dtype,
        bias: bool,
        whole_k: int,
    ) -> tuple[Taken, Packed] | None:
        """Take over a layer whose weight is loaded; None leaves it to vLLM, whatever goes wrong.

        Args:
            layer: that `open_layer` gave.
            q: [N, K] FP8 or INT8.
            scales: of the weight, and a static one of the activations or None.
            out: dtype of the result.
            bias: whether one is added.
            whole_k: K before tensor parallelism shares it.
        """
        try:
            if self.ledger is None:
                raise LeftToVllm("graphs that were compiled earlier could be run with it")
            static = scales[1] is not None
            made = decide(q, out, bias, static, self.options, self._room(q.device))
            packed = pack(made, q, *scales)
        except LeftToVllm as reason:
            self.leave(layer, str(reason))
            return None
        except Exception as error:  # A layer of ours must never stop a model from being served.
            log.warning("a linear layer stays with vLLM: %s: %s", type(error).__name__, error)
            self.leave(layer, type(error).__name__)
            return None
        self.taken.append(made)
        self.extra += bytes_of(made.plan) - q.numel()
        self.cut += is_cut(made, q.shape[1], whole_k, layer)
        self._close(layer, f"{made} bias={bias}")
        return made, packed

    def leave(self, layer: Layer, reason: str) -> None:
        """Note a layer that stays with vLLM."""
        self.left[reason] += 1
        self._close(layer, "vLLM")

    def _close(self, layer: Layer, what: str) -> None:
        if self.ledger is not None:
            self.ledger.decide(layer.place, what)
        self.waiting -= 1
        if self.waiting == 0:
            log.info("%s", self.summary())

    def _room(self, device: torch.device) -> int:
        """Bytes that further forms of a layer's weight may take."""
        if device.type != "cuda":
            return 2**62
        free, total = torch.cuda.mem_get_info(device)
        return max(0, min(int(MOST_EXTRA * total) - self.extra, free // 4))

    def summary(self) -> str:
        """One line: layers taken, patterns, GEMMs, what is expected, what was left and why."""
        total = len(self.taken) + self.left.total()
        parts = [f"slidesparse {__version__}: {len(self.taken)} of {total} W8A8 linears taken"]
        if self.taken:
            patterns = Counter(str(taken.plan.pattern) for taken in self.taken)
            backends = Counter(taken.plan.at(SUMMARY_M).candidate.backend for taken in self.taken)
            parts += [_counted(patterns), f"GEMMs at M={SUMMARY_M} {_counted(backends)}"]
            parts.append(self._gain())
        if self.extra >= 2**27:
            parts.append(f"{self.extra / 2**30:.1f} GiB of weights more than in vLLM")
        if self.cut:
            parts.append(
                f"{self.cut} lost the checkpoint's pattern: tensor parallelism cuts their K inside "
                "a block"
            )
        if self.left:
            parts.append(f"left to vLLM: {_counted(self.left)}")
        if self.left["no tuning result"]:
            parts.append("run slidesparse search and tune for this model on this GPU")
        return "; ".join(parts)

    def _gain(self) -> str:
        times = [taken.times(SUMMARY_M) for taken in self.taken]
        known = [time for time in times if time is not None]
        if not known:
            return f"gain unknown: M={SUMMARY_M} was not measured"
        ours, dense = (sum(column) for column in zip(*known, strict=True))
        some = "" if len(known) == len(times) else f" for {len(known)} of them"
        return f"GEMMs expected {dense / ours:.2f}x as fast as the best dense ones{some}"


_sessions: list[tuple[weakref.ref[Any], Session]] = []
"""Of the compilations that are alive."""


def session_for(config: Any) -> Session:
    """The session of a configuration; a new one reads its options.

    Configurations of one compilation share it: vLLM copies a configuration for a draft model or
    for the language model of a multimodal one, and not the configuration of its compilation.
    Options that cannot be read switch the plug-in off, with one warning.
    """
    compilation = config.compilation_config
    _sessions[:] = [(ref, each) for ref, each in _sessions if ref() is not None]
    found = next((each for ref, each in _sessions if ref() is compilation), None)
    if found is not None:
        return found
    try:
        options = parse_options(config.additional_config)
    except UsageError as error:
        log.warning("slidesparse is off: %s", error)
        options = Options(off=True)
    _look_for_results(options)
    made = Session(options)
    _sessions.append((weakref.ref(compilation), made))
    return made


def _ledger(config: Any) -> Ledger | None:
    try:
        ours: FusionPass = compat.custom_pass(config, FusionPass)
    except Exception as error:
        log.warning("slidesparse takes no layer: %s: %s", type(error).__name__, error)
        return None
    return ours.ledger


def _look_for_results(options: Options) -> None:
    """Have every reader of tuning results look there, in processes that vLLM starts too."""
    wanted = _ENVIRONMENT if options.cache_dir is None else str(options.cache_dir)
    if wanted is None:
        os.environ.pop(ENVIRONMENT, None)
    else:
        os.environ[ENVIRONMENT] = wanted
    forget()


def refusal(config: Any) -> str:
    """Why no layer of a model is taken over, or ""."""
    if config is None:
        return "there is no configuration of a model"
    if session_for(config).options.off:
        return "slidesparse is switched off"
    if compat.batch_invariant():
        return "results that do not depend on the batch were asked for, and our plans do"
    if compat.wants_other_backend(config):
        return "another linear backend was asked for"
    if compat.offloads(config):
        return "weights are kept on the host"
    if getattr(config, "lora_config", None) is not None:
        return "LoRA adapters run beside vLLM's own linears"
    quantization = getattr(getattr(config, "model_config", None), "quantization", None)
    if quantization != "compressed-tensors":
        return f"slidesparse takes compressed-tensors, not {quantization}"
    return ""


def is_cut(taken: Taken, k: int, whole_k: int, layer: Layer) -> bool:
    """Whether sharing K took a layer's pattern away: a shard begins inside a block of 2N."""
    if k == whole_k or taken.found in layer.named:
        return False
    return any(k % pattern.block for pattern in layer.named)


@lru_cache(maxsize=8)
def named_patterns(block: str) -> frozenset[Pattern]:
    """The patterns of a converted checkpoint; none for one that was not, or cannot be read.

    Args:
        block: ours of its config.json, as JSON; every layer of a model asks with the same.
    """
    try:
        found = provenance({BLOCK: json.loads(block)})
    except CheckpointError as error:
        log.warning("%s", error)
        return frozenset()
    if found is None:
        return frozenset()
    return frozenset({found.pattern, *found.layers.values()}) - {DENSE}


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
