"""Option types of `slidesparse allocate`: a share in percent, a workload, a target speed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from slidesparse.accuracy.speed import Batch
from slidesparse.cli.options import MOST_TOKENS
from slidesparse.errors import UsageError
from slidesparse.pattern import Pattern

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    # Older releases of click have no generic ParamType at run time.
    _ParamType = click.ParamType


class Percent(_ParamType):
    """A positive share in percent: 5% or 5."""

    name = "percent"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse the number of percent or fail saying what it is not."""
        try:
            percent = float(str(value).strip().removesuffix("%"))
        except ValueError:
            self.fail(f"{value!r} is not a number of percent such as 5%", param, ctx)
        if not math.isfinite(percent) or percent <= 0:
            self.fail(f"{value} is not more than 0%", param, ctx)
        return percent


class Workload(_ParamType):
    """Comma-separated batches, M or M:COUNT: 16384 or 16384:1,64:200."""

    name = "m[:count],..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Batch, ...]:
        """Parse the list or fail naming the part that is none."""
        if isinstance(value, tuple):
            return value
        batches = []
        for part in str(value).split(","):
            size, _, count = part.strip().partition(":")
            try:
                batch = Batch(int(size), int(count or 1))
            except ValueError:
                self.fail(f"{part.strip()!r} is neither M nor M:COUNT", param, ctx)
            if not (0 < batch.m <= MOST_TOKENS and 0 < batch.count <= MOST_TOKENS):
                self.fail(
                    f"{part.strip()!r} is out of range; M and COUNT are from 1 to {MOST_TOKENS}",
                    param,
                    ctx,
                )
            batches.append(batch)
        return tuple(batches)


class SpeedTarget(_ParamType):
    """How many times as fast as dense: 1.15, or as a uniform pattern is: 6:8."""

    name = "speedup|pattern"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | Pattern:
        """Parse the number or the pattern, or fail saying what it is not."""
        if isinstance(value, float | Pattern):
            return value
        text = str(value).strip()
        if ":" in text:
            try:
                return Pattern.parse(text)
            except UsageError as error:
                self.fail(str(error), param, ctx)
        try:
            speedup = float(text.lower().removesuffix("x"))
        except ValueError:
            self.fail(f"{value!r} is neither a speedup such as 1.15 nor a pattern", param, ctx)
        if not math.isfinite(speedup) or speedup <= 1:
            self.fail(f"{value} is no speedup over dense; use more than 1", param, ctx)
        return speedup
