from typing import NamedTuple

from parafix.core.torch import AbstractStructure, Dense


# A dense sweep costs O(n^3) per time step on the way up of a parallel scan.
_LARGEST_SIZE = 32
# Below this, a sequential loop is over before the sweeps have been launched.
_SHORTEST_LENGTH = 256
# After how many sweeps "auto" looks for the first time whether they will pay.
PATIENCE = 10
# On a CPU sweeps save the calls of the loop and pay with arithmetic.
_SHORTEST_ON_CPU = 1000
_MOST_ENTRIES_ON_CPU = 8
_MOST_DIAGONAL_ON_CPU = 128


class Choice(NamedTuple):
    """What `solver="auto"` takes, and the reason in a sentence."""

    solver: str
    reason: str


def choose(
    length: int,
    size: int,
    platform: str,
    samples: int = 1,
    structure: AbstractStructure | None = None,
) -> Choice:
    """What `solver="auto"` takes for `length` steps of a state of `size` entries.

    **Arguments:**

    - `length`: `T`, the number of steps.
    - `size`: `n`, how many real numbers the float leaves of the carry hold for each
        sample (a complex one counts twice).
    - `platform`: the type of the device: `"cpu"`, `"cuda"`, ...
    - `samples`: `B`.
    - `structure`: of the Jacobian of a step; dense by default.

    **Returns:**

    A [`parafix.deer.torch.Choice`][]: `solver` is `"deer"` or `"sequential"`.

    ??? info "Measured"

        By hand, on one thread of a CPU; no table of `benchmarks/results` holds these
        numbers. A GRU in float32 whose step is some ten operations. The loop costs 60
        microseconds a step, the sweeps 40 if `T = 1000`, `B = 1` and `n = 2` or 8, and
        more than the loop if `n = 16`, if `B = 16`, or if `T` is 300 or less. With a
        gradient they win earlier: 7 times for the first two, 4 times for `n = 16`, and
        from `T = 300` on. With a diagonal structure (`DiagonalGRUCell`, `T = 10000`)
        the loop costs 28 microseconds a step, the sweeps 1 if `B n = 8`, 5 if it is 64,
        and more than the loop if it is 512. Nothing was measured on an accelerator; its
        rule is that of the JAX half.
    """
    if size == 0:
        return Choice("sequential", "the carry has no float leaf to iterate on")
    if platform == "cpu":
        return _choose_on_cpu(length, size, samples, structure or Dense())
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


def _choose_on_cpu(length, size, samples, structure):
    if length < _SHORTEST_ON_CPU:
        return Choice(
            "sequential",
            f"{length} steps are too few on a CPU (fewer than {_SHORTEST_ON_CPU})",
        )
    entries = size * samples
    diagonal = structure.num_axes == 1
    most = _MOST_DIAGONAL_ON_CPU if diagonal else _MOST_ENTRIES_ON_CPU
    if entries > most:
        return Choice(
            "sequential",
            f"on a CPU {entries} numbers in each step are enough to keep the loop busy "
            f"(more than {most})",
        )
    return Choice(
        "deer", f"{length} steps of {entries} numbers are mostly calls from Python"
    )
