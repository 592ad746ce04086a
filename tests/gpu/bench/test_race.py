"""Graphs that share a pool: one that cannot be captured costs itself only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from slidesparse.timing import GpuTimed, GraphPool, Runner

SIZE = 1 << 20


@pytest.fixture
def stream(gpu) -> Iterator[torch.cuda.Stream]:
    torch.cuda.set_device(gpu.index)
    yield torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def timed(launch: Any, stream: torch.cuda.Stream, pool: GraphPool | None) -> GpuTimed:
    runner = Runner(lambda index, handle: launch(), makes_output=True, pool=pool)
    made, first = GpuTimed.make(runner, 1, stream, float("inf"))
    assert first > 0
    return made


def waits_in_the_middle() -> torch.Tensor:
    """Runs outside a capture; in one it waits for the GPU, which the driver refuses."""
    out = torch.ones(SIZE, device="cuda")
    if torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize()
    return out + 1


class OurOwn(Exception):
    """What a runner throws in its capture without a fault of the driver."""


def throws_in_the_middle() -> torch.Tensor:
    out = torch.ones(SIZE, device="cuda")
    if torch.cuda.is_current_stream_capturing():
        raise OurOwn
    return out


@pytest.mark.parametrize("shares", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize(
    ("launch", "error"), [(waits_in_the_middle, RuntimeError), (throws_in_the_middle, OurOwn)]
)
def test_captures_go_on_after_one_that_was_refused(stream, launch, error, shares):
    """A capture that the driver refused stays open in torch before 2.12."""
    pool = GraphPool() if shares else None
    kept: list[torch.Tensor] = []

    def fills() -> torch.Tensor:
        kept[:] = [torch.full((SIZE,), 3.0, device="cuda")]
        return kept[0]

    before = timed(lambda: torch.zeros(SIZE, device="cuda"), stream, pool)
    for _ in range(2):
        with pytest.raises(error):
            timed(launch, stream, pool)
        torch.cuda.empty_cache()
        after = timed(fills, stream, pool)
        for each in (before, after):
            each.enqueue()
            assert all(us > 0 for us in each.collect())
        assert bool((kept[0] == 3).all()), "the graph that was replayed last wrote it last"
