"""Names that mean more than one GPU of the table: "h100" is the PCIe card and the SXM module."""

from __future__ import annotations

import re

from slidesparse.gpus import find_gpu, gpu_keys


def gpu_family(name: str) -> frozenset[str]:
    """Keys of the GPUs that a name means: "h100" is every H100, "h100-sxm" is one.

    Raises:
        UsageError: there is none; the message has the nearest names.
    """
    wanted = re.sub(r"[\s_-]+", "-", name.strip().lower()).removeprefix("nvidia-")
    family = frozenset(key for key in gpu_keys() if key == wanted or key.startswith(f"{wanted}-"))
    return family or frozenset({find_gpu(name).key})
