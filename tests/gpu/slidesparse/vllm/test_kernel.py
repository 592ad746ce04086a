"""The plug-in in stock vLLM on a GPU: the same results, taken layers, and never in the way."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: it is what the plug-in is for")

import torch
from run_tool import run_tool
from tiny_models import tiny_model

from slidesparse.cache import TuningCache
from slidesparse.checkpoint.convert import convert
from slidesparse.devices import detect
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
SECONDS = 400
CASES = [("fp8", "6:8"), ("fp8", "2:4"), ("int8", "6:8")]


@pytest.fixture(scope="module")
def served(gpu, root, tmp_path_factory):
    """Run a converted checkpoint in vLLM; what has run once is remembered."""
    place = tmp_path_factory.mktemp("served")
    source = place / "source"
    tiny_model("Qwen2", **SIZES).to(torch.bfloat16).save_pretrained(source)
    made: dict[str, Any] = {}

    def checkpoint(dtype: str, pattern: str) -> Path:
        folder = place / f"{dtype}-{pattern.replace(':', '-')}"
        if not folder.exists():
            recipe = Recipe(Pattern.parse(pattern), Method.MAGNITUDE, parse_dtype(dtype))
            convert(source, folder, recipe)
        return folder

    def run(dtype: str, pattern: str, **given: Any) -> dict[str, Any]:
        options = copy.deepcopy(given)  # Callers share theirs.
        key = json.dumps([dtype, pattern, options], sort_keys=True)
        if key not in made:
            folder = checkpoint(dtype, pattern)
            tp = str(options.get("tensor_parallel_size", 1))
            tuned = place / f"tuned-{folder.name}-{tp}"
            if options.pop("tuned", True):
                if not tuned.exists():
                    shared = ("--model", str(folder), "--dtype", dtype, "--tp", tp, "--patterns")
                    search = (*shared, f"dense,{pattern}", "--m", "16,64,512", "--effort", "quick")
                    run_tool("search", *search, "--scales", "rowcol", cache=tuned)
                section = options.setdefault("additional", {}).setdefault("slidesparse", {})
                section["cache_dir"] = str(tuned)
            found = probe(root, place / "out.json", folder, options)
            made[key] = found | {"folder": str(folder)}
        return made[key]

    return run


def probe(root: Path, out: Path, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run the script in a process of its own, with the engine inside of it."""
    out.unlink(missing_ok=True)
    script = root / "tests" / "support" / "vllm_probe.py"
    done = subprocess.run(
        [sys.executable, str(script), str(out), str(folder), json.dumps(options)],
        env=os.environ
        | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
            "HF_HUB_OFFLINE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found | {"log": done.stdout}


OFF = {"slidesparse": {"off": True}}


def scores(found: dict[str, Any]) -> torch.Tensor:
    return torch.tensor([value for prompt in found["scores"] for value in prompt])


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Mean difference of the log probabilities of the prompts' tokens."""
    return float((scores(one) - scores(other)).abs().mean())


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "pattern"), CASES)
class TestAgainstStock:
    def test_layers_are_taken_and_say_so(self, served, dtype, pattern):
        ours = served(dtype, pattern)
        assert "taken; " + pattern in ours["summary"], ours["summary"]
        assert ours["summary"].startswith("slidesparse 0.1.0: 12 of 12 W8A8 linears taken")
        assert ours["summary"] in ours["log"]
        assert all(name.startswith("SlideSparse") for name in ours["kernel"])

    def test_norms_and_activations_run_with_the_linears(self, served, dtype, pattern):
        ours = served(dtype, pattern)
        assert {"add_rmsnorm", "rmsnorm", "silu_mul", "quantize"} == set(ours["producers"])

    def test_results_are_those_of_stock_vllm(self, served, dtype, pattern):
        stock = served(dtype, pattern, additional=OFF)
        ours = served(dtype, pattern)
        assert stock["kernel"] != ours["kernel"]
        assert len(scores(ours)) > 500
        noise = distance(stock, served(dtype, pattern, additional=OFF, enforce_eager=True))
        found = distance(ours, stock)
        print(f"{dtype} {pattern}: stock eager against graphs {noise:.2e}, ours {found:.2e}")
        assert found <= max(3 * noise, 0.03)

    def test_eager_gives_what_graphs_give(self, served, dtype, pattern):
        graphs, eager = served(dtype, pattern), served(dtype, pattern, enforce_eager=True)
        assert eager["producers"] == ["quantize"]
        assert distance(graphs, eager) <= 0.03


@pytest.mark.slow
class TestNeverInTheWay:
    def test_without_tuning_results_vllm_serves(self, served, tmp_path):
        empty = {"slidesparse": {"cache_dir": str(tmp_path / "none")}}
        found = served("fp8", "6:8", tuned=False, additional=empty)
        assert "0 of 12 W8A8 linears taken" in found["summary"]
        stock = served("fp8", "6:8", additional=OFF)
        assert distance(found, stock) <= 1e-3
        assert found["tokens"] == stock["tokens"]

    def test_options_that_cannot_be_read_leave_the_model_to_vllm(self, served):
        found = served("fp8", "6:8", tuned=False, additional={"slidesparse": {"of": True}})
        assert (
            "slidesparse is off: additional_config's slidesparse has no option 'of'"
            in (found["log"])
        )
        assert found["tokens"] == served("fp8", "6:8", additional=OFF)["tokens"]

    def test_a_damaged_cache_leaves_the_model_to_vllm(self, served, gpu, tmp_path):
        path = TuningCache(tmp_path, detect(gpu)).path
        path.parent.mkdir(parents=True)
        path.write_text("{")
        damaged = {"slidesparse": {"cache_dir": str(tmp_path)}}
        found = served("fp8", "6:8", tuned=False, additional=damaged)
        assert str(path) in found["log"]
        assert found["tokens"] == served("fp8", "6:8", additional=OFF)["tokens"]

    def test_smallest_keeps_one_form(self, served):
        option = {"slidesparse": {"memory_format": "smallest"}}
        found = served("fp8", "6:8", additional=option)
        assert "12 of 12 W8A8 linears taken" in found["summary"]
        assert distance(found, served("fp8", "6:8", additional=OFF)) <= 0.03


@pytest.mark.slow
def test_a_graph_that_was_compiled_for_other_plans_is_not_run(served, root, tmp_path):
    """Same options, same files, one cache of compiled graphs; the tuning results grow between."""
    stock = served("fp8", "6:8", additional=OFF)
    folder, tuned = Path(stock["folder"]), tmp_path / "tuned"
    options = {"additional": {"slidesparse": {"cache_dir": str(tuned)}}}
    backends = []
    for m, names in (("16", "torch"), ("16,64,512", "torch,native")):
        shared = ("search", "--model", str(folder), "--dtype", "fp8", "--scales", "rowcol")
        limits = ("--m", m, "--patterns", "dense,6:8", "--effort", "quick", "--fresh")
        run_tool(*shared, *limits, "--backends", names, cache=tuned)
        found = probe(root, tmp_path / "out.json", folder, json.loads(json.dumps(options)))
        assert "12 of 12 W8A8 linears taken" in found["summary"]
        assert distance(found, stock) <= 0.03
        backends.append(found["backends"])
    print(f"plans of {backends[0]}, then {backends[1]}")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("pattern", ["2:4", "6:8"])
def test_two_gpus_give_what_one_gives(served, pattern):
    """K of o is 256 and of down 512: their halves end with a block of both patterns."""
    both = served("fp8", pattern, tensor_parallel_size=2)
    assert f"12 of 12 W8A8 linears taken; {pattern}" in both["log"]
    assert distance(both, served("fp8", pattern, additional=OFF)) <= 0.03
