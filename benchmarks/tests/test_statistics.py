import random

import pytest

from benchmarks import statistics


def test_order():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert statistics.median(values) == 3
    assert statistics.quartiles(values) == (2, 4)
    assert statistics.spread(values) == pytest.approx(2 / 3)
    assert statistics.quartiles([7.0]) == (7, 7)
    assert statistics.geometric_mean([1.0, 4.0]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("count", "at"), [(1, 1), (5, 1), (6, 1), (9, 2), (15, 4), (20, 6), (50, 18)]
)
def test_median_interval_is_that_of_the_sign_test(count, at):
    values = list(range(1, count + 1))
    assert statistics.median_interval(values) == (at, count + 1 - at)


def test_median_interval_covers():
    draw = random.Random(0)
    hits = 0
    for _ in range(1000):
        lower, upper = statistics.median_interval(
            [draw.expovariate(1) for _ in range(15)]
        )
        hits += lower <= 0.6931 <= upper
    assert hits > 940


def test_ratio():
    ratio = statistics.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 2.0])
    assert ratio.medians == 2
    assert ratio.minima == 2
    assert ratio.interval == (2, 3)
    assert not ratio.noise
    assert statistics.ratio([1.0, 3.0], [2.0, 2.0]).noise
