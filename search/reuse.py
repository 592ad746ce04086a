"""Whether a cached result answers what a search here and now would ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from slidesparse.candidate import Candidate, ProblemResult
from slidesparse.problem import GemmProblem
from slidesparse.search.backend import Backend, Effort

_ORDER = [effort.value for effort in Effort]


def current(result: ProblemResult, known: Mapping[str, Backend]) -> ProblemResult:
    """A result as its race would have ended without what would not run now: others' times stand.

    Args:
        result: of a race in which a library that is missing or another version here may have run.
        known: backends by name; candidates of others are left alone.

    Returns:
        The result less those measurements; the same object if there are none.
    """

    def stays(candidate: Candidate) -> bool:
        backend = known.get(candidate.backend)
        return backend is None or backend.current(candidate)

    def noted(identity: str) -> bool:
        backend = known.get(identity.split()[0])
        return backend is None or (backend.installed and backend.identity == identity)

    ranked = tuple(m for m in result.ranked if stays(m.candidate))
    backends = tuple(filter(noted, result.backends))
    if ranked == result.ranked and backends == result.backends:
        return result
    own = [m for m in result.ranked if m.candidate.sparse is not result.problem.pattern.dense]
    return replace(
        result,
        ranked=ranked,
        defaults=tuple(m for m in result.defaults if stays(m.candidate)),
        baseline=next((m for m in ranked if not m.candidate.sparse), None),
        backends=backends,
        # The race told the first two of its own apart, and no others.
        tie=result.tie and all(m in ranked for m in own[:2]),
    )


def answers(
    result: ProblemResult,
    problem: GemmProblem,
    effort: Effort,
    backends: Sequence[Backend],
    rivals: Sequence[Candidate],
) -> bool:
    """Whether a result is whole, and of the same backends at this effort or a higher one.

    Args:
        result: that the cache holds for the problem's key.
        problem: to search.
        effort: of the search.
        backends: that take part in it.
        rivals: the best dense ways that a sparse problem would race against.
    """
    mine = tuple(sorted(b.identity for b in backends if b.sparse is not problem.pattern.dense))
    same = result.problem == problem and result.backends == mine
    enough = _ORDER.index(result.effort) >= _ORDER.index(effort)
    if not (same and enough and result.complete and result.ranked):
        return False
    # A sparse result notes no dense backends: one that comes and goes has to be in its race.
    optional = {b.name for b in backends if b.identity != b.name}
    tried = {m.candidate for m in result.ranked} | {f.candidate for f in result.failures}
    return all(rival in tried for rival in rivals if rival.backend in optional)
