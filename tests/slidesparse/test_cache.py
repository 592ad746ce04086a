"""TuningCache in one process: look-up order, merging, and every way a file can be bad."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slidesparse import cache_file
from slidesparse.cache import TuningCache
from slidesparse.cache_store import cache_root
from slidesparse.candidate import Provenance
from slidesparse.devices import Fingerprint
from slidesparse.errors import CacheError
from slidesparse.problem import GemmProblem
from slidesparse.serialize import DataError, to_plain

ELSEWHERE = "choose another place with --cache-dir or SLIDESPARSE_CACHE_DIR"


def reopened(cache: TuningCache) -> TuningCache:
    """The same cache as another process would see it."""
    return TuningCache(cache.root, cache.fingerprint, bundled=cache._bundled_folder)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestRoot:
    def test_explicit_beats_environment_beats_user_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLIDESPARSE_CACHE_DIR", str(tmp_path / "environment"))
        assert cache_root(tmp_path / "explicit") == tmp_path / "explicit"
        assert cache_root() == tmp_path / "environment"
        monkeypatch.delenv("SLIDESPARSE_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_root() == tmp_path / "xdg" / "slidesparse"

    def test_home_is_expanded_and_relative_made_absolute(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        assert cache_root("~/c") == tmp_path / "c"
        assert cache_root("c") == tmp_path / "c"


class TestLookup:
    def test_empty_cache_creates_nothing(
        self, cache: TuningCache, make_result: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert cache.get(make_result().problem) is None
        assert cache.nearest(make_result().problem) is None
        assert (cache.entries(), cache.stale(), cache.clear()) == ({}, [], 0)
        assert not cache.root.exists()
        assert not caplog.records

    def test_put_then_get(self, cache: TuningCache, make_result: Any) -> None:
        result = make_result(m=20)
        cache.put(result)
        for view in (cache, reopened(cache)):
            hit = view.get(make_result(m=32).problem)
            assert hit is not None
            assert to_plain(hit.result) == to_plain(result)
            assert hit.provenance is Provenance.CACHED
            assert view.get(make_result(m=33).problem) is None
        assert cache.path.parent.name == cache.fingerprint.slug

    def test_same_key_is_replaced_and_others_stay(
        self, cache: TuningCache, make_result: Any
    ) -> None:
        cache.put_many([make_result(m=16), make_result(m=64)])
        cache.put(make_result(m=16, us=4.0))
        times = [hit.result.ranked[0].median_us for hit in reopened(cache).entries().values()]
        assert times == [4.0, 8.0]

    def test_put_keeps_what_another_writer_filed(
        self, cache: TuningCache, make_result: Any
    ) -> None:
        rival = reopened(cache)
        assert rival.get(make_result().problem) is None
        cache.put(make_result(m=16))
        rival.put(make_result(m=64))
        assert len(rival.entries()) == 2
        assert len(cache.entries()) == 1
        cache.refresh()
        assert len(cache.entries()) == 2

    def test_threads_share_one_cache(self, cache: TuningCache, make_result: Any) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(cache.put, [make_result(n=n) for n in range(1, 25)]))
        assert len(cache.entries()) == len(reopened(cache).entries()) == 24

    def test_put_many_of_nothing_writes_nothing(self, cache: TuningCache) -> None:
        cache.put_many([])
        assert not cache.root.exists()

    def test_lookup_after_the_first_touches_no_file(
        self, cache: TuningCache, make_result: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache.put(make_result())
        cache.get(make_result(m=64).problem)
        monkeypatch.setattr(os, "open", None)
        assert cache.get(make_result().problem) is not None
        assert cache.get(make_result(m=64).problem) is None

    @pytest.mark.parametrize(
        ("m", "found"), [(1, 64), (64, 64), (65, 256), (256, 256), (9999, 256)]
    )
    def test_nearest_goes_up_then_down(
        self, cache: TuningCache, make_result: Any, m: int, found: int
    ) -> None:
        cache.put_many([make_result(m=64), make_result(m=256), make_result(m=16, n=512)])
        hit = cache.nearest(make_result(m=m).problem)
        assert hit is not None
        assert (hit.result.problem.m, hit.result.problem.n) == (found, 256)
        assert cache.nearest(make_result(k=1024).problem) is None
        assert cache.nearest(make_result(pattern="4:6").problem) is None

    def test_results_differing_in_every_field_but_m_are_apart(
        self, cache: TuningCache, make_result: Any
    ) -> None:
        first = make_result()
        cache.put(first)
        for change in ({"bias": True}, {"n": 8}, {"k": 8}):
            other: GemmProblem = replace(first.problem, **change)
            assert cache.get(other) is None

    def test_invalid_result_is_not_written(self, cache: TuningCache, make_result: Any) -> None:
        cache.put(make_result(m=64))
        before = cache.path.read_bytes()
        bad = replace(make_result(), effort="huge")
        with pytest.raises(DataError, match="effort"):
            cache.put(bad)
        assert cache.path.read_bytes() == before
        assert len(cache.entries()) == 1


class TestBundled:
    def ship(self, cache: TuningCache, bundled: Path, result: Any, name: str = "a.json") -> None:
        content = cache_file.render(
            cache.fingerprint, {cache_file.GEMM: {result.problem.key: result}}
        )
        (bundled / name).write_bytes(content)

    def test_user_entry_hides_the_bundled_one(
        self, cache: TuningCache, bundled: Path, make_result: Any
    ) -> None:
        self.ship(cache, bundled, make_result(us=5.0))
        hit = cache.get(make_result().problem)
        assert hit is not None
        assert hit.provenance is Provenance.BUNDLED
        cache.put(make_result(us=6.0))
        hit = cache.get(make_result().problem)
        assert hit is not None
        assert (hit.provenance, hit.result.ranked[0].median_us) == (Provenance.CACHED, 6.0)
        assert [item.provenance for item in cache.entries().values()] == [Provenance.CACHED]

    def test_other_fingerprint_is_not_seen(
        self, cache: TuningCache, bundled: Path, make_result: Any
    ) -> None:
        self.ship(cache, bundled, make_result())
        newer = replace(cache.fingerprint, cublaslt="13.2.0")
        assert not TuningCache(cache.root, newer, bundled=bundled).entries()

    def test_damaged_bundle_is_a_warning(
        self,
        cache: TuningCache,
        bundled: Path,
        make_result: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        (bundled / "b.json").write_text("{")
        self.ship(cache, bundled, make_result())
        assert len(cache.entries()) == 1
        assert "b.json is not used: not valid JSON" in caplog.text
        assert "reinstall slidesparse" in caplog.text

    def test_package_caches_are_valid(self) -> None:
        folder = Path(cache_file.__file__).parent / "data" / "caches"
        for path in folder.glob("*.json"):
            assert not cache_file.read_document(path).invalid, path


DAMAGE = {
    "truncated": (lambda text: text[: len(text) // 2], "not valid JSON"),
    "empty": (lambda text: "", "the file is empty"),
    "blank": (lambda text: " \n", "the file is empty"),
    "binary": (lambda text: b"\x80\x00\xff" * 50, "not valid JSON"),
    "nested": (lambda text: "[" * 200_000, "not valid JSON"),
    "list": (lambda text: "[]", "this is not a tuning cache"),
    "other kind": (lambda text: text.replace("slidesparse-cache", "x"), "not a tuning cache"),
    "schema": (
        lambda text: text.replace('"schema_version": 1', '"schema_version": 99'),
        "schema version 99, and this program reads 1",
    ),
    "no fingerprint": (lambda text: text.replace('"fingerprint"', '"f"'), "missing or unknown"),
    "entries": (lambda text: json.dumps({**json.loads(text), "entries": []}), "not a JSON object"),
    "nan": (lambda text: text.replace('"median_us": 8.0', '"median_us": NaN'), "NaN is not valid"),
    "machine": (lambda text: text.replace("13.1.0", "13.2.0"), "belongs to another machine"),
    "sm": (lambda text: text.replace('"sm": 90', '"sm": -1'), "fingerprint.sm: input should be"),
}
ENTRY_DAMAGE = {
    "key": (lambda text: text.replace('"m16-n256', '"m16-n999'), "belongs under the key m16-n256-"),
    "negative": (lambda text: text.replace('"median_us": 8.0', '"median_us": -8.0'), "than 0"),
    "type": (lambda text: text.replace('"tried": 12', '"tried": "12"'), "tried: input should be"),
    "dtype": (lambda text: text.replace('"fp8_e4m3",', '"fp4",'), "problem.dtype"),
    "pattern": (lambda text: text.replace('"pattern": "6:8"', '"pattern": "4:6"'), "belongs under"),
}


@pytest.mark.parametrize("kind", DAMAGE | ENTRY_DAMAGE)
def test_damaged_file_is_one_warning_and_is_kept_on_write(
    kind: str, cache: TuningCache, make_result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(make_result())
    damage, reason = (DAMAGE | ENTRY_DAMAGE)[kind]
    content = damage(cache.path.read_text())
    damaged = content if isinstance(content, bytes) else content.encode()
    assert damaged != cache.path.read_bytes()
    cache.path.write_bytes(damaged)

    view = reopened(cache)
    assert view.get(make_result().problem) is None
    view.refresh()
    assert not view.entries()
    (warning,) = caplog.messages
    assert str(cache.path) in warning
    assert reason in warning
    assert "slidesparse cache clear" in warning

    view.put(make_result(m=64))
    (aside,) = cache.directory.glob("gemm.json.corrupt-*")
    assert aside.read_bytes() == damaged
    assert f"moved the damaged tuning cache {cache.path} to {aside}" in caplog.messages
    assert [hit.result.problem.m for hit in reopened(cache).entries().values()] == [64]
    assert len(caplog.messages) == 2  # fingerprint.json is sound and stays.


def test_one_bad_entry_costs_one_entry(
    cache: TuningCache, make_result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put_many([make_result(m=16), make_result(m=64, us=9.0)])
    cache.path.write_text(cache.path.read_text().replace('"median_us": 9.0', '"median_us": 0.0'))
    view = reopened(cache)
    assert [hit.result.problem.m for hit in view.entries().values()] == [16]
    assert "1 of 2 entries, first m64-n256-k512" in caplog.text
    view.put(make_result(m=256))
    assert [hit.result.problem.m for hit in reopened(cache).entries().values()] == [16, 256]
    assert len(list(cache.directory.glob("gemm.json.corrupt-*"))) == 1


def test_two_damaged_files_in_one_second_are_both_kept(
    cache: TuningCache, make_result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_file.time, "strftime", lambda *_: "20260303T100000Z")
    for content in ("one", "two"):
        cache.put(make_result())
        cache.path.write_text(content)
    cache.put(make_result())
    kept = sorted(path.read_text() for path in cache.directory.glob("gemm.json.corrupt-*"))
    assert kept == ["one", "two"]


def test_oversized_file_is_not_read(
    cache: TuningCache,
    make_result: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache.put(make_result())
    monkeypatch.setattr(cache_file, "MAX_BYTES", 100)
    assert not reopened(cache).entries()
    assert "more than the 100 accepted" in caplog.text


class TestOddFiles:
    def check(self, cache: TuningCache, make_result: Any, reason: str) -> None:
        """A miss that names the reason; then writing works."""
        view = reopened(cache)
        assert view.get(make_result().problem) is None
        assert reason in self.caplog.text
        view.put(make_result())
        assert len(reopened(cache).entries()) == 1

    @pytest.fixture(autouse=True)
    def _log(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog

    def test_directory_in_place_of_the_file(self, cache: TuningCache, make_result: Any) -> None:
        cache.path.mkdir(parents=True)
        self.check(cache, make_result, "Is a directory")

    def test_symlink_loop(self, cache: TuningCache, make_result: Any) -> None:
        cache.directory.mkdir(parents=True)
        cache.path.symlink_to(cache.path)
        self.check(cache, make_result, "Too many levels of symbolic links")

    def test_pipe_does_not_hang(self, cache: TuningCache, make_result: Any) -> None:
        cache.directory.mkdir(parents=True)
        os.mkfifo(cache.path)
        self.check(cache, make_result, "not a regular file")

    def test_unreadable_file(self, cache: TuningCache, make_result: Any) -> None:
        cache.put(make_result())
        cache.path.chmod(0)
        if os.access(cache.path, os.R_OK):
            pytest.skip("this user may read everything")
        self.check(cache, make_result, "Permission denied")

    def test_foreign_fingerprint_file(self, cache: TuningCache, make_result: Any) -> None:
        cache.put(make_result())
        edit(cache.directory / "fingerprint.json", torch="9.9")
        self.check(cache, make_result, "fingerprint.json is damaged: it belongs to another")

    def test_damaged_fingerprint_file(self, cache: TuningCache, make_result: Any) -> None:
        cache.put(make_result())
        (cache.directory / "fingerprint.json").write_text("?")
        self.check(cache, make_result, "fingerprint.json is damaged: not valid JSON")

    def test_missing_fingerprint_file_is_written_again(
        self, cache: TuningCache, make_result: Any
    ) -> None:
        cache.put(make_result())
        (cache.directory / "fingerprint.json").unlink()
        view = reopened(cache)
        assert len(view.entries()) == 1
        view.put(make_result(m=64))
        assert (cache.directory / "fingerprint.json").exists()
        assert not self.caplog.messages

    def test_temporary_files_of_killed_writers_go(
        self, cache: TuningCache, make_result: Any
    ) -> None:
        cache.put(make_result())
        left = cache.directory / "gemm.json.tmp-1-2"
        left.write_text("{")
        cache.put(make_result())
        assert not left.exists()


class TestUnwritable:
    def test_file_in_place_of_the_root(self, cache: TuningCache, make_result: Any) -> None:
        cache.root.write_text("")
        assert cache.get(make_result().problem) is None
        with pytest.raises(CacheError) as caught:
            cache.put(make_result())
        message = f"cannot write the tuning cache at {cache.directory}: File exists; {ELSEWHERE}"
        assert str(caught.value) == message
        assert cache.unwritable_reason() == f"{cache.root} is not a directory; {ELSEWHERE}"

    def test_file_in_place_of_the_directory(self, cache: TuningCache, make_result: Any) -> None:
        cache.root.mkdir()
        cache.directory.write_text("")
        with pytest.raises(CacheError, match=r"cannot write the tuning cache at .*: File exists"):
            cache.put(make_result())
        assert cache.clear() == 0
        cache.put(make_result())

    def test_below_a_file(self, tmp_path: Path, fingerprint: Fingerprint, make_result: Any) -> None:
        (tmp_path / "file").write_text("")
        cache = TuningCache(tmp_path / "file" / "deep", fingerprint)
        with pytest.raises(CacheError, match="Not a directory"):
            cache.put(make_result())

    def test_no_permission(self, cache: TuningCache, make_result: Any) -> None:
        cache.root.mkdir()
        cache.root.chmod(0o500)
        if os.access(cache.root, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(CacheError, match=f"Permission denied; {ELSEWHERE}"):
            cache.put(make_result())
        assert cache.unwritable_reason() == f"{cache.root} is not writable; {ELSEWHERE}"

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            (errno.ENOSPC, "No space left on device"),
            (errno.EROFS, "Read-only file system"),
            (errno.EACCES, "Permission denied"),
        ],
    )
    def test_system_refuses_the_write(
        self,
        cache: TuningCache,
        make_result: Any,
        monkeypatch: pytest.MonkeyPatch,
        code: int,
        words: str,
    ) -> None:
        cache.put(make_result(m=16))
        before = cache.path.read_bytes()

        def refuse(descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(CacheError) as caught:
            cache.put(make_result(m=64))
        where = f"cannot write the tuning cache at {cache.directory}"
        assert str(caught.value) == f"{where}: {words}; {ELSEWHERE}"
        assert cache.path.read_bytes() == before
        assert not list(cache.directory.glob("*.tmp-*"))
        assert len(cache.entries()) == 1

    def test_writable_reason_is_empty(self, cache: TuningCache) -> None:
        assert cache.unwritable_reason() == ""
        assert not cache.root.exists()
