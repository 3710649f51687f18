import dataclasses

import torch

from parafix.core.torch import AbstractCausalSweep, checked_count

from ._entries import chosen, count_of, even


@dataclasses.dataclass(frozen=True)
class GSJacobi(AbstractCausalSweep):
    """Gauss-Seidel over blocks, Jacobi inside: one window of entries after the other.

    Only entries of the window move; those ahead wait at the guess, where they can
    neither overflow nor be computed in vain. `f` is evaluated as a whole all the same,
    so counted in evaluations it is not ahead of `"jacobi"`.

    ??? cite "Reference"

        Song, Meng, Liao and Ermon, "Accelerating feedforward computation via parallel
        nonlinear equation solving", ICML 2021: the GS-Jacobi iteration.

    **Arguments:**

    - `rtol`, `atol`: entries are within tolerance if two evaluations differ by at most
        `atol + rtol |z|`.
    - `window`: how many entries move; `sqrt(N)` by default. With `N` it is Jacobi, with
        one that does not slide the sequential program.
    - `sliding`: whether the window begins at the first entry that is not final, of
        every sample by itself. If not, it is one of fixed blocks, which is left when it
        is final.
    """

    window: int | None = None
    sliding: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count("window", self.window)

    def propose(self, z, f, prefix, memory):
        count = count_of(z)
        window = even(self.window, count)
        start = prefix if self.sliding else prefix // window * window
        index = torch.arange(count, device=z[0].device)
        return chosen(index < (start + window)[:, None], f, z), memory
