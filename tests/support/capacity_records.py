"""Records of `slidesparse plan --check`, none of them measured."""

from __future__ import annotations

from typing import Any

from slidesparse.bench.capacity.check_record import TOKENS, CheckEntry, CheckRecord, Component
from slidesparse.devices import Fingerprint

MACHINE = Fingerprint(
    "NVIDIA H200",
    90,
    132,
    143155,
    "580.159.04",
    "13.1.0",
    "0.8.0",
    "2.11.0",
    "3.6.0",
)
SETTINGS: dict[str, Any] = {
    "model": "qwen2.5-7b",
    "gpu": "h200",
    "max-seqs": 256,
    "context": 4096,
    "batch": 256,
    "quant": "fp8",
    "kv-dtype": "bf16",
    "memory-fraction": 0.9,
    "pattern": "dense",
    "tp": 1,
    "batched-tokens": 8192,
    "eager": False,
}


def make_entry(model: str = "qwen2.5-7b", planned: int = 100_000) -> CheckEntry:
    """A model whose plan of so many tokens stands against vLLM's 100,000."""
    parts = (Component("weights", 8 << 30, 8 << 30), Component(TOKENS, planned, 100_000))
    settings = {**SETTINGS, "model": model}
    return CheckEntry(model, settings, parts, 6251, 16, {"vllm": "0.25.1"}, None)


def make_check(*entries: CheckEntry) -> CheckRecord:
    """A record of these models, of one by default."""
    found = entries or (make_entry(),)
    return CheckRecord(MACHINE, {"model": "qwen2.5-7b"}, found).stamped()
