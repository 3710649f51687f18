"""How long which classifier is trained."""

import dataclasses


ABOUT = """\
Trains a GRU to tell seven exercises apart in what a smartwatch measured (6 channels, up
to 2,618 samples): by jax.lax.scan, by DEER, and by DEER that starts from the states of
the epoch before. All start from the same weights and take the same batches, in turns,
so only the time differs. A fourth one, sequential, starts one rounding away: so far
apart do equal trainings drift."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One training.

    - `hidden`: units of the GRU.
    - `epochs`, `batch`: 98 recordings are divided into batches of that many.
    - `rate`: of Adam.
    - `seeds`: how many draws of weights and batches.
    - `sweeps`: at most; what is not solved by then, a loop finishes.
    - `length`: recordings are cut to that many samples, and padded to it.
    """

    hidden: int
    epochs: int
    batch: int
    rate: float
    seeds: int
    sweeps: int = 50
    length: int = 2_618


CONFIGS = {
    "tiny": Config(2, 2, 49, 0.01, 1, length=60),
    "quick": Config(8, 60, 14, 0.005, 1),
    "full": Config(16, 150, 14, 0.005, 3),
}
