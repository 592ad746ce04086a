"""Names of one GPU and of several."""

from __future__ import annotations

import pytest

from slidesparse.errors import UsageError
from slidesparse.gpu_family import gpu_family


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("h100", {"h100-pcie", "h100-sxm"}),
        ("NVIDIA H100", {"h100-pcie", "h100-sxm"}),
        ("h100_sxm", {"h100-sxm"}),
        ("h200", {"h200"}),
        ("V100", {"v100-sxm2-16gb", "v100-sxm2-32gb"}),
        ("a100-80gb", {"a100-80gb-pcie", "a100-80gb-sxm"}),
        ("rtx4090", {"rtx-4090"}),
        ("l4", {"l4"}),
    ],
)
def test_what_a_name_means(name: str, keys: set[str]) -> None:
    assert gpu_family(name) == keys


@pytest.mark.parametrize("name", ["h20", "", "-", "cpu"])
def test_names_of_none(name: str) -> None:
    with pytest.raises(UsageError, match="unknown GPU"):
        gpu_family(name)
