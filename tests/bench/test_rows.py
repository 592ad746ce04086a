"""Rows tell each other apart; a model has one name however it was given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slidesparse.bench.rows import Row, model_name
from slidesparse.candidate import Provenance

ROW = Row(
    {"what": "gemm", "m": 16}, {"system": "ours"}, "time", "us", 1.5, "lower", Provenance.MEASURED
)


def test_the_key_is_workload_variant_and_metric() -> None:
    assert ROW.key == replace(ROW, value=2.5, unit="ms", how="otherwise", spread=0.1).key
    others = (
        replace(ROW, workload={"what": "gemm", "m": 64}),
        replace(ROW, variant={"system": "stock"}),
        replace(ROW, metric="bandwidth"),
    )
    assert len({ROW.key, *(other.key for other in others)}) == 4


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("qwen2.5-7b", "qwen2.5-7b"),
        ("Qwen2.5-7B", "qwen2.5-7b"),
        ("Qwen/Qwen2.5-7B", "qwen2.5-7b"),
        ("models/Qwen2.5-7B/", "qwen2.5-7b"),
        ("C:\\models\\Qwen2.5-7B", "qwen2.5-7b"),
        ("Qwen2.5-7B-w8a8", "Qwen2.5-7B-w8a8"),
        ("/", "/"),
    ],
)
def test_a_model_has_one_name(given: str, name: str) -> None:
    assert model_name(given) == name
