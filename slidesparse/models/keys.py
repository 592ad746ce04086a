"""Typed reading of a parsed config.json: every error names the file, the key and the value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from slidesparse.errors import ModelError


@dataclass(frozen=True)
class Keys:
    """The keys of one configuration.

    Args:
        config: the parsed JSON object.
        where: what error messages call it.
    """

    config: Mapping[str, Any]
    where: str

    def fail(self, problem: str) -> NoReturn:
        """Raise a ModelError about this file."""
        raise ModelError(f"{self.where}: {problem}")

    def size(self, key: str, default: int | None = None) -> int:
        """Read a positive integer; `default` stands in for an absent or null key.

        Raises:
            ModelError: the key is missing without a default, or no positive integer.
        """
        value = self.config.get(key)
        if value is None:
            if default is None:
                self.fail(f"key {key!r} is missing")
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            self.fail(f"key {key!r} must be a positive integer, not {_shown(value)}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Read true or false; `default` stands in for an absent or null key.

        Raises:
            ModelError: the value is neither.
        """
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(f"key {key!r} must be true or false, not {_shown(value)}")
        return value

    def flag_or(self, key: str | bool) -> bool:
        """Read the flag under `key`, or return `key` if it is the flag itself."""
        return key if isinstance(key, bool) else self.flag(key)

    def names(self, key: str) -> tuple[str, ...]:
        """Read a list of strings, empty if absent or null.

        Raises:
            ModelError: the value is no list of strings.
        """
        value = self.config.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(f"key {key!r} must be a list of strings, not {_shown(value)}")
        return tuple(value)

    def indices(self, key: str, below: int) -> frozenset[int]:
        """Read a list of layer indices in [0, below), empty if absent or null.

        Raises:
            ModelError: the value is no list of such integers.
        """
        value = self.config.get(key)
        if value is None:
            return frozenset()
        if not isinstance(value, list) or not all(
            isinstance(item, int) and not isinstance(item, bool) and 0 <= item < below
            for item in value
        ):
            self.fail(
                f"key {key!r} must be a list of layers from 0 to {below - 1}, not {_shown(value)}"
            )
        return frozenset(value)


def _shown(value: object) -> str:
    """A value on one short line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
