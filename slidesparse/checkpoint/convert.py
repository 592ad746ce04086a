"""convert: a dense checkpoint becomes a standard one that is pruned and quantised, shard by shard.

The unit of work and of resuming is a decoder block, which becomes one output shard; everything
outside the blocks becomes the last one. Work is done in DST.partial, which becomes DST at the end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from slidesparse.cache_file import write_atomically
from slidesparse.checkpoint import files
from slidesparse.checkpoint.blocks import Blocks, Source, Streamed
from slidesparse.checkpoint.config import converted_config
from slidesparse.checkpoint.layout import (
    REST,
    Layout,
    Unit,
    needs_text,
    untouched,
)
from slidesparse.checkpoint.preview import Preview, job_of, layout_of, preview_of
from slidesparse.checkpoint.reader import CONFIG_FILE, INDEX_FILE, CheckpointReader
from slidesparse.checkpoint.state import STATE_FILE, State, differences, identity_of, locked
from slidesparse.checkpoint.weights import Job, specs_of, write_unit
from slidesparse.checkpoint.writer import ShardWriter, TensorSpec, unchanged, writing
from slidesparse.errors import CalibrationError, CheckpointError
from slidesparse.pattern import Pattern
from slidesparse.prune.report import LayerReport
from slidesparse.recipe import HEAD, Recipe

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with units done, units in all, and the name of the unit that was just finished."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Args:
        path: of the converted checkpoint.
        reports: of each pruned linear, finished now or by an earlier start.
        resumed: shards that an earlier start had finished.
        preview: what was planned, and what a user should know.
    """

    path: Path
    reports: tuple[LayerReport, ...]
    resumed: int
    preview: Preview


def convert(
    source: Path | str,
    target: Path | str,
    recipe: Recipe,
    *,
    tokens: torch.Tensor | None = None,
    permute: bool = False,
    force: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint; started again with the same arguments, go on where it stopped.

    Args:
        source: directory of a Hugging Face causal LM in safetensors: BF16, FP16, FP32, or W8A8 or
            2:4 bitmask of compressed-tensors.
        target: directory to make.
        recipe: patterns, method, dtype and what to keep.
        tokens: [S, L] int64 calibration text; not looked at where nothing is calibrated.
        permute: spread strong and weak input channels over the blocks of 2N, where that is exact.
        force: replace `target` at the end, and an unfinished conversion of other arguments now.
        device: that prunes and quantises, and runs the blocks.
        progress: called after every shard.

    Raises:
        CalibrationError: the method needs tokens, or they cannot be used.
        CheckpointError: the source is damaged or of a form that is not read, or the destination
            cannot be written. Finished shards are kept, and the target is as it was.
        RecipeError: the recipe does not fit the checkpoint.
        UsageError: the target exists, or lies in the source.
    """
    reader = CheckpointReader(source)
    layout = layout_of(reader, recipe)
    if not needs_text(layout, recipe):
        tokens = None
    elif tokens is None:
        raise CalibrationError(
            f"{recipe.method} needs calibration text; name some with --calibration, or use "
            "magnitude"
        )
    job = job_of(reader, recipe, torch.device(device))
    identity = identity_of(reader, recipe, permute, tokens)
    place = files.place_of(target)
    finished = _finished(place, identity)
    if finished is not None:
        files.tidy(place)
        return _conversion(place, job, layout, finished, len(layout.units))
    origin = reader.path.resolve()
    files.check_destination(origin, place, force)
    files.check_others(origin)
    work = files.work_of(place)
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    with locked(work):
        state = _open(work, identity, force)
        resumed = _run(job, layout, state, tokens, permute, progress)
        _finish(job, layout, work, state)
        # Once more: something may have got this name since.
        files.check_destination(origin, place, force)
        files.install(work, place)
    return _conversion(place, job, layout, state, resumed)


def _finished(target: Path, identity: Mapping[str, Any]) -> State | None:
    """The state of a target that was finished and not tidied, if it is of these arguments."""
    if not (target / STATE_FILE).exists():
        return None
    state = State.read(target / STATE_FILE)
    return None if differences(state.identity, identity) else state


def _open(work: Path, identity: dict[str, Any], force: bool) -> State:
    """The state of an earlier start with the same arguments, or a new one.

    Raises:
        CheckpointError: the folder holds something else.
    """
    path = work / STATE_FILE
    if path.exists():
        state = State.read(path)
        differing = differences(state.identity, identity)
        if not differing:
            files.sweep(work)
            return state
        if not force:
            raise CheckpointError(
                f"{work} holds an unfinished conversion that differs in {differing}; repeat that "
                "command to finish it, or start anew with --force"
            )
        files.empty(work)
    elif strange := files.strangers(work):
        raise CheckpointError(
            f"{work} holds {strange[0]} and no unfinished conversion; move it away, since the "
            "conversion works there"
        )
    files.sweep(work)
    state = State(path, identity)
    state.save()
    return state


def _file_name(layout: Layout, index: int) -> str:
    return f"model-{index + 1:05}-of-{len(layout.units):05}.safetensors"


def _run(
    job: Job,
    layout: Layout,
    state: State,
    tokens: torch.Tensor | None,
    permute: bool,
    progress: Progress | None,
) -> int:
    """Make every shard that is not there yet; how many were."""
    work = state.path.parent
    specs = [specs_of(job, unit) for unit in layout.units]
    done = [
        _valid(work / _file_name(layout, index), specs[index], state)
        for index in range(len(layout.units))
    ]
    missing = [each for index, each in enumerate(specs) if not done[index]]
    files.check_room(work, sum(spec.bytes for each in missing for spec in each))
    source: Source = Streamed()
    if missing and (tokens is not None or permute):
        source = Blocks(job, layout.units, tokens, permute)
    last = _last_run(job, layout, done)
    for index, unit in enumerate(layout.units):
        path = work / _file_name(layout, index)
        if not done[index]:
            _make(job, unit, source, path, specs[index], state)
        elif index < last:
            source.passed(unit, path)
        if progress is not None:
            progress(index + 1, len(layout.units), unit.name)
    return sum(done)


def _last_run(job: Job, layout: Layout, done: list[bool]) -> int:
    """The last unit that is still to be made and depends on the ones before it, or -1."""
    head = not job.recipe.pattern_of(HEAD).dense
    return max(
        (
            index
            for index, unit in enumerate(layout.units)
            if not done[index] and (unit.name != REST or head)
        ),
        default=-1,
    )


def _make(
    job: Job, unit: Unit, source: Source, path: Path, specs: list[TensorSpec], state: State
) -> None:
    reports: list[dict[str, Any]] = []

    def report(layer: LayerReport) -> None:
        reports.append({**asdict(layer), "pattern": str(layer.pattern)})

    with ShardWriter(path, specs) as writer:
        write_unit(job, unit, writer, source.pruned(unit, report), report)
    assert writer.record is not None
    state.finish(path.name, writer.record, reports)


def _valid(path: Path, specs: list[TensorSpec], state: State) -> bool:
    record = state.shards.get(path.name)
    if record is None:
        return False
    if unchanged(path, specs, record):
        return True
    log.warning("%s is not what was written there; it is made again", path)
    return False


def _finish(job: Job, layout: Layout, work: Path, state: State) -> None:
    """Write what is beside the shards, the index last."""
    files.copy_others(job.reader.path, work)
    details = {key: state.identity[key] for key in ("permute", "calibration")}
    config = converted_config(job.reader.config, job.recipe, untouched(layout, job.recipe), details)
    weight_map, total = {}, 0
    for index, unit in enumerate(layout.units):
        for spec in specs_of(job, unit):
            weight_map[spec.name] = _file_name(layout, index)
            total += spec.bytes
    made = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    for name, content in ((CONFIG_FILE, config), (INDEX_FILE, made)):
        with writing(work / name):
            write_atomically(work / name, (json.dumps(content, indent=2) + "\n").encode())


def _conversion(target: Path, job: Job, layout: Layout, state: State, resumed: int) -> Conversion:
    plain = [
        report
        for index in range(len(layout.units))
        for report in state.reports.get(_file_name(layout, index), [])
    ]
    reports = tuple(
        LayerReport(**{**report, "pattern": Pattern.parse(report["pattern"])}) for report in plain
    )
    return Conversion(target, reports, resumed, preview_of(job, layout))
