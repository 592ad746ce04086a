"""One model that vLLM loads: the options it was given, the layers taken, the line at start."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from slidesparse import __version__
from slidesparse.cache_store import ENVIRONMENT
from slidesparse.checkpoint.config import BLOCK, provenance
from slidesparse.errors import CheckpointError, UsageError
from slidesparse.layers.planning import forget
from slidesparse.pattern import Pattern
from slidesparse.vllm import compat, fusion
from slidesparse.vllm.options import Options, parse_options
from slidesparse.vllm.taken import LeftToVllm, Taken, take

log = logging.getLogger("vllm.slidesparse")  # Where vLLM shows it like its own lines.

SUMMARY_M = 4096
"""Tokens of the step whose gain the summary names, or the nearest number that was measured."""

COMPILED = "slidesparse_plans"
"""In vLLM's additional_config: what compiled graphs hold of our plans."""


@dataclass
class Session:
    """A model that is being loaded.

    Args:
        config: vLLM's of the model.
        options: of the plug-in.
    """

    config: Any
    options: Options
    waiting: int = 0
    """Layers that were made and whose weights are not there yet."""
    taken: list[Taken] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    """How many layers stay with vLLM, by reason."""
    cut: int = 0
    """Layers whose pattern is none that the checkpoint names: a shard begins inside a block."""

    def open_layer(self) -> None:
        """Note a layer, and have its model's graphs go through our pass."""
        self.waiting += 1
        compat.add_pass(self.config, fusion.NAME, fusion.fuse, fusion.identity())

    def take(
        self,
        q: torch.Tensor,
        scale: torch.Tensor,
        x_scale: torch.Tensor | None,
        out: torch.dtype,
        bias: bool,
    ) -> Taken | None:
        """Take over a layer whose weight is loaded; None leaves it to vLLM, whatever goes wrong."""
        made = None
        try:
            made = take(q, scale, x_scale, out, bias, self.options)
            self.taken.append(made)
            self.cut += self._is_cut(made.plan.pattern)
        except LeftToVllm as reason:
            self.left[str(reason)] += 1
        except Exception as error:  # A layer of ours must never stop a model from being served.
            log.warning("a linear layer stays with vLLM: %s: %s", type(error).__name__, error)
            self.left[type(error).__name__] += 1
        self._close_layer()
        return made

    def _is_cut(self, found: Pattern) -> bool:
        """Whether tensor parallelism took a weight's pattern away."""
        named = named_patterns(self.config)
        return compat.shards(self.config) > 1 and bool(named) and found not in named

    def leave(self, reason: str) -> None:
        """Note a layer that cannot be taken over."""
        self.left[reason] += 1
        self._close_layer()

    def _close_layer(self) -> None:
        self.waiting -= 1
        if self.waiting:
            return
        compat.mark_compiled(self.config, COMPILED, self.digest())
        log.info("%s", self.summary())

    def digest(self) -> str:
        """Changes when a plan does: a compiled graph holds plans and the forms that they read."""
        plans = "\n".join(taken.plan.to_text() for taken in self.taken)
        return hashlib.sha256(f"{__version__}\n{plans}".encode()).hexdigest()[:16]

    def summary(self) -> str:
        """One line: layers taken, patterns, GEMMs, what is expected, what was left and why."""
        total = len(self.taken) + self.left.total()
        parts = [f"slidesparse {__version__}: {len(self.taken)} of {total} W8A8 linears taken"]
        if self.taken:
            patterns = Counter(str(taken.plan.pattern) for taken in self.taken)
            backends = Counter(taken.plan.at(SUMMARY_M).candidate.backend for taken in self.taken)
            parts += [_counted(patterns), f"GEMMs at M={SUMMARY_M} {_counted(backends)}"]
            parts.append(self._gain())
        if self.cut:
            parts.append(
                f"{self.cut} run dense: {compat.shards(self.config)}-way tensor parallelism cuts "
                "their K inside a block"
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


_open: Session | None = None
"""Of the model that was built last; vLLM builds one after the other, a draft model too."""


def session_for(config: Any) -> Session:
    """The session of a configuration; a new one reads its options.

    Options that cannot be read switch the plug-in off, with one warning.
    """
    global _open
    if _open is None or _open.config is not config:
        try:
            options = parse_options(config.additional_config)
        except UsageError as error:
            log.warning("slidesparse is off: %s", error)
            options = Options(off=True)
        if options.cache_dir is not None:
            # Every reader of tuning results looks there, in processes that vLLM starts too.
            os.environ[ENVIRONMENT] = str(options.cache_dir)
        forget()
        _open = Session(config, options)
    return _open


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
    if getattr(config, "lora_config", None) is not None:
        return "LoRA adapters run beside vLLM's own linears"
    quantization = getattr(getattr(config, "model_config", None), "quantization", None)
    if quantization != "compressed-tensors":
        return f"slidesparse takes compressed-tensors, not {quantization}"
    return ""


def named_patterns(config: Any) -> frozenset[Pattern]:
    """The patterns of a converted checkpoint; none for one that was not, or cannot be read."""
    try:
        found = provenance({BLOCK: compat.model_block(config, BLOCK)})
    except CheckpointError as error:
        log.warning("%s", error)
        return frozenset()
    if found is None:
        return frozenset()
    return frozenset({found.pattern, *found.layers.values()})


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
