from typing import NamedTuple


# A dense sweep costs O(n^3) per time step on the way up of a parallel scan.
_LARGEST_SIZE = 32
# Below this, a sequential loop is over before the sweeps have been launched.
_SHORTEST_LENGTH = 256


class Choice(NamedTuple):
    """What `solver="auto"` takes, and the reason in a sentence."""

    solver: str
    reason: str


def choose(length: int, size: int, platform: str, samples: int = 1) -> Choice:
    """What `solver="auto"` takes for `length` steps of a state of `size` entries.

    **Arguments:**

    - `length`: `T`, the number of steps.
    - `size`: `n`, how many real numbers the float leaves of the carry hold for each
        sample (a complex one counts twice).
    - `platform`: the type of the device: `"cpu"`, `"cuda"`, ...
    - `samples`: `B`.

    **Returns:**

    A [`parafix.deer.torch.Choice`][]: `solver` is `"deer"` or `"sequential"`.
    """
    if size == 0:
        return Choice("sequential", "the carry has no float leaf to iterate on")
    if length < _SHORTEST_LENGTH:
        return Choice(
            "sequential", f"{length} steps are too few (fewer than {_SHORTEST_LENGTH})"
        )
    if size > _LARGEST_SIZE:
        return Choice(
            "sequential",
            f"dense Jacobian blocks of {size} x {size} cost too much (more than "
            f"{_LARGEST_SIZE} x {_LARGEST_SIZE})",
        )
    return Choice(
        "deer", f"{length} dependent steps of {size} numbers leave a {platform} idle"
    )
