"""The journal gives back what was written, whatever happened to the file meanwhile."""

import json
import logging

import pytest

from slidesparse.candidate import Candidate, Failure, Measurement
from slidesparse.errors import CacheError
from slidesparse.pattern import Pattern
from slidesparse.problem import DType, GemmProblem
from slidesparse.search.journal import Journal

PROBLEM = GemmProblem(7, 64, 200, DType.FP8, DType.BF16, pattern=Pattern.parse("6:8"))


def measured(i):
    candidate = Candidate("cpu", {"path": "float32", "i": i}, True, {"path": "float32"})
    return Measurement(candidate, 10.5 + i, 0.25, 3, 1, 1e-3, 2e-3, False, False, 64, 1500, 99.5)


FAILURE = Failure(Candidate("cpu", {"path": "bad"}), "crash", "killed by SIGSEGV: äöü")


def filled(folder, count=3):
    journal = Journal(folder, PROBLEM)
    for i in range(count):
        journal.add(measured(i))
    journal.add(FAILURE)
    return journal


def path_of(folder):
    (path,) = folder.iterdir()
    return path


def test_everything_comes_back(tmp_path):
    folder = tmp_path / "deep" / "journal"
    filled(folder)
    read = Journal(folder, PROBLEM).read()
    assert read == {x.candidate.key: x for x in (measured(0), measured(1), measured(2), FAILURE)}
    assert read[measured(1).candidate.key].candidate.fields == {"path": "float32"}


def test_every_outcome_is_one_line_on_disk_at_once(tmp_path):
    journal = Journal(tmp_path, PROBLEM)
    for count in range(1, 4):
        journal.add(measured(count))
        lines = path_of(tmp_path).read_text(encoding="utf-8").splitlines()
        assert len(lines) == 1 + count
        assert json.loads(lines[-1])["measurement"]["median_us"] == 10.5 + count


def test_the_file_has_the_problem_and_its_exact_m_in_its_name(tmp_path):
    filled(tmp_path)
    assert path_of(tmp_path).name == ("m16-n64-k200-fp8_e4m3-bf16-tensor-nobias-6of8-at-7.jsonl")


@pytest.mark.parametrize("lost", [1, 2, 40])
def test_a_cut_off_last_line_costs_that_line(tmp_path, lost, caplog):
    filled(tmp_path)
    path = path_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    with caplog.at_level(logging.WARNING):
        read = Journal(tmp_path, PROBLEM).read()
    assert set(read) == {measured(i).candidate.key for i in range(3)}
    assert f"journal {path} is damaged after 3 lines" in caplog.text


@pytest.mark.parametrize("lost", [1, 40])
def test_what_is_added_after_a_cut_off_line_can_be_read_back(tmp_path, lost):
    filled(tmp_path)
    path = path_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    resumed = Journal(tmp_path, PROBLEM)
    resumed.read()
    resumed.add(measured(8))
    resumed.add(FAILURE)
    read = Journal(tmp_path, PROBLEM).read()
    assert list(read.values()) == [measured(0), measured(1), measured(2), measured(8), FAILURE]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\xfe\n",
        b"[1, 2]\n",
        b"{}\n",
        b'{"measurement": {"median_us": 1}}\n',
        b'{"failure": null}\n',
        b"not json\n",
    ],
)
def test_garbage_in_the_middle_ends_the_reading(tmp_path, garbage, caplog):
    filled(tmp_path, count=1)
    path = path_of(tmp_path)
    header, first, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + first + garbage + last)
    assert list(Journal(tmp_path, PROBLEM).read().values()) == [measured(0)]
    assert "is damaged after 1 lines" in caplog.text
    assert path.read_bytes() == header + first


def test_a_measurement_that_cannot_be_is_not_believed(tmp_path):
    journal = filled(tmp_path, count=0)
    path = path_of(tmp_path)
    journal.add(measured(0))
    path.write_text(path.read_text(encoding="utf-8").replace("10.5", "-10.5"), encoding="utf-8")
    assert list(Journal(tmp_path, PROBLEM).read().values()) == [FAILURE]


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xff", b'{"problem": 3}\n', b'{"prob'])
def test_a_file_without_its_header_is_dropped_and_begun_anew(tmp_path, content):
    filled(tmp_path)
    path_of(tmp_path).write_bytes(content)
    journal = Journal(tmp_path, PROBLEM)
    assert journal.read() == {}
    journal.add(measured(5))
    assert list(Journal(tmp_path, PROBLEM).read().values()) == [measured(5)]


def test_the_header_of_another_problem_is_not_read(tmp_path):
    filled(tmp_path)
    path = path_of(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace('"m": 7', '"m": 8', 1), "utf-8")
    assert Journal(tmp_path, PROBLEM).read() == {}
    assert not path.exists()


def test_a_second_header_from_a_second_search_does_no_harm(tmp_path):
    filled(tmp_path)
    path = path_of(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[0], *lines[1:]]))
    assert len(Journal(tmp_path, PROBLEM).read()) == 4


def test_another_m_of_the_same_bucket_has_its_own_file(tmp_path):
    filled(tmp_path)
    other = GemmProblem(8, 64, 200, DType.FP8, DType.BF16, pattern=Pattern.parse("6:8"))
    assert other.key == PROBLEM.key
    assert Journal(tmp_path, other).read() == {}
    assert len(Journal(tmp_path, PROBLEM).read()) == 4


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    journal = Journal(tmp_path / "file" / "journal", PROBLEM)
    with pytest.raises(CacheError) as caught:
        journal.add(FAILURE)
    assert str(caught.value) == (
        f"cannot write the journal {tmp_path}/file/journal/"
        "m16-n64-k200-fp8_e4m3-bf16-tensor-nobias-6of8-at-7.jsonl: Not a directory; "
        "choose another place with --cache-dir or SLIDESPARSE_CACHE_DIR"
    )


def test_removal(tmp_path):
    journal = filled(tmp_path)
    journal.remove()
    assert list(tmp_path.iterdir()) == []
    assert journal.read() == {}
    journal.remove()


def test_without_a_folder_nothing_is_kept():
    journal = Journal(None, PROBLEM)
    journal.add(measured(0))
    assert journal.read() == {}
    journal.remove()
