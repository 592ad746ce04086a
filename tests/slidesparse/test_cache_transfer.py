"""TuningCache: stale results, clearing, and moving results between machines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slidesparse.cache import TuningCache
from slidesparse.errors import CacheError
from slidesparse.serialize import to_plain


def reopened(cache: TuningCache) -> TuningCache:
    """The same cache as another process would see it."""
    return TuningCache(cache.root, cache.fingerprint)


class TestStale:
    def test_same_gpu_with_other_versions(self, cache: TuningCache, make_result: Any) -> None:
        cache.put(make_result())
        newer = replace(cache.fingerprint, cublaslt="13.2.0", torch="2.12.0")
        upgraded = TuningCache(cache.root, newer)
        assert not upgraded.user_entries()
        (stale,) = upgraded.stale()
        assert stale.path == cache.directory
        assert stale.entries == 1
        assert stale.differences == (
            "cublaslt 13.2.0 here, 13.1.0 there",
            "torch 2.12.0 here, 2.11.0 there",
        )
        other_gpu = TuningCache(cache.root, replace(newer, name="NVIDIA B200"))
        assert other_gpu.stale() == []

    def test_clear_stale_leaves_the_own_results(self, cache: TuningCache, make_result: Any) -> None:
        cache.put(make_result())
        upgraded = TuningCache(cache.root, replace(cache.fingerprint, driver="600.0"))
        upgraded.put(make_result())
        assert [item.path for item in upgraded.clear_stale()] == [cache.directory]
        assert not cache.directory.exists()
        assert len(reopened(upgraded).user_entries()) == 1

    def test_foreign_things_in_the_root_do_not_matter(
        self, cache: TuningCache, make_result: Any
    ) -> None:
        cache.put(make_result())
        (cache.root / "file").write_text("")
        (cache.root / "empty").mkdir()
        (cache.root / "copy").mkdir()
        other = to_plain(replace(cache.fingerprint, torch="1"))
        (cache.root / "copy" / "fingerprint.json").write_text(json.dumps(other))
        assert cache.stale() == []


class TestClear:
    def test_removes_what_is_ours(self, cache: TuningCache, make_result: Any) -> None:
        cache.put_many([make_result(m=16), make_result(m=64)])
        cache.journal_directory.mkdir()
        (cache.journal_directory / "x.jsonl").write_text("{}")
        (cache.directory / "gemm.json.corrupt-1").mkdir()
        assert cache.clear() == 2
        assert not cache.directory.exists()
        assert not cache.entries()
        cache.put(make_result())

    def test_leaves_what_is_not(self, cache: TuningCache, make_result: Any) -> None:
        cache.put(make_result())
        (cache.directory / "notes.txt").write_text("mine")
        cache.clear()
        assert [path.name for path in cache.directory.iterdir()] == ["notes.txt"]


class TestTransfer:
    def elsewhere(self, cache: TuningCache) -> TuningCache:
        return TuningCache(cache.root.parent / "other", cache.fingerprint)

    def test_export_then_import(self, cache: TuningCache, tmp_path: Path, make_result: Any) -> None:
        cache.put_many([make_result(m=16), make_result(m=64)])
        assert cache.export(tmp_path / "all.json") == 2
        other = self.elsewhere(cache)
        report = other.import_file(tmp_path / "all.json")
        assert (len(report.added), report.replaced, report.kept) == (2, (), ())
        assert {k: to_plain(v) for k, v in other.user_entries().items()} == {
            k: to_plain(v) for k, v in cache.user_entries().items()
        }

    def test_own_entries_stay_unless_told(
        self, cache: TuningCache, tmp_path: Path, make_result: Any
    ) -> None:
        cache.put_many([make_result(m=16, us=3.0), make_result(m=64)])
        cache.export(tmp_path / "all.json")
        other = self.elsewhere(cache)
        other.put(make_result(m=16, us=5.0))
        key = make_result().problem.key
        report = other.import_file(tmp_path / "all.json")
        assert (report.kept, len(report.added)) == ((key,), 1)
        assert other.user_entries()[key].ranked[0].median_us == 5.0
        report = other.import_file(tmp_path / "all.json", overwrite=True)
        assert (len(report.replaced), report.added, report.kept) == (2, (), ())
        assert reopened(other).user_entries()[key].ranked[0].median_us == 3.0

    def test_nothing_to_export(self, cache: TuningCache, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match=r"nothing to export: no entries in .*; run"):
            cache.export(tmp_path / "all.json")

    def test_export_into_a_missing_directory(
        self, cache: TuningCache, tmp_path: Path, make_result: Any
    ) -> None:
        cache.put(make_result())
        path = tmp_path / "no" / "all.json"
        with pytest.raises(CacheError) as caught:
            cache.export(path)
        assert str(caught.value) == f"cannot write {path}: No such file or directory"

    def test_other_fingerprint_is_refused(
        self, cache: TuningCache, tmp_path: Path, make_result: Any
    ) -> None:
        cache.put(make_result())
        path = tmp_path / "all.json"
        cache.export(path)
        other = TuningCache(tmp_path / "other", replace(cache.fingerprint, cublaslt="13.2.0"))
        with pytest.raises(CacheError) as caught:
            other.import_file(path)
        assert str(caught.value) == (
            f"cannot import {path}: it was measured on another machine or with other versions "
            "(cublaslt 13.2.0 here, 13.1.0 there); run slidesparse search here instead"
        )
        assert not other.root.exists()

    def test_one_invalid_entry_refuses_the_whole_file(
        self, cache: TuningCache, tmp_path: Path, make_result: Any
    ) -> None:
        cache.put_many([make_result(m=16), make_result(m=64, us=9.0)])
        path = tmp_path / "all.json"
        cache.export(path)
        path.write_text(path.read_text().replace('"median_us": 9.0', '"median_us": -9.0'))
        other = self.elsewhere(cache)
        with pytest.raises(CacheError, match=r"1 of 2 entries are invalid, first m64-.*median_us"):
            other.import_file(path)
        assert not other.root.exists()

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("", "the file is empty"),
            ("no", "not valid JSON"),
            ('{"kind": "slidesparse-result"}', 'this is not a tuning cache ("kind" is not'),
        ],
    )
    def test_other_files_are_refused(
        self, cache: TuningCache, tmp_path: Path, content: str, reason: str
    ) -> None:
        path = tmp_path / "bad.json"
        path.write_text(content)
        with pytest.raises(CacheError) as caught:
            cache.import_file(path)
        assert str(caught.value).startswith(f"cannot import {path}: {reason}")

    def test_missing_file(self, cache: TuningCache, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match=r"cannot read .*nope\.json: No such file"):
            cache.import_file(tmp_path / "nope.json")

    def test_import_replaces_a_damaged_own_file(
        self, cache: TuningCache, tmp_path: Path, make_result: Any
    ) -> None:
        cache.put(make_result())
        cache.export(tmp_path / "all.json")
        cache.path.write_text("?")
        view = reopened(cache)
        assert len(view.import_file(tmp_path / "all.json").added) == 1
        assert len(view.user_entries()) == 1
