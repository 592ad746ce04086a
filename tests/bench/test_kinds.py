"""Any result file is read by one reader; what is none is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from result_files import KINDS, WRITERS, write_kind

from slidesparse.bench import kinds as module
from slidesparse.bench.kinds import read_results
from slidesparse.bench.rows import Row
from slidesparse.candidate import Provenance
from slidesparse.errors import UsageError


def module_of(kind: str) -> ModuleType:
    return next(each for each in module.kind_modules() if each.FORM.kind.kind == kind)


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_results(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_each_kind_is_read(kind: str, tmp_path: Path) -> None:
    path = write_kind(kind, tmp_path)
    found = read_results(path)
    data = json.loads(path.read_text())
    assert (found.path, found.kind) == (path, kind)
    assert (found.commit, found.created) == (data["commit"], data["created"])
    assert dict(found.settings) == data["settings"]
    assert found.rows
    check_rows(found.rows)
    if found.fingerprint is None:
        assert found.machine == found.record.machine
        assert dict(found.versions) == data.get("versions", {})
    else:
        assert found.machine == "NVIDIA H200"
        assert found.versions["cublaslt"] == "13.1.0"
        own = data.get("versions", {})
        assert found.versions["slidesparse"] == own.get("slidesparse", data["version"])


def test_nobody_here_measured_published_figures(tmp_path: Path) -> None:
    found = read_results(write_kind("slidesparse-published", tmp_path))
    assert (found.machine, found.fingerprint) == ("H100 (published)", None)
    assert dict(found.versions) == {"vllm": "0.13"}
    assert {row.provenance for row in found.rows} == {Provenance.PUBLISHED}


def test_two_figures_of_one_thing(tmp_path: Path) -> None:
    path = write_kind("slidesparse-linear-bench", tmp_path)
    data = json.loads(path.read_text())
    data["rows"].append(data["rows"][0])
    path.write_text(json.dumps(data))
    said = refusal(path)
    assert said.startswith(f"{path} is damaged: it gives time of what=linear model=")
    assert " twice: " in said


def check_rows(rows: tuple[Row, ...]) -> None:
    """What every kind's rows must be."""
    keys = [row.key for row in rows]
    assert len(keys) == len(set(keys)), "two rows are about the same"
    for row in rows:
        assert next(iter(row.workload)) == "what"
        assert row.variant
        assert row.spread is None or row.spread >= 0
        for name in ("machine", "gpu", "commit", "candidate", "device"):
            assert name not in row.workload
    for what in {row.workload["what"] for row in rows}:
        orders = {tuple(row.workload) for row in rows if row.workload["what"] == what}
        assert len(orders) == 1, f"{what}: {orders}"


def test_versions_of_a_sweep_name_vllm(tmp_path: Path) -> None:
    found = read_results(write_kind("slidesparse-sweep", tmp_path))
    assert found.versions["vllm"] == "0.25.1"
    assert found.versions["torch"] == "2.11.0"


def test_committed_files_are_read(root: Path) -> None:
    paths = sorted((root / "bench" / "results").rglob("*.json"))
    assert len(paths) >= 13
    for path in paths:
        found = read_results(path)
        check_rows(found.rows)
        assert found.machine == ("NVIDIA H200" if found.fingerprint else "H100 (published)")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1, 2]", "{path} is not a result file"),
        ("{}", "{path} is not a result file: it names no kind"),
        ('{"kind": 3}', "{path} is of an unknown kind 3; known: slidesparse-search, "),
        (
            '{"kind": "slidesparse-serach"}',
            "{path} is of an unknown kind 'slidesparse-serach'; did you mean 'slidesparse-search'?",
        ),
        ('{"kind": "zzz"}', "{path} is of an unknown kind 'zzz'; known: slidesparse-search, "),
        ("kind,m\nx,1\n", "{path} is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("", "{path} is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("\x00\x01", "{path} is not JSON: "),
        ("[" * 100_000, "{path} is not JSON: "),
        (
            '{"kind": "slidesparse-sweep", "schema_version": 2}',
            "{path} has schema version 2, this is 1; update slidesparse",
        ),
        (
            '{"kind": "slidesparse-effort-comparison", "schema_version": 0}',
            "{path} has schema version 0, this is 2; measure again with scripts/compare_efforts.py",
        ),
        (
            '{"kind": "slidesparse-sweep", "schema_version": 1}',
            "{path} is damaged: it lacks 'commit'",
        ),
    ],
)
def test_what_is_no_result_file(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    assert refusal(path).startswith(reason.format(path=path))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "no.json"
    assert refusal(path) == f"cannot read {path}: No such file or directory"
    assert refusal(tmp_path) == f"cannot read {tmp_path}: Is a directory"


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file(kind: str, tmp_path: Path) -> None:
    path = write_kind(kind, tmp_path)
    content = path.read_bytes().rstrip()
    for share in (0.01, 0.5, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        assert refusal(path).startswith(f"{path} is not JSON: ")


def test_modules_say_what_a_kind_needs() -> None:
    found = list(module.kind_modules())
    assert len({each.FORM.kind.kind for each in found}) == len(module.MODULES)
    for each in found:
        assert all(callable(getattr(each, name)) for name in ("read_json", "rows"))
        newest = each.FORM.schemas()[each.FORM.kind.schema_version]
        assert {"commit", "version", "created"} <= set(newest["required"])


@pytest.mark.parametrize("kind", WRITERS)
def test_a_record_comes_back_as_it_was_written(kind: str, tmp_path: Path) -> None:
    write, make = WRITERS[kind]
    record, path = make(), tmp_path / "file.json"
    write(record, path)
    assert module_of(kind).read_json(path) == record


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_others_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text('{"kind": "slidesparse-other", "schema_version": 1}')
    each = module_of(kind)
    with pytest.raises(UsageError) as caught:
        each.read_json(path)
    assert str(caught.value) == f"{path} is not a result file of {each.FORM.kind.command}"


def test_the_page_names_every_kind(root: Path) -> None:
    page = (root / "docs" / "results.md").read_text()
    missing = [
        each.FORM.kind.kind
        for each in module.kind_modules()
        if f"`{each.FORM.kind.kind}`" not in page
    ]
    assert not missing, f"add them to docs/results.md: {missing}"
