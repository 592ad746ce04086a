"""How sweeps and load benchmarks begin: what can be wrong is found before a process starts."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slidesparse.cli.target import refuse_fp8, require_triton
from slidesparse.errors import UsageError

if TYPE_CHECKING:
    from slidesparse.bench.sweep.cells import CellsBook, CellsHeading, CellsRecord
    from slidesparse.bench.sweep.plan import Compared
    from slidesparse.cache import TuningCache
    from slidesparse.devices import Device
    from slidesparse.models import ModelSpec
    from slidesparse.problem import DType

R = TypeVar("R", bound="CellsRecord[Any]")
"""What the result file holds."""

K = TypeVar("K", bound="Compared")
"""What names a cell."""


def load_specs(names: Sequence[str], tp: int) -> dict[str, ModelSpec]:
    """The sizes of the models by their names.

    Raises:
        ModelError: a model is unknown or unreadable, or `tp` does not divide what must be divided.
    """
    from slidesparse.models import load_model

    specs = {name: load_model(name) for name in names}
    for spec in specs.values():
        spec.linears(tp)
    return specs


def check_gpus(tp: int, device: Device) -> None:
    """Refuse other GPUs than the first, which vLLM takes, and more ranks than there are GPUs.

    Raises:
        UsageError: it is so, with the remedy.
    """
    from slidesparse.devices import all_gpus

    if device.index:
        raise UsageError(
            f"vLLM runs on the first GPUs that it sees, not on {device}; set "
            f"CUDA_VISIBLE_DEVICES={device.index} and leave out --device"
        )
    count = len(all_gpus())
    if tp > count:
        raise UsageError(f"--tp {tp} needs as many GPUs, and torch sees {count}")


def make_ready(
    dtypes: Sequence[DType], device: Device, cache: TuningCache, cache_dir: Path | None
) -> None:
    """Refuse what the machine cannot run, and hand the folder of results to the processes.

    Args:
        dtypes: of the models.
        device: that runs them.
        cache: of its results.
        cache_dir: folder that was asked for: layers plan themselves from it, and the folders that
            vLLM loads lie there, too.

    Raises:
        UsageError: the GPU has no FP8.
        DeviceError: triton cannot be imported.
    """
    for dtype in dtypes:
        refuse_fp8(dtype, device, cache.fingerprint.sm, "these models")
    require_triton()
    if cache_dir is not None:
        os.environ["SLIDESPARSE_CACHE_DIR"] = str(cache_dir)


def read_before(file: Path | None, fresh: bool, read: Callable[[Path], R]) -> R | None:
    """What an earlier run left.

    Args:
        file: result file, None where none was asked for.
        fresh: whether it is overwritten.
        read: reads it.

    Raises:
        UsageError: the file is there and of another kind, or damaged.
    """
    if file is None or fresh or not file.is_file():
        return None
    try:
        return read(file)
    except UsageError as error:
        raise UsageError(f"{error}; name another file, or overwrite it with --fresh") from error


def refuse_other_settings(heading: CellsHeading[R], before: R | None, file: Path | None) -> None:
    """Go on only with a file whose cells can stand beside those to come.

    Raises:
        UsageError: they cannot, with what differs.
    """
    differences = heading.differences(before) if before is not None else []
    if differences:
        raise UsageError(
            f"{file} was measured otherwise: {'; '.join(differences)}. Name another file, or start "
            "anew with --fresh"
        )


def check_boards(book: CellsBook[Any, K, Any], due: Collection[K], file: Path | None) -> None:
    """Say which cells of another GPU are measured again; lose none that are not.

    Args:
        book: of the run.
        due: cells that are going to be measured.
        file: that holds the others.

    Raises:
        UsageError: cells of another GPU would have to go and are not going to be measured here.
    """
    replaced = book.replaced_by(due)
    lost = [key for key in replaced if key not in due]
    if lost:
        raise UsageError(
            f"{file} holds cells of another GPU, and boards of a kind differ: {len(lost)} of them, "
            f"{lost[0]} first, are not measured by this command and cannot stand beside what it "
            "measures. Ask for them too, name another file, or start anew with --fresh"
        )
    if replaced:
        click.echo(
            f"cells that another GPU has measured, and that go once their comparison is measured "
            f"here, because boards of a kind differ: {len(replaced)}",
            err=True,
        )


def seed_of(asked: int | None, before: CellsRecord[Any] | None) -> int:
    """The seed that was asked for, else that of the earlier run, else a new one."""
    if asked is not None:
        return asked
    earlier = before.settings.get("seed") if before is not None else None
    return earlier if isinstance(earlier, int) else random.SystemRandom().randrange(2**31)


def say_first(lines: Sequence[str]) -> None:
    """Print what is measured where, before anything runs."""
    from slidesparse.cli.console import make_console

    console = make_console()
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
