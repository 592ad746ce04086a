"""The blocks of README and docs/accuracy.md that are made of an evaluation's result file."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from accuracy_records import make_accuracy

from slidesparse.bench.accuracy.record import read_json, write_json
from slidesparse.errors import UsageError

SOURCE = (
    "SmolLM2-135M in float32 on NVIDIA H200; 51,175 tokens of evaluation.txt, windows of 2048; "
    "calibrated on 262,144 tokens of calibration.txt; measured in 123 s on 2026-03-03 "
    "(commit 0123456789ab)."
)
SUMMARY = f"""\
| pattern | zeros | magnitude | Wanda |
| --- | ---: | ---: | ---: |
| dense | 0 % | 20.09 / 20.50 |  |
| 6:8 | 25 % | 39.50 / > 1e300 | 31.06 / 12,346 |

Perplexity, pruned only / W8A8 fp8_e4m3. {SOURCE}
"""


def block(name: str, text: str = "") -> str:
    return f"<!-- table: {name} -->\n{text}<!-- end table -->"


def test_perplexities_by_pattern_and_method(readme_tables: ModuleType, tmp_path: Path) -> None:
    write_json(make_accuracy(), tmp_path / "accuracy.json")
    assert readme_tables.render(block("accuracy")) == block("accuracy", SUMMARY)


def test_everything_that_was_measured(readme_tables: ModuleType, tmp_path: Path) -> None:
    write_json(make_accuracy(), tmp_path / "accuracy.json")
    lines = readme_tables.render(block("details-accuracy")).splitlines()
    assert lines[1] == (
        "| pattern | method | W8A8 | zeros | perplexity | loss increase | same token | KL |"
    )
    assert lines[3] == "| dense | - | - | 0.0 % | 20.09 | 0.0000 | 100.00 % | 0.0000 |"
    assert lines[4] == "| dense | - | fp8_e4m3 | 0.0 % | 20.50 | 0.0000 | 100.00 % | 0.0042 |"
    assert (
        "| 6:8 | wanda | - | 25.0 % | 31.06 | 0.2500 +- 0.0123 | 87.50 % | 0.0000 |" in lines[5:9]
    )
    assert lines[9].startswith("| recipe, 6:8 | wanda | - | 25.0 % | 25.00 |")
    assert lines[-2].startswith("Loss increase: nats per token over the dense model")
    assert lines[-2].endswith(SOURCE)


def test_a_missing_result_is_named(readme_tables: ModuleType) -> None:
    for name in ("accuracy", "details-accuracy"):
        with pytest.raises(UsageError, match=r"cannot read .*accuracy.json: No such file"):
            readme_tables.render(block(name))


def test_every_committed_evaluation_is_whole(root: Path) -> None:
    """Of the table that the issue asks for: each pattern with each method in each dtype."""
    for file in sorted((root / "bench" / "results").glob("*/accuracy*.json")):
        record = read_json(file)
        assert not record.interrupted, file
        assert len(record.commit) == 40, file
        assert record.calibration is not None, file
        assert record.calibration.sha256 != record.evaluation.sha256, file
        assert len(record.rows) == 3 + 4 * 3 * 3, file
        assert all(row.perplexity for row in record.rows), file
