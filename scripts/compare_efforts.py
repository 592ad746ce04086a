"""Race the winners of two searches of the same problems in turn, on fresh operands.

Says how much faster the winners of the longer search (--effort full) really are: times from two
separate searches cannot be compared on a GPU that drifts. The ratio of a problem is the median of
three races. Writes one result file.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from slidesparse.bench.search.effort_record import EffortRecord, EffortRow, write_json
from slidesparse.bench.search.record import read_json
from slidesparse.candidate import Candidate, Failure, ProblemResult
from slidesparse.devices import detect, select_device
from slidesparse.search.driver import make_worker, specs_for
from slidesparse.search.verify_cache import race_again
from slidesparse.worker import Worker

SEED = 20260303
RACES = 3
"""Each on new operands: where they lie in memory moves a 7 us kernel by several percent."""


def winner(result: ProblemResult) -> Candidate:
    """The best candidate of the problem's own kind: sparse for a sparse pattern."""
    sparse = not result.problem.pattern.dense
    return next(m.candidate for m in result.ranked if m.candidate.sparse is sparse)


def comparable(one: ProblemResult, other: ProblemResult) -> bool:
    """Whether both searches went through all candidates of the problem and found one."""
    sparse = not one.problem.pattern.dense
    found = all(any(m.candidate.sparse is sparse for m in r.ranked) for r in (one, other))
    return found and one.complete and other.complete


def compare(worker: Worker, one: ProblemResult, other: ProblemResult) -> EffortRow:
    """Race both winners."""
    problem, pair = one.problem, [winner(one), winner(other)]
    labels = (pair[0].label, pair[1].label)
    if pair[0] == pair[1]:
        return EffortRow(problem, labels, same=True, ratio=1.0)
    races = []
    for _ in range(RACES):
        again = race_again(worker, problem, pair)
        if isinstance(again, Failure):
            return EffortRow(problem, labels, same=False, failure=again.reason)
        medians = [float(statistics.median(samples)) for samples in again[0].samples]
        races.append((medians[0], medians[1]))
    ratio = statistics.median(first / second for first, second in races)
    return EffortRow(problem, labels, same=False, us=tuple(races), ratio=ratio)


def main() -> None:
    """Compare two result files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path, help="result file of the shorter search")
    parser.add_argument("other", type=Path, help="result file of the longer search")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    first, other = read_json(arguments.first), read_json(arguments.other)
    device = select_device()
    worker = make_worker(device, specs_for(None, device), SEED)
    shared = [
        problem
        for problem in first.results
        if problem in other.results
        and comparable(first.results[problem][0], other.results[problem][0])
    ]
    try:
        rows = tuple(
            compare(worker, first.results[problem][0], other.results[problem][0])
            for problem in shared
        )
    finally:
        worker.stop()
    record = EffortRecord.of(
        fingerprint=detect(device),
        settings={"races": RACES, "seed": SEED},
        efforts=(first.settings["effort"], other.settings["effort"]),
        seconds=(first.seconds, other.seconds),
        rows=rows,
    )
    write_json(record.stamped(), arguments.output)
    print(
        f"{record.problems} problems, {record.same_winner} with one winner, "
        f"{record.within_2_percent} within 2 %; {record.efforts[0]} over {record.efforts[1]}: "
        f"median {record.median_ratio:.4f}, worst {record.worst_ratio:.4f}"
    )


if __name__ == "__main__":
    main()
