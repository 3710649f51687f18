"""Medians, their uncertainty, and ratios of times."""

import dataclasses
import math
import statistics
from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def spread(values: Sequence[float]) -> float:
    """The distance of the quartiles, relative to the median."""
    lower, upper = quartiles(values)
    return (upper - lower) / median(values)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """An interval that holds the true median with probability 95 % or more.

    By the sign test: of `n` independent values, the number that lie below the median is
    binomial with probability 1/2, whatever their distribution. With fewer than 6 values
    no interval is that sure, and all of their range is returned.
    """
    values = sorted(values)
    count = len(values)
    below, cumulated = 0, 0.0
    while True:
        cumulated += math.comb(count, below) / 2**count
        if cumulated > 0.025:
            break
        below += 1
    # The `below`-th smallest and largest, counted from 1.
    at = max(below, 1) - 1
    return values[at], values[count - 1 - at]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How the times of two contestants compare that were measured in turns.

    - `medians`, `minima`: the ratio of the medians, and of the minima.
    - `interval`: of the median of the ratios taken round by round (95 %).
    """

    medians: float
    minima: float
    interval: tuple[float, float]

    @property
    def noise(self) -> bool:
        """Whether the two may as well be equally fast."""
        lower, upper = self.interval
        return lower <= 1 <= upper


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """The ratio of two lists of times, of which equal positions are of one round."""
    pairs = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return Ratio(
        median(numerator) / median(denominator),
        min(numerator) / min(denominator),
        median_interval(pairs),
    )
