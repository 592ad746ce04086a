"""Race the winners of two searches of the same problems in turn, on fresh operands.

Says how much faster the winners of the longer search (--effort full) really are: times from two
separate searches cannot be compared on a GPU that drifts. The ratio of a problem is the median of
three races. Writes one JSON file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from slidesparse.bench.record import read_json
from slidesparse.bench.result_file import source_commit
from slidesparse.candidate import Candidate, Failure, ProblemResult
from slidesparse.devices import detect, select_device
from slidesparse.search.driver import make_worker, specs_for
from slidesparse.search.verify_cache import race_again
from slidesparse.serialize import to_plain
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


def compare(worker: Worker, one: ProblemResult, other: ProblemResult) -> dict[str, Any]:
    """Race both winners; "ratio" is the first one's time over the other's."""
    problem, pair = one.problem, [winner(one), winner(other)]
    row: dict[str, Any] = {"problem": to_plain(problem), "winners": [c.label for c in pair]}
    if pair[0] == pair[1]:
        return {**row, "same": True, "ratio": 1.0}
    races = []
    for _ in range(RACES):
        again = race_again(worker, problem, pair)
        if isinstance(again, Failure):
            return {**row, "same": False, "failure": again.reason}
        races.append([statistics.median(samples) for samples in again[0].samples])
    ratios = [first / other for first, other in races]
    return {**row, "same": False, "us": races, "ratio": statistics.median(ratios)}


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
        rows = [
            compare(worker, first.results[problem][0], other.results[problem][0])
            for problem in shared
        ]
    finally:
        worker.stop()
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    data = {
        "kind": "slidesparse-effort-comparison",
        "schema_version": 1,
        "commit": source_commit(),
        "fingerprint": to_plain(detect(device)),
        "efforts": [first.settings["effort"], other.settings["effort"]],
        "seconds": [first.seconds, other.seconds],
        "problems": len(rows),
        "same_winner": sum(bool(row["same"]) for row in rows),
        "within_2_percent": sum(ratio <= 1.02 for ratio in ratios),
        "worst_ratio": max(ratios),
        "median_ratio": statistics.median(ratios),
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    summary = {key: data[key] for key in data if key not in {"rows", "fingerprint"}}
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
