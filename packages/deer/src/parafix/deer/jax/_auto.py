from typing import NamedTuple

from parafix.core.jax import AbstractStructure, Dense


# A dense sweep costs O(n^3) per time step on the way up of a parallel scan.
_LARGEST_SIZE = 32
# Below this, a sequential loop is over before the sweeps have been launched.
_SHORTEST_LENGTH = 256


# After how many sweeps "auto" looks for the first time whether they will pay.
PATIENCE = 10
# On a CPU, of a loop whose gradient is a scan over Jacobians.
_SHORTEST_GRADIENT = 256
_LARGEST_GRADIENT = 8
_MOST_DIAGONAL_GRADIENT = 32


class Choice(NamedTuple):
    """What `solver="auto"` takes, and the reason in a sentence.

    - `solver`: `"deer"` or `"sequential"`.
    - `adjoint`: of a loop, `"implicit"` where its gradient is one scan over the
        Jacobians at its states, and `None` where it is that of the loop itself.
    """

    solver: str
    reason: str
    adjoint: str | None = None


def choose(
    length: int, size: int, platform: str, structure: AbstractStructure | None = None
) -> Choice:
    """What `solver="auto"` takes for `length` steps of a state of `size` entries.

    **Arguments:**

    - `length`: `T`, the number of steps.
    - `size`: `n`, how many real numbers the float leaves of the carry hold (a complex
        one counts twice).
    - `platform`: what the computation is compiled for: `"cpu"`, `"cuda"`, ...
    - `structure`: of the Jacobian of a step; dense by default.

    **Returns:**

    A [`parafix.deer.jax.Choice`][]: `solver` is `"deer"` or `"sequential"`.
    """
    if size == 0:
        return Choice("sequential", "the carry has no float leaf to iterate on")
    if platform == "cpu":
        return _choose_on_cpu(length, size, structure or Dense())
    if length < _SHORTEST_LENGTH:
        return Choice(
            "sequential", f"{length} steps are too few (fewer than {_SHORTEST_LENGTH})"
        )
    shape = (structure or Dense()).shape(size)
    block = shape[-1] if len(shape) > 1 else 1
    if block > _LARGEST_SIZE:
        return Choice(
            "sequential",
            f"dense Jacobian blocks of {block} x {block} cost too much (more than "
            f"{_LARGEST_SIZE} x {_LARGEST_SIZE})",
        )
    return Choice(
        "deer", f"{length} dependent steps of {size} numbers leave a {platform} idle"
    )


def _choose_on_cpu(length, size, structure):
    loop = (
        "on a CPU the compiled loop does a fraction of the arithmetic of the sweeps, "
        "and forward it is the faster one"
    )
    if length < _SHORTEST_GRADIENT:
        return Choice(
            "sequential",
            f"{loop}; {length} steps are too few for another gradient (fewer than "
            f"{_SHORTEST_GRADIENT})",
        )
    shape = structure.shape(size)
    entries, most = size, _MOST_DIAGONAL_GRADIENT
    if len(shape) > 1:
        entries, most = shape[-1], _LARGEST_GRADIENT
    if entries > most:
        return Choice(
            "sequential",
            f"{loop}, and backward too where Jacobians have {entries} rows that are "
            f"no more than {most}",
        )
    return Choice(
        "sequential",
        f"{loop}; its gradient is one scan over Jacobians of {size} numbers",
        "implicit",
    )
