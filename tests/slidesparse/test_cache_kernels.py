"""Kernel configurations in the tuning cache: beside the GEMM results, and independent of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slidesparse import cache_file
from slidesparse.cache import TuningCache
from slidesparse.cache_file import GEMM, KERNELS
from slidesparse.candidate import Provenance
from slidesparse.errors import CacheError
from slidesparse.kernel_problem import Op
from slidesparse.serialize import DataError, to_plain


def reopened(cache: TuningCache) -> TuningCache:
    """The same cache as another process would see it."""
    return TuningCache(cache.root, cache.fingerprint, bundled=cache._bundled_folder)


def widths(cache: TuningCache) -> list[int]:
    return [hit.result.problem.k for hit in cache.kernel_entries().values()]


class TestLookup:
    def test_put_then_get(self, cache: TuningCache, make_kernel: Any) -> None:
        assert cache.get_kernel(make_kernel().problem) is None
        assert not cache.root.exists()
        result = make_kernel(m=20, k=500)
        cache.put_kernels([result])
        for view in (cache, reopened(cache)):
            hit = view.get_kernel(make_kernel(m=32, k=512).problem)
            assert hit is not None
            assert to_plain(hit.result) == to_plain(result)
            assert hit.provenance is Provenance.CACHED
            assert hit.result.best == result.ranked[0]
            assert view.get_kernel(make_kernel(m=33).problem) is None
            assert view.get_kernel(make_kernel(m=32, k=513).problem) is None
            assert view.get_kernel(make_kernel(Op.RMSNORM_QUANTIZE, m=32).problem) is None
        assert cache.kernels_path == cache.directory / "kernels.json"
        assert not cache.path.exists()

    def test_same_key_is_replaced_and_others_stay(
        self, cache: TuningCache, make_kernel: Any
    ) -> None:
        cache.put_kernels([make_kernel(k=64), make_kernel(k=128)])
        cache.put_kernels([make_kernel(k=64, us=4.0)])
        times = [h.result.ranked[0].median_us for h in reopened(cache).kernel_entries().values()]
        assert times == [4.0, 8.0]

    def test_nothing_to_put_writes_nothing(self, cache: TuningCache) -> None:
        cache.put_kernels([])
        assert not cache.root.exists()

    def test_invalid_result_is_not_written(self, cache: TuningCache, make_kernel: Any) -> None:
        cache.put_kernels([make_kernel()])
        before = cache.kernels_path.read_bytes()
        with pytest.raises(DataError, match="tried"):
            cache.put_kernels([replace(make_kernel(k=64), tried=-1)])
        assert cache.kernels_path.read_bytes() == before
        assert len(cache.kernel_entries()) == 1

    def test_sorted_by_op_width_and_rows(self, cache: TuningCache, make_kernel: Any) -> None:
        wanted = [
            *(make_kernel(k=64), make_kernel(m=128, k=64), make_kernel(k=512, pattern="dense")),
            *(make_kernel(k=512), make_kernel(Op.DEQUANTIZE, k=64, pattern="dense")),
        ]
        cache.put_kernels(wanted[::-1])
        assert list(cache.kernel_entries()) == [result.problem.key for result in wanted]

    def test_results_without_a_winner_are_kept(self, cache: TuningCache, make_kernel: Any) -> None:
        result = replace(make_kernel(), ranked=(), default=None)
        cache.put_kernels([result])
        hit = reopened(cache).get_kernel(result.problem)
        assert hit is not None
        assert hit.result.best is None


class TestTwoKinds:
    def test_each_has_its_file_and_neither_sees_the_other(
        self, cache: TuningCache, make_result: Any, make_kernel: Any
    ) -> None:
        cache.put(make_result())
        gemm = cache.path.read_bytes()
        cache.put_kernels([make_kernel()])
        assert cache.path.read_bytes() == gemm
        assert "kernels" not in json.loads(gemm)
        kernels = json.loads(cache.kernels_path.read_text())
        assert (kernels["entries"], list(kernels["kernels"])) == ({}, [make_kernel().problem.key])
        view = reopened(cache)
        assert (len(view.entries()), len(view.kernel_entries())) == (1, 1)
        view.put(make_result(m=64))
        assert len(reopened(cache).kernel_entries()) == 1

    @pytest.mark.parametrize("damaged", ["gemm", "kernels"])
    def test_damage_of_one_leaves_the_other(
        self,
        cache: TuningCache,
        make_result: Any,
        make_kernel: Any,
        caplog: pytest.LogCaptureFixture,
        damaged: str,
    ) -> None:
        cache.put(make_result())
        cache.put_kernels([make_kernel()])
        bad, good = cache.path, cache.kernels_path
        if damaged == "kernels":
            bad, good = good, bad
        bad.write_text("{")
        sound = good.read_bytes()
        view = reopened(cache)
        counts = (len(view.entries()), len(view.kernel_entries()))
        assert counts == ((0, 1) if damaged == "gemm" else (1, 0))
        (warning,) = caplog.messages
        assert f"tuning cache {bad} is damaged: not valid JSON" in warning
        view.put(make_result(m=64))
        view.put_kernels([make_kernel(k=64)])
        view = reopened(cache)
        counts = (len(view.entries()), len(view.kernel_entries()))
        assert counts == ((1, 2) if damaged == "gemm" else (2, 1))
        (aside,) = cache.directory.glob("*.corrupt-*")
        assert aside.name.startswith(bad.name)
        assert aside.read_text() == "{"
        assert good.read_bytes() != sound, "it was written as well"

    def test_fingerprint_file_of_another_machine_loses_neither(
        self, cache: TuningCache, make_result: Any, make_kernel: Any
    ) -> None:
        cache.put(make_result())
        cache.put_kernels([make_kernel()])
        other = to_plain(replace(cache.fingerprint, torch="9.9"))
        (cache.directory / "fingerprint.json").write_text(json.dumps(other))
        view = reopened(cache)
        assert (view.entries(), view.kernel_entries()) == ({}, {})
        view.put(make_result(m=64))
        assert list(cache.directory.glob("gemm.json.corrupt-*"))
        assert len(reopened(cache).kernel_entries()) == 1, "its own fingerprint is this machine's"

    def test_entries_in_the_wrong_file_are_kept_aside(
        self,
        cache: TuningCache,
        make_result: Any,
        make_kernel: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """As after copying an exported file over gemm.json by hand."""
        cache.put(make_result())
        cache.put_kernels([make_kernel()])
        cache.export(cache.path)
        view = reopened(cache)
        assert len(view.entries()) == 1
        assert "1 entries are not for this file; `slidesparse cache import` sorts" in caplog.text
        view.put(make_result(m=64))
        assert len(reopened(cache).entries()) == 2
        (aside,) = cache.directory.glob("gemm.json.corrupt-*")
        assert make_kernel().problem.key in aside.read_text()

    def test_clear_removes_both_and_counts_both(
        self, cache: TuningCache, make_result: Any, make_kernel: Any
    ) -> None:
        cache.put(make_result())
        cache.put_kernels([make_kernel(), make_kernel(k=64)])
        assert cache.clear() == 3
        assert not cache.directory.exists()
        assert cache.kernel_entries() == {}

    def test_stale_kernels_are_not_seen_and_are_counted(
        self, cache: TuningCache, make_kernel: Any
    ) -> None:
        cache.put_kernels([make_kernel(), make_kernel(k=64)])
        upgraded = TuningCache(cache.root, replace(cache.fingerprint, triton="9.0"))
        assert upgraded.get_kernel(make_kernel().problem) is None
        (stale,) = upgraded.stale()
        assert (stale.entries, stale.differences) == (2, ("triton 9.0 here, 3.6.0 there",))
        upgraded.clear_stale()
        assert not cache.directory.exists()


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "truncated": (lambda text: text[: len(text) // 2], "not valid JSON"),
    "empty": (lambda text: "", "the file is empty"),
    "machine": (lambda text: text.replace('"3.6.0"', '"9.9"'), "belongs to another machine"),
    "list": (lambda text: json.dumps({**json.loads(text), "kernels": []}), "kernels: not a JSON"),
    "key": (lambda text: text.replace('"quantize-m16', '"quantize-m32'), "under the key quantize-"),
    "op": (lambda text: text.replace('"op": "quantize"', '"op": "fly"'), "problem.op"),
    "negative": (lambda text: text.replace('"median_us": 8.0', '"median_us": -8.0'), "than 0"),
    "gemm": (lambda text: text.replace('"residual"', '"bias"'), "1 of 1 entries, first quantize-"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file_is_one_warning_and_is_kept_on_write(
    kind: str, cache: TuningCache, make_kernel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put_kernels([make_kernel()])
    damage, reason = DAMAGE[kind]
    damaged = damage(cache.kernels_path.read_text())
    assert damaged != cache.kernels_path.read_text()
    cache.kernels_path.write_text(damaged)

    view = reopened(cache)
    assert view.get_kernel(make_kernel().problem) is None
    view.refresh()
    assert not view.kernel_entries()
    (warning,) = caplog.messages
    assert str(cache.kernels_path) in warning
    assert reason in warning

    view.put_kernels([make_kernel(k=64)])
    (aside,) = cache.directory.glob("kernels.json.corrupt-*")
    assert aside.read_text() == damaged
    assert widths(reopened(cache)) == [64]


class TestBundled:
    def test_a_file_may_hold_both_kinds(
        self, cache: TuningCache, bundled: Path, make_result: Any, make_kernel: Any
    ) -> None:
        gemm, kernel, only = make_result(us=5.0), make_kernel(us=5.0), make_kernel(k=64)
        both = {GEMM: {gemm.problem.key: gemm}, KERNELS: {kernel.problem.key: kernel}}
        (bundled / "a.json").write_bytes(cache_file.render(cache.fingerprint, both))
        content = cache_file.render(cache.fingerprint, {KERNELS: {only.problem.key: only}})
        (bundled / "b.json").write_bytes(content)
        hits = (cache.get(gemm.problem), cache.get_kernel(kernel.problem))
        assert [hit.provenance for hit in hits if hit] == [Provenance.BUNDLED] * 2
        assert widths(cache) == [64, 512]
        assert (len(cache.bundled_entries()), len(cache.bundled_kernels())) == (1, 2)

        cache.put_kernels([make_kernel(us=6.0)])
        hit = cache.get_kernel(kernel.problem)
        assert hit is not None
        assert (hit.provenance, hit.result.ranked[0].median_us) == (Provenance.CACHED, 6.0)
        assert len(cache.user_kernels()) == 1
        newer = replace(cache.fingerprint, triton="9.0")
        assert not TuningCache(cache.root, newer, bundled=bundled).kernel_entries()

    def test_a_file_without_kernels_still_reads(
        self, cache: TuningCache, bundled: Path, make_result: Any
    ) -> None:
        result = make_result()
        content = cache_file.render(cache.fingerprint, {GEMM: {result.problem.key: result}})
        assert set(json.loads(content)) == {
            *("kind", "schema_version", "tool_version", "fingerprint", "entries"),
        }
        (bundled / "a.json").write_bytes(content)
        assert (len(cache.entries()), len(cache.kernel_entries())) == (1, 0)


class TestTransfer:
    def elsewhere(self, cache: TuningCache) -> TuningCache:
        return TuningCache(cache.root.parent / "other", cache.fingerprint)

    def test_both_kinds_travel_in_one_file(
        self, cache: TuningCache, tmp_path: Path, make_result: Any, make_kernel: Any
    ) -> None:
        cache.put(make_result())
        cache.put_kernels([make_kernel(), make_kernel(k=64)])
        assert cache.export(tmp_path / "all.json") == 3
        other = self.elsewhere(cache)
        report = other.import_file(tmp_path / "all.json")
        assert (len(report.added), report.replaced, report.kept) == (3, (), ())
        assert other.path.read_bytes() == cache.path.read_bytes()
        assert other.kernels_path.read_bytes() == cache.kernels_path.read_bytes()

    def test_kernels_alone_travel(
        self, cache: TuningCache, tmp_path: Path, make_kernel: Any
    ) -> None:
        cache.put_kernels([make_kernel()])
        assert cache.export(tmp_path / "all.json") == 1
        other = self.elsewhere(cache)
        other.import_file(tmp_path / "all.json")
        assert widths(other) == [512]
        assert not other.path.exists()

    def test_own_entries_stay_unless_told(
        self, cache: TuningCache, tmp_path: Path, make_result: Any, make_kernel: Any
    ) -> None:
        cache.put(make_result())
        cache.put_kernels([make_kernel(us=3.0), make_kernel(k=64)])
        cache.export(tmp_path / "all.json")
        other = self.elsewhere(cache)
        other.put_kernels([make_kernel(us=5.0)])
        key = make_kernel().problem.key
        report = other.import_file(tmp_path / "all.json")
        assert (report.kept, len(report.added)) == ((key,), 2)
        assert other.user_kernels()[key].ranked[0].median_us == 5.0
        report = other.import_file(tmp_path / "all.json", overwrite=True)
        assert (len(report.replaced), report.added, report.kept) == (3, (), ())
        assert other.user_kernels()[key].ranked[0].median_us == 3.0

    def test_one_invalid_kernel_refuses_the_whole_file(
        self, cache: TuningCache, tmp_path: Path, make_result: Any, make_kernel: Any
    ) -> None:
        cache.put(make_result())
        cache.put_kernels([make_kernel(us=9.0)])
        path = tmp_path / "all.json"
        cache.export(path)
        path.write_text(path.read_text().replace('"median_us": 9.0', '"median_us": -9.0'))
        other = self.elsewhere(cache)
        with pytest.raises(CacheError, match=r"1 of 2 entries are invalid, first quantize-.*us"):
            other.import_file(path)
        assert not other.root.exists()
