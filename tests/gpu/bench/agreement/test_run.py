"""`slidesparse bench agreement` on a GPU: a tiny converted model, ours against stock vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: it is what the plug-in is compared with")

import torch
from run_tool import run_tool
from tiny_models import tiny_model

from slidesparse.bench.agreement.record import AgreementRecord, read_json
from slidesparse.bench.sweep.job import Mode, System
from slidesparse.checkpoint.convert import convert
from slidesparse.devices import Device
from slidesparse.pattern import Pattern
from slidesparse.problem import parse_dtype
from slidesparse.recipe import Method, Recipe

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "vocab_size": 1024,
}
"""Heads of 64, which FlashAttention takes, and sizes that are multiples of 16."""

SECONDS = 1500
REQUESTS = ("--requests", "60", "--longest", "300", "--outputs", "16", "--alone", "20")
# A model of random weights is hardly surer of its first token than of the next.
LIMITS = ("--least-agreement", "90", "--most-perplexity", "2")


@pytest.fixture(scope="module")
def place(gpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dense model and tokens to score."""
    made = tmp_path_factory.mktemp("agreement")
    tiny_model("Qwen2", **SIZES).to(torch.bfloat16).save_pretrained(made / "source")
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, SIZES["vocab_size"], (1200,), generator=generator).tolist()
    (made / "ids.json").write_text(json.dumps(ids))
    return made


def converted(place: Path, dtype: str, pattern: str) -> Path:
    folder = place / f"{dtype}-{pattern.replace(':', 'of')}"
    if not folder.exists():
        recipe = Recipe(Pattern.parse(pattern), Method.MAGNITUDE, parse_dtype(dtype))
        convert(place / "source", folder, recipe)
    return folder


def compared(place: Path, folder: Path, cache: Path, *arguments: str) -> AgreementRecord:
    """The record of a run; the plug-in finds its tuning results in `cache`."""
    file = place / f"{folder.name}.json"
    given = ("--text", str(place / "ids.json"), "--tokens", "500", "--length", "128")
    shared = (*given, *LIMITS, "--json", str(file))
    print(
        run_tool(
            "bench", "agreement", str(folder), *shared, *arguments, cache=cache, seconds=SECONDS
        )
    )
    return read_json(file)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "pattern"), [("fp8", "6:8"), ("fp8", "2:4"), ("int8", "6:8")])
def test_ours_gives_what_stock_gives(place: Path, dtype: str, pattern: str) -> None:
    folder = converted(place, dtype, pattern)
    cache = place / f"tuned-{folder.name}"
    wanted = ("--model", str(folder), "--dtype", dtype, "--patterns", f"dense,{pattern}")
    effort = ("--m", "16,64,512", "--effort", "quick", "--scales", "rowcol")
    run_tool("search", *wanted, *effort, cache=cache, seconds=SECONDS)
    record = compared(place, folder, cache, *REQUESTS)
    (checkpoint,) = record.checkpoints
    assert len(checkpoint.pairs) == 4
    for it in checkpoint.served:
        assert (it.failure, it.tokens) == (None, record.text.tokens)
        assert it.load_s is not None
        assert it.start_s is not None
        assert 0 < it.load_s < it.start_s
        assert (it.ran["cudagraph mode"] == "none") is (it.mode is Mode.EAGER)
        assert ("linears taken" in it.ran.get("slidesparse", "")) is (it.system is System.OURS)
        if it.mode is Mode.EAGER:
            assert it.requests is None
            continue
        assert it.requests is not None
        assert (it.requests.count, it.requests.aborted, it.requests.broken) == (60, 3, 0)
        assert it.requests.compared == 20
    assert f"12 of 12 W8A8 linears taken; {pattern}" in checkpoint.served[1].ran["slidesparse"]


@pytest.mark.slow
def test_without_tuning_results_nothing_is_compared(place: Path, tmp_path: Path) -> None:
    """Stock against stock would agree in everything."""
    folder = converted(place, "fp8", "6:8")
    with pytest.raises(AssertionError, match="the plug-in took no layer"):
        compared(place, folder, tmp_path / "none", "--modes", "eager", "--requests", "0")
