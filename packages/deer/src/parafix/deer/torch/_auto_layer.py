from typing import NamedTuple


class LayerChoice(NamedTuple):
    """What `solver="auto"` of a layer takes, and the reason in a sentence.

    `max_steps` bounds the sweeps after which it gives up and takes the kernel.
    """

    solver: str
    reason: str
    max_steps: int | None = None
