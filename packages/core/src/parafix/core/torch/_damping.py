import abc
from typing import Any

from jaxtyping import Float
from torch import Tensor


class AbstractDamping(abc.ABC):
    """Holds back the matrices `A_t` of a sweep, where they would carry it too far.

    Whatever they are replaced by, the first `k` states are final after `k` sweeps.
    There are two things to remember: a *memory*, from one sweep to the next, and a
    *carry*, from one chunk of times to the next within a sweep. Both are `None`, a
    tensor or a tuple of these; tensors of the memory have the samples on axis 0.
    """

    @abc.abstractmethod
    def init(self, z: Float[Tensor, "B n"]) -> Any:
        """The memory before the first sweep; `z` are the initial states."""

    @abc.abstractmethod
    def start(self, a: Float[Tensor, "B ..."]) -> Any:
        """The carry before the first time; `a` has the shape and dtype of an `A_t`."""

    @abc.abstractmethod
    def damp(
        self, a: Float[Tensor, "T B ..."], begin: int, memory: Any, carry: Any
    ) -> tuple[Float[Tensor, "T B ..."], Any]:
        """What stands for `A_t` over the next chunk of times, and the carry after it.

        **Arguments:**

        - `a`: dense `(T, B, n, n)`, blocks `(T, B, n / d, d, d)` or diagonal
            `(T, B, n)`. Zero at time 0, which nothing precedes.
        - `begin`: the first time of the chunk.
        - `memory`, `carry`: as above.
        """

    @abc.abstractmethod
    def update(self, memory: Any, residual: Float[Tensor, " B"]) -> Any:
        """The memory after a sweep.

        **Arguments:**

        - `residual`: the sum of `|f(z) - z|` over all entries and times, of the iterate
            that entered the sweep. May be NaN or infinite.
        """
