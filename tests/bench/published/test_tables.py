"""Published tables: read exactly, aligned with our own rows, refused with line and column."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import sweep_records
from published_tables import GEMMS, STEPS, write_table

from slidesparse.bench.kinds import read_results
from slidesparse.bench.published.record import AS_SPARSE, rows, write_json
from slidesparse.bench.published.tables import SOURCE, import_table
from slidesparse.bench.search.rows import gemm_workload
from slidesparse.bench.sweep.rows import rows as sweep_rows
from slidesparse.errors import UsageError
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem


def refusal(folder: Path, text: str, gpu: str = "H100") -> str:
    with pytest.raises(UsageError) as caught:
        import_table(write_table(folder, text), gpu)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_steps_stand_beside_those_of_a_sweep(tmp_path: Path) -> None:
    done = import_table(write_table(tmp_path, STEPS), "h100")
    assert done.left_out == {"SomethingElse-3B is no preset": 1}
    published = {row.key: row for row in rows(done.record)}
    assert [row.value for row in published.values()] == [50000.5, 60000.0, 9000.25]
    ours = {row.key: row for row in sweep_rows(sweep_records.make_record())}
    both = [(ours[key].variant, row.value) for key, row in published.items() if key in ours]
    assert both == [({"system": "stock", "pattern": "dense"}, 50000.5)]
    dense, sparse, _ = published.values()
    assert dense.workload == sparse.workload
    assert dict(sparse.variant) == {"system": "ours", "pattern": "6:8"}
    assert sparse.tokens_per_s == 60000.0


def test_the_record_names_its_source(tmp_path: Path) -> None:
    path = write_table(tmp_path, STEPS)
    record = import_table(path, "H100").record
    assert record.source == SOURCE
    assert "arXiv 2603.05232" in SOURCE
    assert record.settings["table"] == "table.csv"
    assert record.settings["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "not in the table" in record.settings["assumed"]
    assert import_table(path, "H100", "somebody").record.source == "somebody"
    assert (record.fingerprint, record.machine) == (None, "H100 (published)")


def test_gemms_stand_beside_those_of_a_search(tmp_path: Path) -> None:
    done = import_table(write_table(tmp_path, GEMMS), "H100")
    assert done.left_out == {
        "BF16 is not W8A8": 1,
        "SQUARE is no preset": 1,
        "qwen2.5-7b has no linear of 1000 x 3584": 1,
    }
    found = {(row.workload["layer"], *row.variant.values()): row for row in rows(done.record)[:3]}
    assert {key: row.value for key, row in found.items()} == {
        ("qkv", "best dense"): 100.5,
        ("qkv", "best sparse"): 80.25,
        ("qkv", AS_SPARSE): 120.0,
    }
    problem = GemmProblem(4096, 4608, 3584, DType.FP8, DType.BF16, pattern=Pattern.parse("6:8"))
    assert found["qkv", "best sparse"].workload == gemm_workload("qwen2.5-7b", "qkv", 4096, problem)
    assert found["qkv", AS_SPARSE].workload["pattern"] == "dense"


def test_outputs_of_int8_are_those_of_the_libraries(tmp_path: Path) -> None:
    dense, sparse = rows(import_table(write_table(tmp_path, GEMMS), "H100").record)[3:]
    assert (dense.workload["layer"], dense.workload["out"]) == ("down", "int32")
    assert (sparse.workload["out"], sparse.workload["pattern"]) == ("bf16", "14:16")


@pytest.mark.parametrize("text", [STEPS, GEMMS])
def test_a_file_comes_back_whole(tmp_path: Path, text: str) -> None:
    record = import_table(write_table(tmp_path, text), "H100").record
    path = tmp_path / "published.json"
    write_json(record, path)
    assert read_results(path).record == record


def test_another_gpu_of_the_table(tmp_path: Path) -> None:
    done = import_table(write_table(tmp_path, GEMMS), "a100")
    (row,) = rows(done.record)
    assert (row.workload["model"], row.workload["layer"]) == ("bitnet-2b", "o")


def changed(line: int, before: str, after: str, text: str = STEPS) -> str:
    lines = text.splitlines()
    assert before in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(before, after, 1)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            changed(3, "60000.0", "fast"),
            "line 3, column 'tokens_per_s': 'fast' is not a positive number",
        ),
        (changed(3, "60000.0", "-1"), "line 3, column 'tokens_per_s': '-1' is not a positive"),
        (changed(3, "60000.0", "nan"), "line 3, column 'tokens_per_s': 'nan' is not a positive"),
        (changed(3, "60000.0", "0.000"), "line 3, column 'tokens_per_s': '0.000' is not a pos"),
        (changed(3, "4096", "-5"), "line 3, column 'm': '-5' is not a positive whole number"),
        (changed(3, "4096", "4k"), "line 3, column 'm': '4k' is not a positive whole number"),
        (changed(3, "4096", f"{2**31}"), "line 3, column 'm': 2147483648 is over 2147483647"),
        (changed(3, "4096", "9" * 5000), "line 3, column 'm': 99999999999999999... is over 2"),
        (changed(3, "Qwen2.5-7B", " "), "line 3, column 'model': it is empty; name the model"),
        (changed(1, "dtype", "gpu"), "line 1: two columns are named 'gpu'; keep one"),
        (changed(3, "prefill", "both"), "line 3, column 'stage': 'both' is not a valid Stage"),
        (changed(3, "6:8", "6:9"), "line 3, column 'pattern': pattern 6:9 is not of the"),
        (changed(3, "FP8", "FP4"), "line 3, column 'dtype': unknown dtype 'FP4'; use fp8 or int8"),
        (changed(3, ",60000.0", ""), "line 3: 6 columns, the header has 7"),
        (changed(3, "6:8", "dense"), "line 3 is about the same as line 2: "),
        (changed(1, "stage", "phase"), "line 1: its columns are those of no known table (gpu,ph"),
        (
            changed(2, "4608", "0", GEMMS),
            "line 2, column 'n': '0' is not a positive whole number",
        ),
        (
            changed(2, "100.5", "inf", GEMMS),
            "line 2, column 'latency_us': 'inf' is not a positive number",
        ),
        (STEPS.splitlines()[0] + "\n", "no lines after the header"),
        ("", "no lines after the header"),
    ],
)
def test_bad_tables_name_line_and_column(tmp_path: Path, text: str, reason: str) -> None:
    assert refusal(tmp_path, text).startswith(f"{tmp_path / 'table.csv'}: {reason}")


def test_gpus_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    assert refusal(tmp_path, STEPS, "H1000") == (
        f"{path} has no GPU 'H1000'; did you mean H100? It has H100, A100"
    )
    assert refusal(tmp_path, STEPS, "zzz") == f"{path} has no GPU 'zzz'; it has H100, A100"


def test_a_table_of_which_nothing_has_a_place(tmp_path: Path) -> None:
    header, first = STEPS.splitlines()[:2]
    text = f"{header}\n{first.replace('Qwen2.5-7B', 'SQUARE')}\n"
    assert refusal(tmp_path, text) == (
        f"{tmp_path / 'table.csv'} has nothing of H100 that stands beside figures of ours: "
        "SQUARE is no preset"
    )


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(UsageError, match="No such file or directory"):
        import_table(path, "H100")
    with pytest.raises(UsageError, match="Is a directory"):
        import_table(tmp_path, "H100")
    path.write_bytes(b"gpu,stage\n\xff\xfe\n")
    with pytest.raises(UsageError, match="is no CSV"):
        import_table(path, "H100")
    path.write_text('gpu,stage\n"H100\n')
    with pytest.raises(UsageError, match="is no CSV"):
        import_table(path, "H100")


def test_the_committed_file_is_small_and_beside_our_models(root: Path) -> None:
    path = root / "bench" / "results" / "published" / "h100-end-to-end.json"
    assert path.stat().st_size < 200_000
    found = read_results(path)
    assert "arXiv 2603.05232" in found.record.source
    assert {row.workload["model"] for row in found.rows} == {
        *("bitnet-2b", "llama3.2-1b", "llama3.2-3b", "qwen2.5-7b", "qwen2.5-14b"),
    }
    assert len(found.rows) == 580
