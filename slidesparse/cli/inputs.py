"""Inputs that an output must not destroy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from slidesparse.errors import UsageError


def keep_inputs(inputs: Sequence[Path], outputs: Mapping[str, Path | None]) -> None:
    """Refuse an output that names one of the inputs, also by a link.

    Args:
        inputs: files to read.
        outputs: files to write, by option; None where the option is not given.

    Raises:
        UsageError: one does; names it.
    """
    resolved = {path.resolve() for path in inputs}
    for option, output in outputs.items():
        if output is not None and output.resolve() in resolved:
            raise UsageError(f"{option} {output} is one of the files to read; name another")
