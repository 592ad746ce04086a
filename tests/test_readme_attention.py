"""The page's figures of attention come from their result file, or say that there is none."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from attention_records import make_record

from slidesparse.bench.attention.record import write_json

EMPTY = "<!-- table: attention -->\nold\n<!-- end table -->\n"


def test_without_a_result_file_the_block_says_how_to_make_it(readme_tables: ModuleType) -> None:
    made = readme_tables.render(EMPTY)
    assert made == (
        "<!-- table: attention -->\nNot measured yet: `slidesparse bench attention --targets "
        "3.82,3.0,2.0 --json attention.json` on the GPU makes this table.\n<!-- end table -->\n"
    )
    assert readme_tables.render(made) == made


def test_the_block_is_made_of_the_result_file(readme_tables: ModuleType, tmp_path: Path) -> None:
    write_json(make_record(), tmp_path / "attention.json")
    lines = readme_tables.render(EMPTY).splitlines()
    assert lines[3:8] == [
        "| full | flash | 21.463 | 223.57 | 13.973 | 615 | 300 | 57 | 61 | 8 | 1755 | 690 |",
        "| full | fa3-vllm | 18.000 | 187.50 | 11.719 | 733 | 358 | 68 | 61 | 8 | 1755 | 690 |",
        "| full | bound (tensor cores) | 12.325 | 128.38 | 8.024 | 1,071 | 523 | 100 | - | - | - "
        "| - |",
        "| causal | flash | 11.000 | 114.58 | 7.161 | 600 | 586 | 56 | - | - | - | - |",
        "| causal | bound (tensor cores) | 6.164 | 64.21 | 4.013 | 1,071 | 1,045 | 100 | - | - | "
        "- | - |",
    ]
    assert len({line.count("|") for line in lines[1:8]}) == 1
    assert "* math memory: it needs at least 192.0 GiB" in lines
    assert lines[-2].endswith(
        "NVIDIA H200, torch 2.11.0; measured in 42 s on 2026-03-03 (commit 0123456789ab)."
    )


def test_the_page_has_the_block(readme_tables: ModuleType, root: Path) -> None:
    assert "docs/attention.md" in readme_tables.PAGES
    assert "<!-- table: attention -->" in (root / "docs" / "attention.md").read_text()
