import abc

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PyTree

from ._custom_types import FloatScalar, State


class AbstractDamping(eqx.Module):
    """Holds back the matrices `A_t` of a sweep, where they would carry it too far.

    Whatever they are replaced by, the first `k` states are final after `k` sweeps.
    There are two things to remember: a *memory*, from one sweep to the next, and a
    *carry*, from one chunk of times to the next within a sweep.
    """

    @abc.abstractmethod
    def init(self, z: State) -> PyTree:
        """The memory before the first sweep; `z` is the initial state `(n,)`."""

    @abc.abstractmethod
    def start(self, a: jax.ShapeDtypeStruct) -> PyTree:
        """The carry before the first time; `a` is the shape and dtype of an `A_t`."""

    @abc.abstractmethod
    def damp(
        self,
        a: Float[Array, "T ..."],
        times: Int[Array, " T"],
        memory: PyTree,
        carry: PyTree,
    ) -> tuple[Float[Array, "T ..."], PyTree]:
        """What stands for `A_t` over the next chunk of times, and the carry after it.

        **Arguments:**

        - `a`: dense `(T, n, n)`, blocks `(T, n / d, d, d)` or diagonal `(T, n)`. Zero
            at time 0, which nothing precedes.
        - `times`: the times of the chunk.
        - `memory`, `carry`: as above.
        """

    @abc.abstractmethod
    def update(self, memory: PyTree, residual: FloatScalar) -> PyTree:
        """The memory after a sweep.

        **Arguments:**

        - `residual`: the sum of `|f(z) - z|` over all entries and times, of the iterate
            that entered the sweep. May be NaN or infinite.
        """
