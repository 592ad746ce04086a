"""Option types that several commands share: each refuses bad input in one line."""

from __future__ import annotations

import math
import os
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slidesparse.errors import UsageError
from slidesparse.kernel_problem import Op
from slidesparse.pattern import Pattern, parse_patterns
from slidesparse.problem import DType, parse_dtype

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    # Older releases of click have no generic ParamType at run time.
    _ParamType = click.ParamType


class PatternList(_ParamType):
    """Comma-separated patterns: dense,2:4,6:8."""

    name = "patterns"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Pattern, ...]:
        """Parse the list or fail with what is wrong with it."""
        if isinstance(value, tuple):
            return value
        try:
            return parse_patterns(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


MOST_TOKENS = 2**31 - 1
"""More tokens than any device holds; libraries overflow far beyond."""


class TokenCounts(_ParamType):
    """Comma-separated positive integers: 16,256,4096.

    Attributes:
        symbol: what messages call one.
        unit: what it counts.
    """

    name = "m,..."
    symbol, unit = "M", "tokens"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse the list or fail naming the entry that is no positive integer."""
        if isinstance(value, tuple):
            return value
        counts: list[int] = []
        for part in str(value).split(","):
            try:
                count = int(part)
            except ValueError:
                self.fail(f"{self.symbol}={part.strip()!r} is not an integer", param, ctx)
            if count <= 0:
                said = f"{self.symbol}={count} is not a positive number of {self.unit}"
                self.fail(said, param, ctx)
            if count > MOST_TOKENS:
                self.fail(
                    f"{self.symbol}={count} is more than {MOST_TOKENS} {self.unit}", param, ctx
                )
            counts.append(count)
        return tuple(dict.fromkeys(counts))


class DTypeName(_ParamType):
    """fp8 or int8."""

    name = "fp8|int8"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> DType:
        """Parse the name or fail with the accepted ones."""
        if isinstance(value, DType):
            return value
        try:
            return parse_dtype(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class DTypeList(DTypeName):
    """Comma-separated dtypes: fp8,int8."""

    name = "dtypes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the list or fail with the accepted names."""
        if isinstance(value, tuple):
            return value
        parse = super().convert
        return tuple(dict.fromkeys(parse(part, param, ctx) for part in str(value).split(",")))


class ModeList(_ParamType):
    """Comma-separated ways of launching: eager,graphs."""

    name = "modes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the list or fail with the accepted names."""
        from slidesparse.bench.sweep.job import Mode

        if isinstance(value, tuple):
            return value
        words = [word.strip().lower() for word in str(value).split(",")]
        for word in words:
            if word not in [str(mode) for mode in Mode]:
                self.fail(f"unknown mode {word!r}; use eager, graphs or both", param, ctx)
        return tuple(dict.fromkeys(Mode(word) for word in words))


class Names(_ParamType):
    """Comma-separated names."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split the list; an empty text is an empty list."""
        if isinstance(value, tuple):
            return value
        names = (part.strip() for part in str(value).split(","))
        return tuple(dict.fromkeys(name for name in names if name))


class Seconds(_ParamType):
    """A positive, finite number of seconds."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse the number or fail saying what it is not."""
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        if not math.isfinite(seconds) or seconds <= 0:
            self.fail(f"{value} is not a positive number of seconds", param, ctx)
        return seconds


class OpList(_ParamType):
    """Comma-separated kernels: quantize,dequantize."""

    name = "ops"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Op, ...]:
        """Parse the list or fail with the nearest name and all of them."""
        if isinstance(value, tuple):
            return value
        names = [op.value for op in Op]
        found = []
        for part in str(value).split(","):
            name = part.strip().lower()
            if name not in names:
                import difflib

                near = difflib.get_close_matches(name, names, n=1)
                hint = f", did you mean {near[0]!r}?" if near else ";"
                self.fail(f"unknown op {name!r}{hint} known: {', '.join(names)}", param, ctx)
            found.append(Op(name))
        return tuple(dict.fromkeys(found))


def check_outputs(
    json_path: Path | None, csv_path: Path | None, figure_path: Path | None = None
) -> None:
    """Refuse result files that could not be written, or would be one, at the end of a long run.

    Raises:
        UsageError: a file is none that can be written, or two are the same.
    """
    options = {"--json": json_path, "--csv": csv_path, "--figure": figure_path}
    given = {option: path for option, path in options.items() if path is not None}
    for path in given.values():
        check_writable(path)
    for (first, one), (second, other) in combinations(given.items(), 2):
        if one.resolve() == other.resolve():
            named = one if one == other else f"{one} ({other})"
            raise UsageError(f"{first} and {second} both name {named}; name two files")


def check_writable(path: Path | None) -> None:
    """Refuse a result file that could not be written at the end of a long run.

    Raises:
        UsageError: its folder does not exist, it is a folder or a socket itself, or permission is
            missing.
    """
    if path is None:
        return
    try:
        reason = _unwritable(path)
    except OSError as error:  # A folder above it cannot be looked into.
        reason = str(error.strerror)
    if reason:
        raise UsageError(f"cannot write {path}: {reason}")


def _unwritable(path: Path) -> str:
    """Why a file cannot be written, or ""; what is replaced whole needs its folder too."""
    if path.is_dir():
        return "it is a folder; name a file"
    if path.exists():
        if path.is_socket():
            return "it is a socket; name a file or a pipe"
        if not os.access(path, os.W_OK):
            return "permission denied; name another file"
        if not path.is_file():
            # A device or a pipe is written to directly, and behind /dev/stdout it has no folder.
            return ""
    folder = path.resolve().parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"no permission to write in the folder {folder}"
    return ""
