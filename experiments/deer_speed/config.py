"""The sizes of the grid."""

import dataclasses


ABOUT = """\
How much faster than jax.lax.scan is parafix.deer.jax.scan, by the number of steps and
of units? A GRU over random inputs, a batch of 16; forward, and value and gradient; with
solver="deer" and with solver="auto". Answers are checked before they are timed."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One grid.

    - `batch`: sequences at once, by `vmap`.
    - `sizes`, `lengths`: units `n` and steps `T`, ascending.
    - `seeds`: how many draws of weights and inputs; one above `many_seeds` steps.
    - `repeats`: timed rounds of every draw.
    - `memory_gib`: what a program may need; `None`: half of what is free at the start.
    - `cell_seconds`: a cell is skipped if the one before it, with fewer steps, lets
        expect that it takes longer.
    """

    batch: int
    sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    seeds: int
    repeats: int
    cell_seconds: float
    many_seeds: int = 100_000
    memory_gib: float | None = None


CONFIGS = {
    "tiny": Config(4, (2,), (50, 100), 2, 2, 30.0),
    "quick": Config(16, (1, 4, 16, 64), (1_000, 10_000, 100_000), 1, 5, 60.0),
    "full": Config(
        16,
        (1, 2, 4, 8, 16, 32, 64),
        (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000),
        5,
        7,
        1_800.0,
    ),
}
