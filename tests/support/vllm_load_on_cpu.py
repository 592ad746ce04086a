"""Real vLLM models built on the CPU and filled with our random weights, for a test to look at.

Run as a script, since which platform vLLM sees is decided once per process:
    python vllm_load_on_cpu.py < a JSON object of settings
"presets": names whose configuration vLLM shall read. "cases": models to build and fill, each with
"folder", "dtype", "pattern", "system", "seed", "rank" and perhaps "quantization", which then stands
in config.json. Prints what it found as JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def preset(name: str) -> dict[str, Any]:
    """What vLLM makes of a preset's folder."""
    from vllm.engine.arg_utils import EngineArgs

    from slidesparse.bench.sweep.vllm import engine_arguments
    from slidesparse.bench.sweep.vllm_model import serve

    job = job_of({"folder": name, "dtype": "int8", "pattern": "6:8", "system": "stock"})
    served = serve(job)
    config = EngineArgs(**engine_arguments(job, served)).create_engine_config()
    model, parallel = config.model_config, config.parallel_config
    return {
        "architecture": model.architecture,
        "hidden": model.get_hidden_size(),
        "head_dim": model.get_head_size(),
        "heads": model.get_num_attention_heads(parallel),
        "kv_heads": model.get_total_num_kv_heads(),
        "layers": model.get_total_num_hidden_layers(),
        "vocab": model.get_vocab_size(),
        "dtype": str(model.dtype),
        "quantization": model.quantization,
        "longest": int(model.hf_config.max_position_embeddings),
        "eps": model.hf_config.rms_norm_eps,
        "tied": model.hf_config.tie_word_embeddings,
        "rope": str(getattr(model.hf_config, "rope_parameters", None)),
        "max_batched": config.scheduler_config.max_num_batched_tokens,
        "max_model_len": model.max_model_len,
        "prefix_caching": config.cache_config.enable_prefix_caching,
    }


def job_of(case: dict[str, Any]) -> Any:
    from slidesparse.bench.sweep.job import Job, Mode, Stage, System, Variant
    from slidesparse.pattern import Pattern
    from slidesparse.problem import parse_dtype

    variant = Variant(System(case["system"]), Pattern.parse(case["pattern"]))
    dtype, seed = parse_dtype(case["dtype"]), case.get("seed", 0)
    sizes = {"ms": (512, 65536), "prompt": 1024, "outputs": 1, "repeats": 3, "seed": seed}
    return Job(Stage.PREFILL, case["folder"], 1, dtype, variant, Mode.EAGER, **sizes)


def fill(case: dict[str, Any]) -> dict[str, Any]:
    """Build and fill one model; what each parameter holds, and what the worker says of it."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    from slidesparse.bench.sweep.vllm import engine_arguments
    from slidesparse.bench.sweep.vllm_model import serve
    from slidesparse.bench.sweep.vllm_worker import describe

    job = job_of(case)
    arguments = engine_arguments(job, serve(job))
    if "quantization" in case:
        folder = Path(tempfile.mkdtemp())
        config = json.loads((Path(case["folder"]) / "config.json").read_text())
        config["quantization_config"] = case["quantization"]
        (folder / "config.json").write_text(json.dumps(config))
        arguments["model"] = str(folder)
    config = EngineArgs(**arguments).create_engine_config()
    with set_current_vllm_config(config):
        if not parallel_state.model_parallel_is_initialized():
            place = f"file://{tempfile.mkdtemp()}/store"
            parallel_state.init_distributed_environment(1, 0, place, 0, "gloo")
        else:
            # A model with experts has a group more than one without.
            parallel_state.destroy_model_parallel()
        parallel_state.ensure_model_parallel_initialized(1, 1)
        with set_default_torch_dtype(torch.bfloat16):
            model = initialize_model(vllm_config=config)
        get_model_loader(config.load_config).load_weights(model, config.model_config)
    found = {name: look(value.data) for name, value in model.named_parameters()}
    return {"parameters": found, "said": describe(model)}


def look(value: Any) -> dict[str, Any]:
    """Statistics of one tensor, and a digest of its bytes."""
    import torch

    from slidesparse.slide import detect_pattern

    raw = value.contiguous().view(torch.uint8) if value.ndim else value.reshape(1).view(torch.uint8)
    values = value.double()
    said: dict[str, Any] = {
        "shape": list(value.shape),
        "dtype": str(value.dtype),
        "digest": hashlib.sha256(raw.numpy().tobytes()).hexdigest(),
        "mean": float(values.mean()),
        "std": float(values.std(correction=0)),
        "least": float(values.min()),
    }
    if value.ndim >= 2:
        largest = values.abs().amax(dim=-1)
        said |= {
            "row_top": [float(largest.min()), float(largest.max())],
            "zeros": float((values == 0).double().mean()),
            "pattern": str(detect_pattern(value.reshape(-1, value.shape[-1]))),
        }
    return said


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """All that was asked for."""
    from slidesparse.bench.sweep.vllm_compat import prepare

    prepare()
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    vllm.platforms._current_platform = CpuPlatform()
    import slidesparse.bench.sweep.vllm_worker  # noqa: F401  # As vLLM does in each worker.

    return {
        "presets": {name: preset(name) for name in settings.get("presets", ())},
        "cases": [fill(case) for case in settings.get("cases", ())],
    }


if __name__ == "__main__":
    print("\n" + json.dumps(main(json.load(sys.stdin))))
