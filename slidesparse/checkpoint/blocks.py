"""Where the pruned weights of a unit come from if they are not streamed: from blocks that ran."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from slidesparse.checkpoint.formats import WEIGHT
from slidesparse.checkpoint.layout import REST, Unit, transformed
from slidesparse.checkpoint.reader import CheckpointReader
from slidesparse.checkpoint.weights import Job
from slidesparse.errors import CheckpointError
from slidesparse.prune.blocks import advance, prune_block, prune_plainly
from slidesparse.prune.inputs import BlockInputs
from slidesparse.prune.model import PREFIX, prune_head
from slidesparse.prune.report import Report
from slidesparse.prune.stream import StreamedModel
from slidesparse.recipe import HEAD


class Source(Protocol):
    """Gives the parameters of a unit that were changed in memory, units in their order."""

    def pruned(self, unit: Unit, report: Report) -> Mapping[str, torch.Tensor]:
        """Parameters by name, pruned; those that are missing are streamed from the checkpoint."""

    def passed(self, unit: Unit, shard: Path) -> None:
        """Take note of a unit that an earlier start finished."""


class Streamed:
    """Every weight is read, pruned by magnitude and written in pieces; no model is built."""

    def pruned(self, unit: Unit, report: Report) -> Mapping[str, torch.Tensor]:
        """Nothing is changed in memory."""
        return {}

    def passed(self, unit: Unit, shard: Path) -> None:
        """No unit depends on another."""


class Blocks:
    """Decoder blocks are loaded one at a time, run on calibration text if there is some, pruned.

    Each block is calibrated on the outputs of the blocks before it as they were converted, pruned
    and, if the recipe has a dtype, quantised. After a restart these come from the finished shards,
    so that the outcome is the same.

    Args:
        job: what to do.
        units: of the checkpoint.
        tokens: [S, L] int64, or None for magnitude.
        permute: spread strong and weak channels first.

    Raises:
        CheckpointError: the blocks of the model are not those of the checkpoint.
        ModelError: transformers cannot build the model.
    """

    def __init__(
        self, job: Job, units: tuple[Unit, ...], tokens: torch.Tensor | None, permute: bool
    ) -> None:
        """Build the model without its weights."""
        self._job, self._tokens, self._permute = job, tokens, permute
        self._model = StreamedModel(job.reader.path, job.device, source=job.reader)
        self._inputs: BlockInputs | None = None
        expected = [f"{PREFIX}.{index}" for index in range(self._model.blocks)]
        found = [unit.name for unit in units if unit.name != REST]
        if found != expected:
            odd = min(set(found) ^ set(expected))
            raise CheckpointError(
                f"{odd} is not in both the checkpoint and the model of its config.json; use the "
                "magnitude method without --permute"
            )

    def pruned(self, unit: Unit, report: Report) -> Mapping[str, torch.Tensor]:
        """Load, prune and run a block; see Source."""
        if unit.name == REST:
            return self._head(report)
        prefix, block = self._model.load_block(self._index(unit))
        recipe, inputs = self._job.recipe, self._current()
        if inputs is None:
            prune_plainly(block, prefix, recipe, permute=self._permute, report=report)
        else:
            self._inputs = prune_block(
                block,
                prefix,
                inputs,
                recipe,
                quantise=recipe.dtype is not None,
                permute=self._permute,
                report=report,
            )
        made = self._changed(unit, prefix, block)
        self._model.release(block)
        return made

    def passed(self, unit: Unit, shard: Path) -> None:
        """Run a converted block on what the one before it gives; see Source."""
        inputs = self._current()
        if unit.name == REST or inputs is None:
            return
        recipe = self._job.recipe
        prefix, block = self._model.load_block(self._index(unit), CheckpointReader.of_file(shard))
        self._inputs = advance(
            block,
            prefix,
            inputs,
            recipe,
            quantise=recipe.dtype is not None,
            rounded_weights=True,
        )
        self._model.release(block)

    def _current(self) -> BlockInputs | None:
        """The inputs of the next block; the first time, those of the first one."""
        if self._inputs is None and self._tokens is not None:
            store = _store(self._tokens, self._model)
            self._inputs = self._model.first_inputs(self._tokens, store)
            self._tokens = None
        return self._inputs

    def _changed(self, unit: Unit, prefix: str, block: nn.Module) -> dict[str, torch.Tensor]:
        chosen = {linear.name for linear in unit.linears if transformed(linear, self._job.recipe)}
        made = {}
        for name, module in block.named_modules(prefix=prefix):
            # A permutation moves rows of linears that are kept, and their biases, as well.
            if isinstance(module, nn.Linear) and (name in chosen or self._permute):
                for part, parameter in module.named_parameters():
                    made[f"{name}.{part}"] = parameter.data
        missing = sorted(chosen - {name.removesuffix(WEIGHT) for name in made})
        if missing:
            raise CheckpointError(
                f"{missing[0]} is no linear in transformers' model, which therefore cannot be "
                "calibrated; use the magnitude method without --permute, or keep it"
            )
        return made

    def _head(self, report: Report) -> dict[str, torch.Tensor]:
        if self._job.recipe.pattern_of(HEAD).dense:
            return {}
        head = self._model.load_head()
        prune_head(self._model.model, self._current(), self._job.recipe, report)
        weight = head.get_parameter("weight").data
        self._model.release(head)
        return {HEAD + WEIGHT: weight}

    def _index(self, unit: Unit) -> int:
        return int(unit.name.rpartition(".")[2])


def _store(tokens: torch.Tensor, model: StreamedModel) -> str | None:
    """Where activations are kept: on the GPU if inputs, outputs and work leave room, or the CPU."""
    if model.device.type != "cuda":
        return None
    needed = tokens.numel() * int(model.model.config.hidden_size) * model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(model.device)
    return None if 4 * needed < free else "cpu"
