"""Pruning to the patterns: magnitude, Wanda and SparseGPT, one decoder block at a time."""

from __future__ import annotations

from slidesparse.prune.blocks import advance, linears_in, prune_block
from slidesparse.prune.inputs import BlockInputs, blocks_of, first_inputs, run_block
from slidesparse.prune.methods import prune_weight
from slidesparse.prune.model import linears_of, prune_head, prune_model
from slidesparse.prune.report import LayerReport
from slidesparse.prune.statistics import InputStatistics

__all__ = [
    "BlockInputs",
    "InputStatistics",
    "LayerReport",
    "advance",
    "blocks_of",
    "first_inputs",
    "linears_in",
    "linears_of",
    "prune_block",
    "prune_head",
    "prune_model",
    "prune_weight",
    "run_block",
]
