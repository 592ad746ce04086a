"""The folders that vLLM's engine serves: presets in full, given ones checked against the job."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm_scripts import write_config

from slidesparse.bench.sweep.job import Job, Mode, Stage, System, Variant
from slidesparse.bench.sweep.vllm_model import preset_config, quantised_config, serve
from slidesparse.checkpoint.config import provenance, quantisation
from slidesparse.errors import ModelError
from slidesparse.models import load_model, preset_names, spec_from_config
from slidesparse.pattern import DENSE, Pattern
from slidesparse.problem import DType

SIX = Pattern.parse("6:8")
SERVED = (
    "llama3.1-8b",
    "llama3.2-1b",
    "llama3.2-3b",
    "qwen2.5-14b",
    "qwen2.5-7b",
    "qwen3-14b",
    "qwen3-30b-a3b",
    "qwen3-8b",
)
JOB = Job(
    stage=Stage.PREFILL,
    model="qwen2.5-7b",
    tp=1,
    dtype=DType.FP8,
    variant=Variant(System.OURS, SIX),
    mode=Mode.GRAPHS,
    ms=(512,),
    prompt=512,
    outputs=1,
    repeats=3,
    seed=0,
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(tmp_path / "cache"))


def folder_job(folder: Path, **changes: Any) -> Job:
    return replace(JOB, model=str(folder), **changes)


@pytest.mark.parametrize("name", SERVED)
def test_a_preset_has_the_sizes_that_the_library_knows(name: str) -> None:
    config = preset_config(name)
    spec = load_model(name)
    assert spec_from_config(config, name, spec.source, name) == spec
    assert config["head_dim"] == spec.head_dim
    for key in ("rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings"):
        assert key in config
    assert config["torch_dtype"] == "bfloat16"
    assert "source" not in config


@pytest.mark.parametrize("name", SERVED)
def test_transformers_reads_a_preset(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = preset_config(name)
    read = transformers.AutoConfig.for_model(**config)
    for key in ("hidden_size", "head_dim", "num_key_value_heads", "vocab_size", "rms_norm_eps"):
        assert getattr(read, key, config[key]) == config[key]


def test_other_presets_are_refused_by_name() -> None:
    for name in set(preset_names()) - set(SERVED):
        with pytest.raises(ModelError, match=rf"{name} cannot be served.*qwen2\.5-7b"):
            preset_config(name)


def test_a_preset_is_written_as_a_conversion_leaves_it() -> None:
    served = serve(JOB)
    config = json.loads((served.folder / "config.json").read_text())
    assert served.random
    assert served.longest == 131072
    assert served.folder.name == "qwen2.5-7b"
    assert config["quantization_config"] == quantisation(DType.FP8, ("lm_head",))
    ours = provenance(config)
    assert ours is not None
    assert (ours.pattern, ours.dtype) == (SIX, DType.FP8)


def test_the_same_job_has_the_same_folder_and_another_one_another() -> None:
    first = serve(JOB).folder
    assert serve(replace(JOB, ms=(16,), mode=Mode.EAGER)).folder == first
    # Stock on pruned weights is the same model.
    assert serve(replace(JOB, variant=Variant(System.STOCK, SIX))).folder == first
    assert serve(replace(JOB, dtype=DType.INT8)).folder != first
    assert serve(replace(JOB, variant=Variant(System.OURS))).folder != first
    assert [path.name for path in first.iterdir()] == ["config.json"]


def test_routers_of_experts_are_not_quantised() -> None:
    name = "qwen3-30b-a3b"
    made = quantised_config(preset_config(name), JOB, load_model(name))
    (pattern,) = (name for name in made["quantization_config"]["ignore"] if name != "lm_head")
    assert pattern.startswith("re:")
    assert re.match(pattern[3:], "model.layers.3.mlp.gate")
    assert not re.match(pattern[3:], "model.layers.3.mlp.gate_up_proj")
    assert not re.match(pattern[3:], "model.layers.3.mlp.experts.0.gate_proj")


def test_a_folder_without_weights_gets_random_ones(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "tiny", quantization_config={"quant_method": "gptq"})
    served = serve(folder_job(folder))
    assert served.random
    assert served.longest == 8192
    config = json.loads((served.folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert json.loads((folder / "config.json").read_text())["quantization_config"] == {
        "quant_method": "gptq"
    }


def with_weights(folder: Path, dtype: DType | None, pattern: Pattern) -> Path:
    job = folder_job(folder, dtype=dtype or DType.FP8, variant=Variant(System.OURS, pattern))
    write_config(folder)
    if dtype is not None:
        spec = load_model(str(folder))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(quantised_config(config, job, spec)))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_weights_that_fit_are_served_as_they_are(tmp_path: Path) -> None:
    folder = with_weights(tmp_path / "made", DType.FP8, SIX)
    served = serve(folder_job(folder))
    assert (served.folder, served.random) == (folder, False)


@pytest.mark.parametrize(
    ("dtype", "pattern", "message"),
    [
        (None, SIX, "holds no W8A8 weights, not fp8_e4m3"),
        (DType.INT8, SIX, "holds int8 weights, not fp8_e4m3"),
        (DType.FP8, DENSE, "is pruned to dense, not 6:8"),
    ],
)
def test_other_weights_are_refused(
    dtype: DType | None, pattern: Pattern, message: str, tmp_path: Path
) -> None:
    folder = with_weights(tmp_path / "made", dtype, pattern)
    with pytest.raises(ModelError, match=f"{message}.*--pattern 6:8 --dtype fp8"):
        serve(folder_job(folder))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    file = write_config(tmp_path / "tiny") / "config.json"
    with pytest.raises(ModelError, match="takes a preset or a folder"):
        serve(folder_job(file))
