"""What a search says before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from slidesparse.problem import bucket_m

if TYPE_CHECKING:
    from slidesparse.bench.workload import LayerProblem
    from slidesparse.cache import TuningCache
    from slidesparse.devices import Device


def heading(model: str, devices: Sequence[Device], name: str) -> str:
    """The first line: what is searched where; on a CPU it says what that means."""
    if devices[0].is_gpu:
        many = f"{len(devices)} x " if len(devices) > 1 else ""
        return f"Searching {model} on {many}{name}"
    return (
        f"No GPU in use: searching {model} on the CPU ({name}) with reference backends and "
        "small defaults. These figures say nothing about a GPU and are filed apart."
    )


def notes(items: Sequence[LayerProblem], cache: TuningCache) -> Iterator[str]:
    """What a user should know of this search: shared buckets, results that are stale here."""
    buckets: dict[int, set[int]] = {}
    for item in items:
        buckets.setdefault(bucket_m(item.problem.m), set()).add(item.problem.m)
    for bucket, sizes in buckets.items():
        if len(sizes) > 1:
            listed = ", ".join(map(str, sorted(sizes)))
            yield f"note: M = {listed} share the bucket {bucket}; the cache keeps the last searched"
    if not cache.entries():
        for stale in cache.stale():
            yield (
                f"note: {stale.entries} results of this device are not used, they are of another "
                f"state: {'; '.join(stale.differences)}"
            )
