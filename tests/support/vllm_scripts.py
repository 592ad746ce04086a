"""Running a script of this folder with a real vLLM on the CPU, where vLLM is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 300
"""Seconds; importing vLLM takes ten of them."""

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Of a model small enough to build on a CPU; K = 704 is no multiple of 10."""


def require_vllm() -> None:
    """Skip the module that calls this, saying why, where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip(
            "vLLM is not installed: nothing here ran; pip install 'slidesparse[vllm]'",
            allow_module_level=True,
        )


def write_config(folder: Path, **changes: Any) -> Path:
    """A model's folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def beside_its_modules(**changes: str) -> dict[str, str]:
    """An environment in which a script of this folder finds the modules that lie beside it."""
    return {**os.environ, "PYTHONSAFEPATH": "", **changes}


def run_script(name: str, cache: Path, settings: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """What a script prints as JSON in its last line.

    Args:
        name: of the file in this folder.
        cache: folder for what it caches.
        settings: that it reads from its input.
        arguments: of the command.
    """
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(name)), *arguments],
        input=json.dumps(settings),
        env=beside_its_modules(SLIDESPARSE_CACHE_DIR=str(cache), VLLM_CACHE_ROOT=str(cache)),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-4000:]
    assert lines, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(lines[-1])
    return found
