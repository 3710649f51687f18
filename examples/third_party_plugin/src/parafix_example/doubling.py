import jax.numpy as jnp
from jax import lax

from parafix.core.jax import AbstractScan


class DoublingScan(AbstractScan):
    """Recursive doubling: after `k` stages, every state knows `2^k` steps of its past.

    `log2(T)` stages of whole-array operations, half the depth of the associative scan
    of the core, for `log2(T)` times the work: meant for short sequences on a device
    with room for that, and slower than a loop on a CPU.

    Kogge and Stone, "A parallel algorithm for the efficient solution of a general
    class of recurrence equations", 1973.
    """

    def solve(self, a, b, init, reverse):
        """`x_t = a_t x_{t-1} + b_t`, or `x_t = a_t x_{t+1} + b_t` if `reverse`."""
        if reverse:
            # A time axis of size 1 is its own flip.
            return jnp.flip(_solve(jnp.flip(a, 0), jnp.flip(b, 0), init), 0)
        return _solve(a, b, init)

    def reasons_against(self, a, b):
        """None: it takes every shape and dtype that the verb takes."""
        return []


def _solve(a, b, init):
    dense = a.ndim > b.ndim
    constant = a.shape[0] == 1
    x = b.at[0].add(_apply(a[0], init, dense))
    # From here on, row i of `a` belongs to time i + shift.
    a = a if constant else a[1:]
    shift = 1
    while shift < b.shape[0]:
        x = jnp.concatenate([x[:shift], _apply(a, x[:-shift], dense) + x[shift:]])
        later, earlier = (a, a) if constant else (a[shift:], a[:-shift])
        a = _product(later, earlier, dense)
        shift *= 2
    return x


def _apply(a, x, dense):
    return _product(a, x[..., None], dense)[..., 0] if dense else a * x


def _product(second, first, dense):
    if dense:
        return jnp.matmul(second, first, precision=lax.Precision.HIGHEST)
    return second * first
