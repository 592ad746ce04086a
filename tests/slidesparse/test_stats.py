"""Spread and significance on samples whose answer is known."""

import random

import pytest

from slidesparse.stats import interquartile, settled


@pytest.mark.parametrize(
    ("samples", "spread"),
    [
        ([], 0.0),
        ([5.0], 0.0),
        ([1.0, 3.0], 1.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2.0),
        ([5.0, 1.0, 4.0, 2.0, 3.0], 2.0),
        ([7.0] * 9, 0.0),
        ([1.0] * 8 + [1e6], 0.0),  # One outlier moves no quartile.
    ],
)
def test_interquartile(samples, spread):
    assert interquartile(samples) == spread


def noisy(generator, mean, count, sigma=1.0):
    return [generator.gauss(mean, sigma) for _ in range(count)]


def test_a_clear_difference_settles(seed):
    generator = random.Random(seed)
    fast, slow = noisy(generator, 100, 15), noisy(generator, 105, 15)
    assert settled(fast, slow)
    assert not settled(slow, fast)


def test_noise_settles_about_as_rarely_as_three_sigma_says(seed):
    generator = random.Random(seed)
    pairs = [(noisy(generator, 100, 45), noisy(generator, 100, 45)) for _ in range(400)]
    assert sum(settled(a, b) for a, b in pairs) <= 6


def test_common_drift_does_not_hide_a_small_difference(seed):
    """The GPU slows down by 10 % during the race: paired samples still tell 0.5 us apart."""
    generator = random.Random(seed)
    drift = [100 + i / 3 for i in range(30)]
    fast = [d + generator.gauss(0, 0.1) for d in drift]
    slow = [d + 0.5 + generator.gauss(0, 0.1) for d in drift]
    assert interquartile(fast) > 4
    assert settled(fast, slow)


def test_more_samples_settle_what_few_cannot(seed):
    generator = random.Random(seed)
    fast, slow = noisy(generator, 100, 400), noisy(generator, 100.6, 400)
    assert not settled(fast[:5], slow[:5])
    assert settled(fast, slow)


def test_the_threshold_is_three_standard_errors_of_the_median():
    """Differences 0..8 around a shift: median 4 + shift, interquartile range 4, n = 9."""
    error = 1.2533 * 4 / 1.349 / 3
    for factor, wanted in ((2.99, False), (3.01, True)):
        other = [factor * error - 4 + i for i in range(9)]
        assert settled([0.0] * 9, other) is wanted


def test_equal_samples_are_not_settled_and_constant_gaps_are():
    assert not settled([1.0] * 5, [1.0] * 5)
    assert settled([1.0] * 5, [1.1] * 5)
    assert not settled([1.1] * 5, [1.0] * 5)


def test_samples_must_be_paired():
    with pytest.raises(ValueError, match="longer"):
        settled([1.0, 2.0], [1.0, 2.0, 3.0])
