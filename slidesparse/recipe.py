"""Recipe: which pattern each linear of a model gets, how it is pruned and what it is quantised to.

`slidesparse allocate` writes one, `slidesparse convert --recipe` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from slidesparse.errors import PatternError, RecipeError, UsageError
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType, parse_dtype

VERSION = 1
"""Of the file form."""

HEAD = "lm_head"
"""The linear after the decoder blocks, which many models share with the embedding."""

ROUTERS = ("gate", "router", "shared_expert_gate")

MOST_BYTES = 16 << 20
"""A recipe names each linear once; a larger file is something else."""


def is_router(name: str) -> bool:
    """Whether a linear chooses experts or gates them: too small to gain and too delicate."""
    return name.rpartition(".")[2] in ROUTERS


class Method(str, Enum):
    """How the weights to drop are chosen.

    MAGNITUDE: the smallest |w|; needs no calibration.
    WANDA: the smallest |w| times the norm of the input channel (Sun et al., arXiv 2306.11695).
    SPARSEGPT: the smallest w^2 / [H^-1]_jj, the rest of the row updated (arXiv 2301.00774).
    """

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    SPARSEGPT = "sparsegpt"

    @property
    def calibrated(self) -> bool:
        """Whether it looks at the inputs of a layer."""
        return self is not Method.MAGNITUDE

    def __str__(self) -> str:
        """The name as files and tables spell it."""
        return self.value


@dataclass(frozen=True)
class Recipe:
    """What is done to each linear of a model.

    Args:
        pattern: of every linear that `layers` does not name.
        method: how weights are chosen.
        dtype: FP8 or INT8 per output channel, or None to prune only.
        keep: names that are neither pruned nor quantised, with * and ? as in a shell; a name
            without a dot matches the last part of a module's name too.
        layers: patterns by a linear's full name, "model.layers.0.self_attn.q_proj".

    Raises:
        RecipeError: the dtype is not one that linears are quantised to.
    """

    pattern: Pattern = DENSE
    method: Method = Method.WANDA
    dtype: DType | None = DType.FP8
    keep: tuple[str, ...] = (HEAD,)
    layers: Mapping[str, Pattern] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse dtypes that no linear is quantised to."""
        if self.dtype not in (None, DType.FP8, DType.INT8):
            raise RecipeError(f"a recipe cannot quantise to {self.dtype}; use fp8, int8 or none")

    def kept(self, name: str) -> bool:
        """Whether a linear is left as it is."""
        last = name.rpartition(".")[2]
        return any(
            fnmatchcase(name, keep) or ("." not in keep and fnmatchcase(last, keep))
            for keep in self.keep
        )

    def pattern_of(self, name: str) -> Pattern:
        """The pattern of a linear; dense for one that is kept."""
        return DENSE if self.kept(name) else self.layers.get(name, self.pattern)

    def to_json(self) -> str:
        """As a file holds it."""
        made = {
            "version": VERSION,
            "pattern": str(self.pattern),
            "method": str(self.method),
            "dtype": str(self.dtype) if self.dtype else None,
            "keep": list(self.keep),
            "layers": {name: str(pattern) for name, pattern in self.layers.items()},
        }
        return json.dumps(made, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read what `to_json` wrote.

        Raises:
            RecipeError: it is no recipe; says what is wrong.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"not JSON: {error}") from error
        fields = {"version", "pattern", "method", "dtype", "keep", "layers"}
        wanted = f"a recipe has exactly {', '.join(sorted(fields))}"
        if not isinstance(data, dict):
            raise RecipeError(f"it is no JSON object; {wanted}")
        odd = sorted(fields ^ data.keys())
        if odd:
            which = "lacks" if odd[0] in fields else "has an unknown"
            raise RecipeError(f"it {which} {odd[0]!r}; {wanted}")
        # Not by == alone: true and 1.0 equal 1.
        if type(data["version"]) is not int or data["version"] != VERSION:
            raise RecipeError(f"recipe version {data['version']!r}; this release reads {VERSION}")
        if not (
            isinstance(data["keep"], list)
            and isinstance(data["layers"], dict)
            and all(isinstance(name, str) for name in data["keep"])
        ):
            raise RecipeError("keep is a list of names and layers maps names to patterns")
        return cls(
            pattern=_pattern("pattern", data["pattern"]),
            method=_method(data["method"]),
            dtype=None if data["dtype"] is None else _dtype(data["dtype"]),
            keep=tuple(data["keep"]),
            layers={name: _pattern(name, spelled) for name, spelled in data["layers"].items()},
        )

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a file.

        Raises:
            RecipeError: it cannot be read or holds no recipe; names the file.
        """
        try:
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise RecipeError(f"more than {MOST_BYTES >> 20} MiB")
            return cls.from_json(content.decode("utf-8"))
        except OSError as error:
            raise RecipeError(f"cannot read {path}: {error.strerror or error}") from error
        except (UsageError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} is no recipe: {error}") from error


def _pattern(name: str, spelled: Any) -> Pattern:
    if not isinstance(spelled, str):
        raise RecipeError(f"{name}: pattern {spelled!r} is no text")
    try:
        return Pattern.parse(spelled)
    except PatternError as error:
        raise PatternError(f"{name}: {error}") from error


def _method(spelled: Any) -> Method:
    try:
        return Method(spelled)
    except ValueError as error:
        known = ", ".join(map(str, Method))
        raise RecipeError(f"unknown method {spelled!r}; use one of {known}") from error


def _dtype(spelled: Any) -> DType:
    if not isinstance(spelled, str):
        raise RecipeError(f"dtype {spelled!r} is no text")
    return parse_dtype(spelled)
