"""Whether a function is causal: what is seen of it, and the words for it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Causality:
    """What a look at a function has found.

    **Attributes:**

    - `verdict`: `"causal"`; `"rounding"`, if entries depend on later ones by no more
        than rounding does; `"not causal"`; or `"not deterministic"`.
    - `entries`: the entries of `f(z)` that changed where they may not, in order.
    - `cause`: an entry of `z` from which on a change did that; `None` if nothing did.
    - `difference`: by how much the entries changed at most, relative to the largest.
    - `exact`: whether `"rounding"` counts as a dependence.
    """

    verdict: str
    entries: tuple[int, ...] = ()
    cause: int | None = None
    difference: float = 0.0
    exact: bool = True

    @property
    def causal(self) -> bool:
        """Whether a causal solve, in the mode that was asked about, can serve."""
        return self.verdict == "causal" or (
            self.verdict == "rounding" and not self.exact
        )

    def message(self) -> str:
        """A sentence with cause and remedy; empty if nothing was found."""
        if self.verdict == "causal":
            return ""
        some = ", ".join(map(str, self.entries[:8]))
        some += ", ..." if len(self.entries) > 8 else ""
        if self.verdict == "not deterministic":
            return (
                "`f` is not deterministic: evaluated twice at one point, its entries "
                f"{some} differ. Draw all noise before, and switch dropout off (in "
                "PyTorch by `.eval()`)."
            )
        if self.verdict == "rounding":
            return (
                f"`f` is causal to rounding only: entries {some} change by "
                f"{self.difference:.1e} of the largest with entries from {self.cause} "
                'on, as those of an FFT do. `mode="exact"` cannot serve; use '
                '`mode="tolerance"`.'
            )
        return (
            f"`f` is not causal: entries {some} of its result change with entries of "
            f"`z` from {self.cause} on, and each may depend on earlier entries alone. "
            "Check the mask and the shift by one; or solve it as a dense problem with "
            "`fixed_point`. `check=False` skips this look."
        )


def cuts(length: int, number: int, draw: Any) -> list[int]:
    """Where to look: at the first entry, at the last, and between."""
    if number < 1:
        raise ValueError(f"`num_cuts` must be at least 1, got {number}.")
    ends = [0, length - 1][: min(number, length)]
    between = range(1, length - 1)
    count = min(number - len(ends), len(between))
    if count > 0:
        drawn: list[int] = draw.choice(len(between), count, replace=False).tolist()
        ends += [between[i] for i in drawn]
    return sorted({*ends})


def look(
    evaluate: Callable[[int], Any],
    same: Callable[[Any, Any], Any],
    apart: Callable[[Any, Any], Any],
    length: int,
    places: Sequence[int],
    exact: bool,
    eps: float,
) -> Causality:
    """The verdict on a function of `length` entries.

    **Arguments:**

    - `evaluate`: the image of the point in which entries from `cut` on are drawn anew.
    - `same`, `apart`: of two images, which entries agree bit for bit, and how far they
        are apart, relative to the largest; booleans and numbers `(length,)`. What is
        not finite counts as equal to anything.
    """
    base = evaluate(length)
    again = evaluate(length)
    if not all(same(base, again)):
        entries = tuple(i for i, ok in enumerate(same(base, again)) if not ok)
        return Causality("not deterministic", entries, None, math.nan, exact)
    # Sums of many terms, in another order.
    rounding = 64 * eps * math.sqrt(max(length, 1))
    worst = Causality("causal", exact=exact)
    for cut in places:
        image = evaluate(cut)
        equal = same(base, image)
        entries = tuple(i for i in range(min(cut + 1, length)) if not equal[i])
        if not entries:
            continue
        distances = apart(base, image)
        difference = max(float(distances[i]) for i in entries)
        # NaN is no rounding.
        verdict = "rounding" if difference <= rounding else "not causal"
        found = Causality(verdict, entries, cut, difference, exact)
        if verdict == "not causal":
            return found
        worst = found
    return worst
