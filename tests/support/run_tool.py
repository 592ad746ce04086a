"""The command of the package in a process of its own, as a user has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECONDS = 400


def run_tool(*arguments: str, cache: Path, seconds: float = SECONDS) -> str:
    """Run `slidesparse ARGUMENTS`, the one that is installed; what it prints.

    Args:
        arguments: of the command.
        cache: where tuning results live.
        seconds: after which it has failed.

    Raises:
        AssertionError: it failed; says what it printed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "slidesparse", *arguments],
        env=os.environ
        | {
            "SLIDESPARSE_CACHE_DIR": str(cache),
            "HF_HUB_OFFLINE": "1",
            # The folder that is current may be the checkout, whose layout is another one.
            "PYTHONSAFEPATH": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout
