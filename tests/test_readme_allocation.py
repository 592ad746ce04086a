"""The block of docs/allocation.md is made of its result file, rendered exactly."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from allocation_records import make_record

from slidesparse.bench.allocation.record import read_json, write_json

BLOCK = """<!-- table: allocation-tiny -->
| | GEMMs, ms | speedup | zeros | predicted, nats | measured, nats | perplexity |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| dense | 0.006 | 1.000 | 0.0 % | +0.0000 | +0.0000 +- 0.0000 | 12.18 |
| chosen | 0.005 | 1.200 | 25.0 % | +0.0200 | +0.0300 +- 0.0040 | 12.55 |

* is uniform 6:8

"""


def test_the_block_is_made_of_the_result_file(readme_tables: ModuleType, tmp_path: Path) -> None:
    write_json(make_record(), tmp_path / "allocation-tiny.json")
    made = readme_tables.render("<!-- table: allocation-tiny -->\n<!-- end table -->\n")
    assert made.startswith(BLOCK)
    rest = made.removeprefix(BLOCK)
    assert "The choice costs 1.50 of what was predicted" in rest
    assert "1 linears stay dense and are in no time" in rest
    assert rest.endswith(
        " tiny, NVIDIA H200; 2 s on 2026-03-03 (commit 0123).\n<!-- end table -->\n"
    )


def test_committed_choices_beat_uniform_six_of_eight_or_say_why_not(root: Path) -> None:
    files = sorted((root / "bench" / "results").glob("*/allocation-*.json"))
    assert files
    for file in files:
        record = read_json(file)
        assert any(" uniform 6:8" in verdict for verdict in record.verdicts), file
