"""2:4 checkpoints served by vLLM on a GPU: the tokens of their dense form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: it is what runs the checkpoints")

import torch
from two_four_models import save_both
from vllm_scripts import beside_its_modules

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
}
"""What vLLM's kernels take: heads of 64, and sizes that are multiples of 16."""

SECONDS = 400
DTYPES = [torch.float8_e4m3fn, torch.int8, None]


def run(
    root: Path, out: Path, folder: Path, additional: dict[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    """Generate in a process of its own; the engine runs inside of it, so that its errors show."""
    script = root / "tests" / "support" / "vllm_generate.py"
    return subprocess.run(
        [sys.executable, str(script), str(out), str(folder), json.dumps(additional or {})],
        env=beside_its_modules(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tokens_are_those_of_the_dense_form(
    root: Path, tmp_path: Path, dtype: torch.dtype | None
) -> None:
    found = []
    for folder in save_both(tmp_path, dtype, **SIZES):
        out = tmp_path / f"{folder.name}.json"
        done = run(root, out, folder)
        assert done.returncode == 0, done.stdout
        found.append(json.loads(out.read_text()))
    packed, dense = found
    assert [tokens for tokens, _ in packed] == [tokens for tokens, _ in dense]
    assert [total for _, total in packed] == pytest.approx([total for _, total in dense], abs=1e-3)
    assert len({tuple(tokens) for tokens, _ in packed}) > 1, "prompts that all answer the same"


@pytest.mark.slow
def test_switched_off_vllm_refuses(root: Path, tmp_path: Path) -> None:
    folder, _ = save_both(tmp_path, torch.float8_e4m3fn, **SIZES)
    done = run(root, tmp_path / "out.json", folder, {"slidesparse": {"off": True}})
    assert done.returncode != 0
    assert "Sparsity support has been removed" in done.stdout, done.stdout
