"""What is compared."""

import dataclasses


ABOUT = """\
How far apart are the outputs of a GRU that were computed one step after the other and
by DEER, over time, in float32 and in float64, and the same for quasi-DEER? The loop
itself in float32 is held against float64 to say what rounding alone does."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One comparison.

    - `size`, `inputs`: units and inputs of the cell.
    - `length`: steps.
    - `seeds`: how many draws of weights and inputs.
    - `stretches`: of how many stretches of time the largest difference is kept.
    """

    size: int
    inputs: int
    length: int
    seeds: int
    stretches: int = 400


CONFIGS = {
    "tiny": Config(4, 2, 100, 1, 50),
    "quick": Config(32, 2, 10_000, 2),
    "full": Config(32, 2, 10_000, 10),
}
