"""Records of `bench agreement` for tests, without any process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from slidesparse.bench.accuracy.record import TextSource
from slidesparse.bench.agreement.numbers import Compared
from slidesparse.bench.agreement.record import (
    AgreementRecord,
    CheckpointAgreement,
    Limits,
    MixedRequests,
    Pair,
    Served,
)
from slidesparse.bench.sweep.job import Mode, System
from slidesparse.devices import Fingerprint

H200 = Fingerprint("NVIDIA H200", 90, 132, 143156, "580", "13.1.0", "0.8.1", "2.11.0", "3.6.0")
STOCK, OURS, GRAPHS, EAGER = System.STOCK, System.OURS, Mode.GRAPHS, Mode.EAGER


def make_requests(**changes: Any) -> MixedRequests:
    """500 requests, 48 of 50 the same alone."""
    given: dict[str, Any] = {
        "count": 500,
        "aborted": 25,
        "broken": 0,
        "reason": "",
        "compared": 50,
        "differing": (9, 31),
    }
    return MixedRequests(**{**given, **changes})


def make_served(system: System, mode: Mode, **changes: Any) -> Served:
    given: dict[str, Any] = {
        "system": system,
        "mode": mode,
        "ran": {"vllm": "0.25.1", "linears": f"{system} kernel x96"},
        "load_s": 2.0 if system is STOCK else 2.3,
        "start_s": 21.5,
        "tokens": 2044,
        "loss": 3.25,
        "requests": make_requests() if mode is GRAPHS else None,
        "failure": None,
        "reason": "",
    }
    return Served(**{**given, **changes})


def make_pair(reference: Served, other: Served, **changes: Any) -> Pair:
    """8 of 2,000 tokens differ, 5 of them near ties; perplexity a tenth of a percent more."""
    found = Compared(tokens=2000, agreement=0.996, ties=5, perplexity=0.001, difference=0.0123)
    return replace(Pair.of(reference, other, found), **changes)


def make_checkpoint(**ours: Any) -> CheckpointAgreement:
    """Both systems in both modes.

    Args:
        ours: what is different about ours with graphs.
    """
    stock = [make_served(STOCK, mode) for mode in (GRAPHS, EAGER)]
    with_graphs = make_served(OURS, GRAPHS, **ours)
    eagerly = make_served(OURS, EAGER)
    pairs = (
        make_pair(stock[0], with_graphs),
        make_pair(stock[1], eagerly, agreement=0.995, ties=3),
        make_pair(stock[1], stock[0], agreement=0.997),
        make_pair(eagerly, with_graphs, agreement=0.9975),
    )
    return CheckpointAgreement("tiny-6of8", (stock[0], with_graphs, stock[1], eagerly), pairs)


def make_record(checkpoint: CheckpointAgreement | None = None, **changes: Any) -> AgreementRecord:
    given: dict[str, Any] = {
        "fingerprint": H200,
        "versions": {"slidesparse": "0.1.0", "vllm": "0.25.1"},
        "settings": {"length": 512, "tokens": 2000, "seed": 0, "modes": ["graphs", "eager"]},
        "limits": Limits(),
        "text": TextSource("prose.txt", "ab" * 32, 2044),
        "checkpoints": (checkpoint or make_checkpoint(),),
        "seconds": 201.5,
        "interrupted": False,
    }
    return AgreementRecord(**{**given, **changes}).stamped()
