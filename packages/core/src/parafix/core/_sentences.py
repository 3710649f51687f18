"""How a solve may end, in the words of both backends.

The order is that of the codes. They do not change: users store them.
"""

from typing import Final


SENTENCES: Final[dict[str, str]] = {
    "successful": "Every entry is finite and within tolerance.",
    "max_steps_reached": (
        "The solver used up `max_steps` before every entry was within tolerance. "
        "Raise `max_steps` or the tolerances, start closer to the solution, or take "
        'another solver (`solver="sequential"` always ends, where there is a sequence).'
    ),
    "nonfinite": (
        "The function returned NaN or infinity; in a sequence, at a point that is "
        "itself right, so that the sequential program returns it too. Look at the "
        "function and at its inputs there."
    ),
    "diverged": (
        "The iterates grew without bound. Start closer to the solution, use damping, "
        'or take another solver (`solver="newton"`, or one with a trust region).'
    ),
    "stalled": (
        "The iterates stopped moving before the solution was within tolerance. Use a "
        'solver with derivatives (`solver="deer"` for a sequence, `solver="newton"` '
        "for a dense problem); if the tolerances are below what this dtype can reach, "
        "raise them or use a wider dtype."
    ),
    "ill_conditioned": (
        "The equations hold to within tolerance, but the recurrence is unstable: it "
        "amplifies rounding until the digits that were asked for are lost, so another "
        "order of the same operations gives another answer. Shorten the sequence, use "
        "a wider dtype, make the recurrence contractive, or solve sequentially "
        '(`solver="sequential"`).'
    ),
    "not_causal": (
        "Entries depend on themselves or on later ones (or the function is not "
        "deterministic), so there is no sequential program to reproduce. Check masks "
        "and dropout, or solve the problem as a dense one."
    ),
    "linear_solve_failed": (
        "The linear solve inside a step or inside the gradient did not reach its "
        "tolerance. Use another linear solver, or loosen its tolerance."
    ),
}

_BY_CODE: Final = tuple(SENTENCES.values())


# How a chain ended that the growth of errors has to do with.
_GROWING: Final = ("max_steps_reached", "stalled", "ill_conditioned")


def sentence(
    code: int, position: int | None = None, leaf: str = "", growth: float | None = None
) -> str:
    """The sentence of a code, with its place if there is one.

    `growth` is the factor by which errors grow in every step, if that is known: said
    where the recurrence amplifies them, and the code may be due to it.
    """
    text = _BY_CODE[code]
    growing = list(SENTENCES)[code] in _GROWING
    if growing and growth is not None and 1 < growth < float("inf"):
        text += f" The recurrence amplifies errors by about {growth:.3g} per step."
    if position is None:
        return text
    where = f" First bad position: {position}"
    return text + where + (f", leaf {leaf}." if leaf else ".")
