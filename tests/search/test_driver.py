"""Many problems: baselines, reuse, what is remembered, budget, several workers, errors."""

import threading
import time
from dataclasses import replace

import pytest

from slidesparse.cache import TuningCache
from slidesparse.candidate import Provenance
from slidesparse.devices import CPU, Device, detect
from slidesparse.errors import CacheError, UsageError
from slidesparse.plan import choose
from slidesparse.problem import DType, Scales
from slidesparse.search import driver
from slidesparse.search.backend import Effort
from slidesparse.search.driver import Listener, Search, SearchOptions, specs_for, with_baselines

MISBEHAVING = ("fake_backends:Misbehaving",)
SLOW = ("fake_backends:Slow",)
BOTH = ("cpu", "cpu-slid")


class Notes(Listener):
    def __init__(self):
        self.events = []

    def started(self, problem, device):
        self.events.append(("started", problem, threading.get_ident()))

    def finished(self, problem, found, reason):
        self.events.append(("finished", problem, reason))

    def of(self, kind):
        return [problem for event, problem, _ in self.events if event == kind]


@pytest.fixture
def cache(tmp_path):
    return TuningCache(tmp_path / "cache", detect(CPU))


@pytest.fixture
def run(fakes, cache, seed, monkeypatch, in_process):
    """Search in this process: run(problems, backends, effort=...)."""
    monkeypatch.setattr(driver, "Worker", type(in_process("cpu")))

    def start(problems, backends, listener=None, devices=(CPU,), effort="quick", **options):
        cache.refresh()
        chosen = SearchOptions(Effort(effort), backends=backends, seed=seed, **options)
        return Search(problems, devices, cache, chosen).run(listener)

    return start


def provenances(outcome):
    return {found.provenance for found in outcome.found.values()}


def lines(log):
    text = log.read_text()
    log.write_text("")
    return text.split("\n")[:-1]


def test_baselines_are_added_once_and_before_their_sparse_forms(problem):
    sparse = [problem(7, "2:4"), problem(7, "6:8"), problem(129, "6:8")]
    wanted = [problem(7), sparse[0], sparse[1], problem(129), sparse[2]]
    assert with_baselines(sparse) == wanted
    assert with_baselines(wanted) == wanted


def test_sparse_races_dense_on_its_own_pruned_weight(run, cache, problem):
    notes = Notes()
    outcome = run([problem(7, "6:8"), problem(7, "2:4")], BOTH, notes)
    assert list(outcome.found) == [problem(7), problem(7, "6:8"), problem(7, "2:4")]
    assert outcome.skipped == {}
    assert not outcome.interrupted
    dense = outcome.found[problem(7)].result
    assert dense.baseline == dense.best
    assert dense.defaults[0].candidate.params == {"path": "float32"}
    for pattern in ("6:8", "2:4"):
        result = outcome.found[problem(7, pattern)].result
        assert not result.baseline.candidate.sparse
        # The race is its own: the baseline was timed again, on the weight of this pattern.
        assert result.baseline.samples == 15
        assert result.baseline != dense.best
        raced = {m.candidate for m in result.ranked if not m.candidate.sparse}
        assert raced == {m.candidate for m in dense.ranked[:2]}
        assert any(m.candidate.sparse for m in result.ranked)
        assert choose(result).gain > 0
        assert cache.get(problem(7, pattern)).result == result
    assert notes.of("started") == notes.of("finished") == list(outcome.found)
    assert list(cache.journal_directory.iterdir()) == []


def test_cached_results_are_used_where_they_are_good_enough(run, problem, fakes, monkeypatch):
    monkeypatch.setenv("FAKE_STEP_MS", "1")
    problems = [problem(7)]
    assert provenances(run(problems, SLOW)) == {Provenance.MEASURED}
    assert len(lines(fakes)) == 20
    again = run(problems, SLOW)
    assert provenances(again) == {Provenance.CACHED}
    assert lines(fakes) == []

    assert provenances(run(problems, SLOW, effort="normal")) == {Provenance.MEASURED}
    assert len(lines(fakes)) == 20, "a higher effort looks again"
    assert provenances(run(problems, SLOW)) == {Provenance.CACHED}, "a lower one does not"
    assert provenances(run(problems, SLOW, fresh=True)) == {Provenance.MEASURED}
    assert len(lines(fakes)) == 20


def test_cached_results_of_other_backends_do_not_count(run, problem):
    problems = [problem(7)]
    run(problems, ("cpu",))
    assert provenances(run(problems, ("cpu",))) == {Provenance.CACHED}
    more = run(problems, ("cpu", "fake_backends:Unavailable"))
    assert provenances(more) == {Provenance.MEASURED}
    # Left out with a reason is taking part: the same question has the same answer.
    again = run(problems, ("cpu", "fake_backends:Unavailable"))
    assert provenances(again) == {Provenance.CACHED}
    assert again.found[problem(7)].result.left_out == {
        "unavailable": "its library is not installed; pip install it"
    }
    assert provenances(run(problems, ("cpu",))) == {Provenance.MEASURED}


def test_another_m_of_the_same_bucket_is_searched(run, problem):
    run([problem(7)], ("cpu",))
    other = run([problem(9)], ("cpu",))
    assert problem(9).key == problem(7).key
    assert provenances(other) == {Provenance.MEASURED}
    assert other.found[problem(9)].result.problem.m == 9


def test_failures_are_remembered_until_a_fresh_search(run, problem, fakes, monkeypatch):
    monkeypatch.setenv("FAKE_CANDIDATES", "refused,wrong")
    first = run([problem(7)], MISBEHAVING)
    assert lines(fakes) == ["7 float32", "7 refused", "7 wrong"]
    kinds = [(f.candidate.params["path"], f.kind) for f in first.found[problem(7)].result.failures]
    assert kinds == [("refused", "refused"), ("wrong", "wrong")]

    second = run([problem(7)], MISBEHAVING, effort="normal")
    assert lines(fakes) == ["7 float32"]
    assert provenances(second) == {Provenance.MEASURED}
    again = second.found[problem(7)].result.failures
    assert [(f.candidate.params["path"], f.kind) for f in again] == kinds

    run([problem(7)], MISBEHAVING, fresh=True)
    assert lines(fakes) == ["7 float32", "7 refused", "7 wrong"]


def test_a_candidate_that_really_crashes_costs_itself(cache, problem, fakes, seed, monkeypatch):
    """With a real worker process: the winner is filed, and the crash beside it."""
    monkeypatch.setenv("FAKE_CANDIDATES", "segfault")
    options = SearchOptions(Effort.QUICK, backends=MISBEHAVING, seed=seed)
    outcome = Search([problem(7)], [CPU], cache, options).run()
    result = outcome.found[problem(7)].result
    assert result.best.candidate.params["path"] == "float32"
    (failure,) = result.failures
    assert (failure.kind, failure.reason) == ("crash", "the worker died: killed by SIGSEGV")
    stored = TuningCache(cache.root, cache.fingerprint).get(problem(7))
    assert stored.result.failures == (failure,)


def test_problems_that_no_backend_takes_are_skipped_with_reasons(run, problem):
    notes = Notes()
    outcome = run([problem(7), problem(129, "6:8")], ("fake_backends:Hungry",), notes)
    assert list(outcome.found) == [problem(7)]
    assert outcome.skipped == {
        problem(129): "no candidate supports it (hungry: M=129 is over 100)",
        problem(129, "6:8"): "no candidate supports it (no backend takes part)",
    }
    assert ("finished", problem(129), outcome.skipped[problem(129)]) in notes.events


def test_a_problem_without_memory_is_skipped_and_the_rest_goes_on(run, problem, monkeypatch):
    from slidesparse.search.session import Session
    from slidesparse.worker import WorkerOutOfMemory

    real = Session.open

    def short_of_memory(session, wanted, effort):
        if wanted.m == 129:
            raise WorkerOutOfMemory("CUDA out of memory. Tried to allocate 96 GiB")
        return real(session, wanted, effort)

    monkeypatch.setattr(Session, "open", short_of_memory)
    outcome = run([problem(129), problem(7)], ("cpu",))
    assert list(outcome.found) == [problem(7)]
    assert outcome.skipped == {
        problem(129): (
            "the operands do not fit the memory (CUDA out of memory. Tried to allocate 96 GiB)"
        )
    }


def test_the_budget_ends_the_search_and_says_what_was_not_searched(run, problem, monkeypatch):
    monkeypatch.setenv("FAKE_STEP_MS", "8")
    problems = [problem(m) for m in (7, 33, 129, 257)]
    start = time.monotonic()
    outcome = run(problems, SLOW, budget_s=0.8)
    # Unlimited it takes 20 s. The race of one finalist at 0.16 s is not cut short: 15 samples.
    assert time.monotonic() - start < 0.8 + 6
    assert 1 <= len(outcome.found) < 4
    assert set(outcome.found) | set(outcome.skipped) == set(problems)
    assert set(outcome.skipped.values()) == {"the budget of 0.8 s is spent"}


def test_a_search_whose_budget_suffices_is_complete(run, problem):
    outcome = run([problem(7), problem(33)], ("cpu",), budget_s=600)
    assert len(outcome.found) == 2
    assert outcome.skipped == {}


def test_two_workers_share_the_problems_and_each_is_done_once(run, problem):
    sparse = [problem(m, "6:8", n=n) for n in (32, 64, 96, 128) for m in (7, 33)]
    notes = Notes()
    outcome = run(sparse, BOTH, notes, devices=(CPU, Device("cpu", 1)))
    assert set(outcome.found) == {*sparse, *(p.on_dense() for p in sparse)}
    started = notes.of("started")
    assert len(started) == len(set(started)) == 16
    assert len({thread for event, _, thread in notes.events if event == "started"}) == 2
    done = []
    for event, what, _ in notes.events:
        if event == "finished":
            done.append(what)
        elif not what.pattern.dense:
            assert what.on_dense() in done, "a sparse problem started before its baseline"
    assert all(outcome.found[p].result.baseline is not None for p in sparse)


def test_problems_of_two_dtypes_wait_for_their_own_baseline(run, problem):
    fp8 = problem(7, "6:8")
    int8 = replace(fp8, dtype=DType.INT8, out=DType.INT32, scales=Scales.NONE)
    outcome = run([fp8, int8], BOTH)
    for wanted in (fp8, int8):
        assert outcome.found[wanted].result.baseline is not None, wanted


def test_what_a_worker_cannot_file_ends_the_search_with_the_reason(run, cache, problem):
    cache.root.write_text("in the way")
    with pytest.raises(CacheError, match=r"Not a directory; choose another place with --cache-dir"):
        run([problem(7), problem(33)], ("cpu",), devices=(CPU, Device("cpu", 1)))


def test_a_defect_in_the_listener_is_not_swallowed(run, problem):
    class Broken(Listener):
        def started(self, problem, device):
            raise ZeroDivisionError("of the user interface")

    with pytest.raises(ZeroDivisionError, match="of the user interface"):
        run([problem(7), problem(33)], ("cpu",), Broken(), devices=(CPU, Device("cpu", 1)))


def test_a_group_that_ends_after_the_cancellation_does_not_wait_for_ever(cache, problem, seed):
    search = Search([problem(7)], [CPU], cache, SearchOptions(backends=("cpu",), seed=seed))
    group = search._next_group()
    search._cancel()
    search._group_done(group)
    got = []
    thread = threading.Thread(target=lambda: got.append(search._next_group()), daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert got == [None]


def test_the_dry_run_lists_candidates_and_runs_none(cache, problem, seed, fakes):
    options = SearchOptions(backends=(*SLOW, "cpu-slid"), seed=seed)
    search = Search([problem(7, "6:8")], [CPU], cache, options)
    offers = search.offers()
    assert list(offers) == [problem(7), problem(7, "6:8")]
    assert len(offers[problem(7)].candidates) == 20
    assert {c.backend for c in offers[problem(7, "6:8")].candidates} == {"cpu-slid"}
    assert lines(fakes) == []
    assert not cache.directory.exists()


def test_the_seed_is_drawn_unless_told(cache, problem):
    def made(seed):
        options = SearchOptions(backends=("cpu",), seed=seed)
        return Search([problem(7)], [CPU], cache, options).outcome.seed

    assert made(5) == 5
    assert len({made(None) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("wanted", "device", "message"),
    [
        (("cpu",), Device("cuda"), "backend cpu runs on the CPU (--device cpu), not on cuda:0"),
        (("torch",), CPU, "backend torch runs on a GPU (--device cuda), not on cpu"),
    ],
)
def test_a_backend_of_the_other_kind_of_device_is_refused(wanted, device, message):
    with pytest.raises(UsageError) as caught:
        specs_for(wanted, device)
    assert str(caught.value) == message


@pytest.mark.parametrize(("vllm", "there"), [("none", ()), ("0.25.1", ("vllm",))])
def test_device_and_installation_decide_which_backends_take_part(vllm, there, monkeypatch):
    monkeypatch.setattr("slidesparse.search.vllm_dense.package_version", lambda name: vllm)
    assert specs_for(None, CPU) == ("cpu", "cpu-slid")
    assert specs_for(None, Device("cuda")) == (
        "cublaslt",
        "cusparselt",
        "torch",
        *there,
        "native",
        "torchao",
    )
    assert specs_for(("vllm",), Device("cuda")) == ("vllm",), "asked for, it says what is missing"


def test_a_result_that_was_cut_short_replaces_no_complete_one(run, cache, problem):
    whole = run([problem()], ("cpu",)).found[problem()].result
    assert whole.complete
    search = Search([problem()], [CPU], cache, SearchOptions())
    search._file(replace(whole, complete=False, effort="full"))
    assert cache.get(problem()).result == whole
    search._file(replace(whole, effort="full"))
    assert cache.get(problem()).result.effort == "full"
