"""The plug-in's options, from vLLM's `--additional-config '{"slidesparse": {...}}'`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slidesparse.errors import UsageError
from slidesparse.layers.planning import FASTEST, MEMORY_FORMATS
from slidesparse.pattern import Pattern

SECTION = "slidesparse"
"""Its key in vLLM's additional_config."""


@dataclass(frozen=True)
class Options:
    """What a user may choose.

    Args:
        off: leave the model to vLLM.
        memory_format: "fastest" keeps each form of a weight that some number of tokens runs best
            with, "smallest" one form.
        patterns: that may run sparse; None for all. A weight of another one runs dense.
        cache_dir: of tuning results, instead of the user's.
    """

    off: bool = False
    memory_format: str = FASTEST
    patterns: frozenset[Pattern] | None = None
    cache_dir: Path | None = None


def parse_options(additional: object) -> Options:
    """The options in vLLM's additional_config.

    Args:
        additional: a mapping, or anything else, which then holds none.

    Raises:
        UsageError: a key or a value is unknown; names it and what there is.
    """
    given = additional.get(SECTION) if isinstance(additional, Mapping) else None
    if given is None:
        return Options()
    if not isinstance(given, Mapping):
        raise UsageError(f"additional_config's {SECTION} is {given!r}; give an object")
    known = {"off", "memory_format", "patterns", "cache_dir"}
    unknown = sorted(str(key) for key in given if key not in known)
    if unknown:
        raise UsageError(
            f"additional_config's {SECTION} has no option {unknown[0]!r}; there are "
            f"{', '.join(sorted(known))}"
        )
    return Options(
        off=_flag(given.get("off", False)),
        memory_format=_memory_format(given.get("memory_format", FASTEST)),
        patterns=_patterns(given.get("patterns")),
        cache_dir=_folder(given.get("cache_dir")),
    )


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{SECTION}.off is {value!r}; give true or false")
    return value


def _memory_format(value: Any) -> str:
    if value not in MEMORY_FORMATS:
        raise UsageError(f"{SECTION}.memory_format is {value!r}; use {' or '.join(MEMORY_FORMATS)}")
    return str(value)


def _patterns(value: Any) -> frozenset[Pattern] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f'{SECTION}.patterns is {value!r}; give a list such as ["2:4", "6:8"]')
    return frozenset(map(Pattern.parse, value))


def _folder(value: Any) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise UsageError(f"{SECTION}.cache_dir is {value!r}; give a folder")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # "~name" of nobody.
        raise UsageError(f"{SECTION}.cache_dir is {value!r}: {error}") from error
