"""The destination of a conversion: what is copied beside the weights, and how it gets its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from slidesparse.checkpoint.reader import CONFIG_FILE
from slidesparse.checkpoint.state import LOCK_FILE, STATE_FILE
from slidesparse.checkpoint.writer import TEMPORARY, size_text, sync_directory, writing
from slidesparse.errors import CheckpointError, UsageError, reason_of

PARTIAL = ".partial"
"""Ends the name of the folder beside DST that an unfinished conversion works in."""

REPLACED = ".slidesparse-replaced"
"""Where the folder that --force replaces waits for the moment it is removed."""

_COPIED = (
    *("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"),
    *("licen[cs]e*", "notice*", "copying*", "use_policy*"),
)
_FOLDERS = ("additional_chat_templates",)
_MOST_BYTES = 512 << 20
"""Tokenizers have some megabytes; what is larger is weights under another name."""


def place_of(target: Path | str) -> Path:
    """The folder that a destination names, links followed.

    Raises:
        UsageError: it names none: a loop of links, a name that is too long, a folder above it that
            cannot be looked into.
    """
    try:
        place = Path(target).expanduser().resolve()
        with suppress(FileNotFoundError, NotADirectoryError):
            place.lstat()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{target} cannot be made: {reason_of(error)}; name another") from error
    return place


def work_of(place: Path) -> Path:
    """The folder that an unfinished conversion works in, beside its destination."""
    return place.with_name(place.name + PARTIAL)


def check_destination(source: Path, target: Path, force: bool) -> None:
    """Refuse a destination that would lose something.

    Args:
        source: directory of the source, links followed.
        target: from `place_of`.
        force: what is there may be replaced.

    Raises:
        UsageError: it is the source, or inside it, or around it; or it exists and may not be
            replaced.
    """
    if source == target or source in target.parents or target in source.parents:
        raise UsageError(f"{target} and {source} lie in each other; name another folder")
    work = work_of(target)
    if source == work or work in source.parents:
        raise UsageError(f"the conversion works in {work}, where {source} is; name another folder")
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise UsageError(f"{target} exists and is no folder; name another")
    if not any(target.iterdir()):
        return
    if not force:
        raise UsageError(f"{target} exists; name another folder, or replace it with --force")
    if not (target / CONFIG_FILE).is_file():
        raise UsageError(
            f"{target} exists and has no {CONFIG_FILE}: it is no checkpoint and is not replaced"
        )


def check_room(folder: Path, needed: int) -> None:
    """Refuse to start what cannot fit.

    Args:
        folder: that will hold it.
        needed: bytes that are still to be written.

    Raises:
        CheckpointError: the disk has less room.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{folder} needs {size_text(needed)} more and the disk has {size_text(free)}: make "
            "room and run the same command again"
        )


def check_others(source: Path) -> None:
    """Find out before the work that what is copied after it can be read.

    Raises:
        CheckpointError: names the first file that cannot.
    """
    for path in _others(source):
        if not os.access(path, os.R_OK):
            raise CheckpointError(
                f"cannot read {path}, which is copied: permission denied; make it readable"
            )


def copy_others(source: Path, work: Path) -> None:
    """Copy tokenizer, chat templates, generation config and licence; no weights.

    Raises:
        CheckpointError: a file cannot be read, or the disk is full.
    """
    for path in _others(source):
        target = work / path.relative_to(source)
        with writing(target):
            target.parent.mkdir(exist_ok=True)
            temporary = target.with_name(target.name + TEMPORARY)
            # Follows links: a folder of the Hugging Face cache holds nothing else.
            shutil.copyfile(path, temporary)
            os.replace(temporary, target)


def install(work: Path, target: Path) -> None:
    """Give a finished conversion its name; an older folder of that name goes.

    Killed at any point, the same command completes it: either the work folder is still there and
    finished, or the target has a state file that says so.

    Raises:
        CheckpointError: the system refuses.
    """
    with writing(target):
        sync_directory(work)
        if target.is_dir():
            if any(target.iterdir()):
                os.rename(target, work / REPLACED)
            else:
                target.rmdir()
        os.rename(work, target)
        sync_directory(target.parent)
    tidy(target)


def tidy(target: Path) -> None:
    """Remove from a finished conversion what only an unfinished one needs.

    Raises:
        CheckpointError: the system refuses.
    """
    with writing(target):
        if (target / REPLACED).exists():
            shutil.rmtree(target / REPLACED)
        # The state file goes last: it tells that there is something to tidy.
        (target / LOCK_FILE).unlink(missing_ok=True)
        (target / STATE_FILE).unlink(missing_ok=True)
        sync_directory(target)


def empty(work: Path) -> None:
    """Remove what an unfinished conversion left, and nothing that it did not write.

    Raises:
        CheckpointError: the system refuses.
    """
    with writing(work):
        for path in _entries(work):
            ours = any(fnmatchcase(path.name.lower(), it) for it in ("*.safetensors", *_COPIED))
            if ours and path.is_file():
                path.unlink()


def sweep(work: Path) -> None:
    """Remove the temporary files of writers that were killed; call it with the lock held.

    Raises:
        CheckpointError: the system refuses.
    """
    with writing(work):
        for pattern in (f"*{TEMPORARY}", f"*{TEMPORARY}-*"):
            for path in work.glob(pattern):
                path.unlink()


def strangers(work: Path) -> list[str]:
    """What lies in a work folder without a state file and was not left by a start that failed."""
    ours = (LOCK_FILE, f"{STATE_FILE}{TEMPORARY}-")
    return sorted(path.name for path in work.iterdir() if not path.name.startswith(ours))


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, and in those of its folders that are copied."""
    folders = [folder, *(folder / name for name in _FOLDERS if (folder / name).is_dir())]
    return sorted(path for each in folders for path in each.iterdir())


def _others(source: Path) -> Iterator[Path]:
    for path in _entries(source):
        skipped = path.name in (CONFIG_FILE, STATE_FILE) or path.name.endswith(".index.json")
        named = any(fnmatchcase(path.name.lower(), pattern) for pattern in _COPIED)
        if named and not skipped and path.is_file() and path.stat().st_size <= _MOST_BYTES:
            yield path
