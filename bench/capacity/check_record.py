"""Result files of `slidesparse plan --check`: plans against what vLLM reported, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict

from slidesparse import __version__
from slidesparse.bench.fields import STRICT, Count, Machine, Name, Text
from slidesparse.bench.record_form import RecordForm, Stamped
from slidesparse.bench.result_file import FileKind
from slidesparse.bench.rows import Row, Value, model_name
from slidesparse.candidate import Provenance

KIND = FileKind("slidesparse-capacity-check", 1, "slidesparse plan --check")

TOKENS = "KV-cache tokens"
"""The component that is asserted."""


@dataclass(frozen=True)
class Component:
    """One component: bytes (tokens of KV-cache tokens) planned and reported by vLLM."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Name
    planned: int
    reported: int


@dataclass(frozen=True)
class CheckEntry:
    """One model.

    Args:
        model: as it was given.
        settings: of the plan, options by name.
        components: of the memory, the tokens of the KV cache last; empty if vLLM did not start.
        blocks: of vLLM's KV cache.
        block_tokens: of one.
        ran: what vLLM says that it runs, one line each.
        error: why there is nothing, None where there is.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: Name
    settings: dict[Name, Any]
    components: tuple[Component, ...]
    blocks: Count
    block_tokens: Count
    ran: dict[Name, Text]
    error: Text | None

    @property
    def tokens(self) -> Component | None:
        """The tokens of the KV cache."""
        return next((each for each in self.components if each.name == TOKENS), None)

    def within(self, tolerance: float) -> bool:
        """Whether the plan's tokens are near enough to vLLM's."""
        it = self.tokens
        return it is not None and abs(it.planned - it.reported) <= tolerance * it.reported


@dataclass(frozen=True)
class CheckRecord(Stamped):
    """What `slidesparse plan --check` found.

    Args:
        fingerprint: of the machine.
        settings: of the command.
        entries: one per model.
        commit: of the source, "unknown" outside a checkout.
        version: of the package.
        created: UTC time in ISO 8601.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    fingerprint: Machine
    settings: dict[Name, Any]
    entries: tuple[CheckEntry, ...]
    commit: Text = ""
    version: Text = __version__
    created: Text = ""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of vLLM, besides those of the fingerprint."""
        ran = next((entry.ran for entry in self.entries if "vllm" in entry.ran), {})
        return {"vllm": ran["vllm"]} if ran else {}

    def kept(self, model: str, settings: Mapping[str, Any]) -> CheckEntry | None:
        """The entry of a model that was checked before with the same settings."""
        for entry in self.entries:
            if entry.model == model and entry.settings == settings and entry.error is None:
                return entry
        return None


FORM = RecordForm(KIND, CheckRecord)
read_json, write_json = FORM.read, FORM.write


def rows(record: CheckRecord) -> tuple[Row, ...]:
    """Tokens of the KV cache of every model, planned and as vLLM reported them."""
    found = []
    for entry in record.entries:
        it = entry.tokens
        if it is None:
            continue
        workload: dict[str, Value] = {"what": "KV cache", "model": model_name(entry.model)}
        for name in ("quant", "kv-dtype", "context", "max-seqs", "memory-fraction"):
            workload[name] = entry.settings[name]
        for system, count, provenance in (
            ("plan", it.planned, Provenance.ESTIMATED),
            ("vllm", it.reported, Provenance.MEASURED),
        ):
            variant: dict[str, Value] = {"system": system}
            row = Row(workload, variant, "KV cache", "tokens", count, "higher", provenance)
            found.append(row)
    return tuple(found)
