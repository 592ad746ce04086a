"""Mixed requests that run together and then alone: what is asked, and whether the tokens agree."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from slidesparse.errors import UsageError

SHARED = 0.25
"""Share of requests that begin where another one does, so that the prefix cache has hits."""

FINISHED = "length"
"""The reason that vLLM gives where a request has all the tokens that it asked for."""


@dataclass(frozen=True)
class Request:
    """One greedy request.

    Args:
        prompt: token ids.
        outputs: tokens to generate.
        abort_after: generated tokens after which it is aborted, fewer than `outputs`; 0 aborts it
            before its first token; None lets it end.
    """

    prompt: tuple[int, ...]
    outputs: int
    abort_after: int | None = None


def plan_requests(
    ids: Sequence[int], count: int, longest: int, outputs: int, aborts: float, seed: int
) -> tuple[Request, ...]:
    """Draw requests: slices of a text with lengths from 1 to `longest`, both among them.

    Args:
        ids: tokens of the text.
        count: of requests.
        longest: tokens of the longest prompt.
        outputs: tokens that a request generates at most; each draws its own number from 1.
        aborts: share of the requests that are aborted.
        seed: of all draws.

    Raises:
        UsageError: the text is shorter than the longest prompt.
    """
    if len(ids) < longest:
        raise UsageError(
            f"the text has {len(ids):,} tokens; prompts of up to {longest:,} need as many: lower "
            "--longest, or use more text"
        )
    generator = random.Random(seed)
    # Both ends are always there, whatever is drawn.
    lengths = [1, longest, *(generator.randint(1, longest) for _ in range(count))][:count]
    generator.shuffle(lengths)
    aborted = set(generator.sample(range(count), round(aborts * count)))
    made: list[Request] = []
    starts: list[int] = []
    for index, length in enumerate(lengths):
        start = generator.randint(0, len(ids) - length)
        shared = [known for known in starts if known + length <= len(ids)]
        if shared and generator.random() < SHARED:
            start = generator.choice(shared)
        starts.append(start)
        wanted = generator.randint(1, outputs)
        after = generator.randrange(wanted) if index in aborted else None
        made.append(Request(tuple(ids[start : start + length]), wanted, after))
    return tuple(made)


def sample_requests(requests: Sequence[Request], count: int, seed: int) -> tuple[int, ...]:
    """Indices of the requests that run again alone, in order; aborted ones are not among them.

    Args:
        requests: all of them.
        count: at most so many.
        seed: of the draw.
    """
    whole = [index for index, it in enumerate(requests) if it.abort_after is None]
    return tuple(sorted(random.Random(seed).sample(whole, min(count, len(whole)))))


@dataclass
class Trial:
    """Follows requests that run together: collects their tokens and says what to abort.

    Args:
        requests: by their index, all of which were submitted.

    Attributes:
        answers: by index, the tokens of those that ended.
        broken: by index, why a request did not do what was asked of it.
        aborted: the requests that were aborted.
    """

    requests: Sequence[Request]
    answers: dict[int, tuple[int, ...]] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)
    aborted: set[int] = field(default_factory=set)
    _seen: dict[int, int] = field(default_factory=dict)

    def note(self, index: int, tokens: Sequence[int], reason: str | None) -> None:
        """The engine reports on a request.

        Args:
            index: of the request.
            tokens: all that it has generated so far.
            reason: why it ended, None while it runs.
        """
        request = self.requests[index]
        if index in self.aborted:
            self.broken[index] = "gave tokens after it was aborted"
        elif index in self.answers:
            self.broken[index] = "went on after it had ended"
        self._seen[index] = len(tokens)
        if reason is None:
            return
        self.answers[index] = tuple(tokens)
        if reason != FINISHED or len(tokens) != request.outputs:
            self.broken[index] = f"ended ({reason}) with {len(tokens)} of {request.outputs} tokens"

    def due(self) -> list[int]:
        """The requests that have to be aborted now; each is named once."""
        found = [
            index
            for index, request in enumerate(self.requests)
            if request.abort_after is not None
            and index not in self.aborted
            and index not in self.answers
            and self._seen.get(index, 0) >= request.abort_after
        ]
        self.aborted.update(found)
        return found

    def close(self) -> None:
        """Nothing runs any more: what neither ended nor was aborted is lost."""
        for index in range(len(self.requests)):
            if index not in self.answers and index not in self.aborted:
                self.broken.setdefault(index, "was lost: the engine never ended it")


@dataclass(frozen=True)
class Sequences:
    """Whether requests that ran alone gave the same tokens as together with others.

    Args:
        compared: how many ran both ways.
        differing: of those with other tokens, the first position that differs, from 0, ascending.
    """

    compared: int
    differing: tuple[int, ...]

    @property
    def same(self) -> int:
        """How many gave the same tokens."""
        return self.compared - len(self.differing)


def compare_sequences(
    together: Mapping[int, Sequence[int]], alone: Mapping[int, Sequence[int]]
) -> Sequences:
    """Compare the tokens of requests that ran both ways; others are left out."""
    both = [index for index in alone if index in together]
    found = (first_difference(together[index], alone[index]) for index in both)
    return Sequences(len(both), tuple(sorted(at for at in found if at is not None)))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first position at which two sequences differ, None if they are the same.

    Where one is the beginning of the other, that is the length of the shorter one.
    """
    for position, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return position
    return None if len(one) == len(other) else min(len(one), len(other))


def chance_of_so_few(same: int, compared: int, stock_same: int, stock_compared: int) -> float:
    """How likely ours has so few identical sequences if it is as steady as stock.

    Fisher's exact test, one-sided: of all ways to deal out the identical ones between both, the
    share in which ours gets as few or fewer.

    Args:
        same: identical sequences of ours.
        compared: sequences of ours.
        stock_same: identical sequences of stock.
        stock_compared: sequences of stock.

    Returns:
        From 0 to 1; small where ours is noisier than stock.
    """
    total, whole = compared + stock_compared, same + stock_same
    ways = math.comb(total, whole)
    fewest = max(0, whole - stock_compared)
    return _ways(range(fewest, same + 1), compared, stock_compared, whole) / ways


def _ways(counts: Iterable[int], compared: int, stock_compared: int, whole: int) -> int:
    return sum(
        math.comb(compared, count) * math.comb(stock_compared, whole - count) for count in counts
    )
