"""Memory that one test held would be missing in the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _give_memory_back() -> Iterator[None]:
    yield
    if torch.cuda.memory_reserved() > 2**33:
        torch.cuda.empty_cache()
