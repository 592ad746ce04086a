"""The run behind `slidesparse allocate`: model, times, sensitivities, choice, measured losses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from slidesparse.accuracy.allocate import Allocation, Measured, Options, meet_limit, verdict
from slidesparse.accuracy.groups import Group, Grouping, group_linears
from slidesparse.accuracy.load import load_model, load_tokenizer
from slidesparse.accuracy.partial import PartialModel
from slidesparse.accuracy.sensitivity import Sensitivity, measure_sensitivity
from slidesparse.accuracy.sources import is_dataset, is_ids, read_text
from slidesparse.accuracy.speed import SpeedTable, forms_of, problems_of, read_speeds
from slidesparse.accuracy.text import (
    calibration_tokens,
    check_vocabulary,
    evaluation_windows,
    read_tokens,
)
from slidesparse.accuracy.trial import Trials
from slidesparse.bench.allocation.options import (
    AllocationOptions,
    check_target,
    reused,
    target_speedup,
)
from slidesparse.bench.allocation.record import AllocationRecord, GroupRow, OutcomeRow
from slidesparse.cache import TuningCache
from slidesparse.devices import Device
from slidesparse.errors import CalibrationError, UsageError
from slidesparse.pattern import DENSE
from slidesparse.problem import GemmProblem
from slidesparse.prune.model import linears_of
from slidesparse.recipe import Recipe
from slidesparse.search.backend import Effort
from slidesparse.search.driver import Found, Listener, Search, SearchOptions

Step = Callable[[str], None]
Report = Callable[[str, int], AbstractContextManager[Step]]
"""Opens a phase of so many steps; what it gives is called after each with what was done."""


class AllocationRun:
    """One run, from the model to the record.

    Args:
        options: what is asked for.
        device: that the model runs on and the times are of.
        cache: of its results.
        report: shows progress.
    """

    def __init__(
        self, options: AllocationOptions, device: Device, cache: TuningCache, report: Report
    ) -> None:
        """Note what there is; nothing runs."""
        self._options, self._device, self._cache = options, device, cache
        self._report = report
        self._seconds: dict[str, float] = {}

    def run(self) -> tuple[AllocationRecord, Recipe]:
        """Do everything.

        Returns:
            What goes into the result file, and the recipe.

        Raises:
            SlideSparseError: of the part that failed.
        """
        options = self._options
        for source in options.sources:
            if _is_text(source):
                read_text(Path(source))  # What cannot be read is found before the model is loaded.
        with self._timed("load"):
            model = load_model(options.model, self._precision(), str(self._device))
            linears = linears_of(model)
            grouping = group_linears(linears, Recipe(keep=options.keep))
        with self._timed("times"):
            speeds = self._speeds(grouping.groups)
            check_target(options.target, grouping.groups, options.patterns, speeds)
        calibration, probe, held_out = self._texts(model)
        trials = Trials(model, linears, calibration, held_out)
        with self._timed("sensitivity"):
            if options.reuse is None:
                found = self._sensitivity(model, linears, grouping.groups, calibration, probe)
            else:
                today = fmean(PartialModel(model).losses(probe))
                found = reused(options.reuse, options, grouping.groups, today)
        choices = Options(grouping.groups, options.patterns, speeds, found)
        with self._timed("measure"):
            outcomes, chosen = self._measured(choices, trials)
        record = self._record(grouping, choices, outcomes, chosen, held_out)
        return record, self._recipe(chosen.allocation)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._seconds[name] = round(time.monotonic() - start, 3)

    def _precision(self) -> torch.dtype | None:
        """The dtype to load the model in; None for the stored one."""
        if self._options.precision != "auto":
            found: torch.dtype = getattr(torch, self._options.precision)
            return found
        # A CPU is slow in all but float32.
        return None if self._device.is_gpu else torch.float32

    def _recipe(self, allocation: Allocation) -> Recipe:
        options = self._options
        return allocation.recipe(options.method, options.dtype, options.keep)

    def _speeds(self, groups: tuple[Group, ...]) -> SpeedTable:
        options = self._options
        shapes = list(dict.fromkeys(group.shape for group in groups))

        def read() -> SpeedTable:
            asked = (shapes, options.patterns, options.batches, options.dtype, options.model)
            return read_speeds(self._cache, *asked)

        if not options.search:
            return read()
        for form in forms_of(options.dtype):
            try:
                return read()
            except UsageError:
                self._search(problems_of(shapes, options.patterns, options.batches, form))
        return read()

    def _search(self, problems: tuple[GemmProblem, ...]) -> None:
        effort = Effort.NORMAL if self._device.is_gpu else Effort.QUICK
        search = Search(problems, [self._device], self._cache, SearchOptions(effort=effort))
        with self._report("GEMM times", len(search.problems)) as step:
            outcome = search.run(_Steps(step))
        if outcome.interrupted:
            raise KeyboardInterrupt
        self._cache.refresh()

    def _texts(self, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sequences for statistics [S, L], for sensitivities [P, L] and held-out windows [W, L]."""
        options = self._options
        held, seen = options.sources
        needed = any(is_dataset(source) or _is_text(source) for source in options.sources)
        tokenizer = load_tokenizer(options.model) if needed else None
        sequences = options.sequences if options.method.calibrated else 0
        drawn = calibration_tokens(
            seen, tokenizer, sequences + options.probe, options.length, options.seed
        )
        stream = read_tokens(held, tokenizer)
        windows = evaluation_windows(stream, options.length, None, options.windows)
        whole = [window.tokens for window in windows if len(window.tokens) == options.length]
        if not whole:
            raise CalibrationError(
                f"{stream.name} has {len(stream):,} tokens, fewer than one window of "
                f"{options.length:,}; lower --length"
            )
        held_out = torch.stack(whole)
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        for tokens in (drawn, held_out):
            check_vocabulary(tokens, int(embedding.weight.shape[0]))
        return drawn[:sequences], drawn[sequences:], held_out

    def _sensitivity(
        self,
        model: nn.Module,
        linears: dict[str, nn.Linear],
        groups: tuple[Group, ...],
        calibration: torch.Tensor,
        probe: torch.Tensor,
    ) -> Sensitivity:
        options = self._options
        asked = (groups, options.method, calibration, probe, options.patterns)
        with self._report("sensitivities", len(groups) * len(options.patterns)) as step:
            return measure_sensitivity(
                model, linears, *asked, lambda group: step(f"sensitivity of {group}")
            )

    def _measured(
        self, choices: Options, trials: Trials
    ) -> tuple[list[tuple[str, Measured]], Measured]:
        """Every model that was pruned and measured, by name, and which of them was chosen."""
        options = self._options
        dense = Measured(choices.dense, trials.dense_losses())

        def measure(allocation: Allocation) -> tuple[float, ...]:
            if all(pattern.dense for pattern in allocation.patterns.values()):
                return dense.losses
            with self._report("pruning", 1 + max(g.block for g in choices.groups)) as step:
                recipe = self._recipe(allocation)
                return trials.losses(recipe, lambda _, __, block: step(f"pruned {block}"))

        found = [("dense", dense)]
        for pattern in options.patterns if options.compare else ():
            uniform = choices.uniform(pattern)
            found.append((f"uniform {pattern}", Measured(uniform, measure(uniform))))
        if options.percent is None:
            best = choices.least_loss_at(target_speedup(options.target, choices))
            chosen = Measured(best, measure(best))
        else:
            limit = math.log1p(options.percent / 100)
            met = meet_limit(choices, limit, dense, measure)
            chosen = met.chosen
            found += [(f"round {i}", each) for i, each in enumerate(met.rounds, start=1)]
        return [*found, ("chosen", chosen)], chosen

    def _record(
        self,
        grouping: Grouping,
        choices: Options,
        outcomes: list[tuple[str, Measured]],
        chosen: Measured,
        held_out: torch.Tensor,
    ) -> AllocationRecord:
        options, speeds = self._options, choices.speeds
        form = speeds.form
        return AllocationRecord(
            model=options.model,
            fingerprint=self._cache.fingerprint,
            settings={**options.settings(), "held_out_tokens": held_out.numel()},
            seconds=self._seconds,
            gemm=f"{form.dtype} -> {form.out}, scales {form.scales}",
            provenance={str(source): count for source, count in speeds.provenance.items()},
            dense_loss=choices.sensitivity.dense,
            tokens=choices.sensitivity.tokens,
            groups=tuple(_group_row(g, choices, chosen.allocation) for g in grouping.groups),
            left_out=grouping.left_out,
            outcomes=tuple(
                _outcome_row(name, each, choices, outcomes[0][1]) for name, each in outcomes
            ),
            verdicts=tuple(
                verdict(chosen, each, name) for name, each in outcomes if name.startswith("uniform")
            ),
        ).stamped()


class _Steps(Listener):
    """Counts the problems of a search as steps of a phase."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def finished(self, problem: GemmProblem, found: Found | None, reason: str) -> None:
        self._step(str(problem) if found else f"skipped {problem}: {reason}")


def _is_text(source: str) -> bool:
    return not is_dataset(source) and not is_ids(Path(source))


def _group_row(group: Group, choices: Options, chosen: Allocation) -> GroupRow:
    patterns = choices.patterns
    return GroupRow(
        block=group.block,
        name=group.name,
        linears=group.linears,
        n=group.n,
        k=group.k,
        us={str(p): choices.speeds.us(group.shape, p) for p in (DENSE, *patterns)},
        kl={str(p): choices.sensitivity.effects[group, p].kl for p in patterns},
        increases={str(p): choices.sensitivity.effects[group, p].increase for p in patterns},
        chosen=str(chosen.patterns[group]),
    )


def _outcome_row(name: str, found: Measured, choices: Options, dense: Measured) -> OutcomeRow:
    allocation = found.allocation
    return OutcomeRow(
        name=name,
        us=allocation.us,
        speedup=choices.speedup(allocation),
        zeros=allocation.zeros,
        predicted=allocation.predicted,
        loss=found.loss,
        increase=found.above(dense).mean,
        error=found.above(dense).error,
        proved=allocation.proved,
    )
