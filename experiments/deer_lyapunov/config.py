"""Which networks are solved."""

import dataclasses


ABOUT = """\
How many sweeps does a recurrence take, by its Lyapunov exponent? Random networks
z' = tanh(gain W z + x) forget at small gains and are chaotic at large ones. DEER,
quasi-DEER, ELK and Jacobi's iteration solve each of them, in float64, and what they say
of it is compared with the sequential loop."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One series of networks.

    - `size`, `length`: units and steps.
    - `gains`: how many, equally spaced from .5 to 2.
    - `seeds`: how many draws of weights and inputs.
    - `input_scale`: standard deviation of the inputs; strong ones stop chaos.
    """

    size: int
    length: int
    gains: int
    seeds: int
    input_scale: float = 0.1


CONFIGS = {
    "tiny": Config(4, 60, 2, 1),
    "quick": Config(16, 1_000, 13, 2),
    "full": Config(32, 2_000, 31, 5),
}
