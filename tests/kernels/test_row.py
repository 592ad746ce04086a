"""The device code compiles: Triton's interpreter, which runs it here, takes what that refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("sm", [80, 90])
def test_every_kernel_compiles_without_a_gpu(sm: int, root: Path, tmp_path: Path) -> None:
    """For the first GPU of INT8 tensor cores with asynchronous copies, and for Hopper."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = root / "tests" / "support" / "compile_kernels.py"
    done = subprocess.run(
        [sys.executable, str(script), str(sm)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"18 kernels compiled for sm_{sm}\n"
