"""Plans of presets, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from slidesparse.capacity import Settings
from slidesparse.capacity.settings import default_batched_tokens
from slidesparse.gpus import find_gpu
from slidesparse.models import load_model

Make = Callable[..., Settings]


@pytest.fixture(scope="session")
def make_settings() -> Make:
    """Settings of a preset on a GPU, with few and short sequences unless told."""

    def make(model: str = "qwen3-14b", gpu: str = "h100-sxm", **changes: Any) -> Settings:
        spec = find_gpu(gpu)
        given = {"max_seqs": 32, "context": 4096, **changes}
        given.setdefault("batch", given["max_seqs"])
        given.setdefault("batched_tokens", default_batched_tokens(spec))
        return Settings(load_model(model), spec, **given)

    return make
