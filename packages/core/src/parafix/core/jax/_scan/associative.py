import jax.numpy as jnp

from .abstract import AbstractScan
from .algebra import apply, compose, is_dense


class AssociativeScan(AbstractScan):
    """Odd-even (cyclic) reduction: depth `O(log T)`, work `O(T n^3)` if dense.

    Neighbouring maps are composed in pairs, the recurrence of half the length is
    solved, and the states between are filled in. Unlike a scan over the monoid of
    affine maps, the products of `a` are needed on the way up only, which halves the
    number of matrix products (Blelloch, "Prefix sums and their applications", 1990;
    Hockney, "A fast direct solution of Poisson's equation", 1965).
    """

    def solve(self, a, b, init, reverse):
        if reverse:
            # A time axis of size 1 is its own flip.
            return jnp.flip(self.solve(jnp.flip(a, 0), jnp.flip(b, 0), init, False), 0)
        first = apply(a[0], init) + b[0]
        return _odd_even(a, b.at[0].set(first), is_dense(a, b))

    def reasons_against(self, a, b):
        del a, b
        return []


def _odd_even(a, b, dense):
    """`x_0 = b_0`, `x_t = a_t x_{t-1} + b_t`; `a_0` is not used."""
    length = b.shape[0]
    if length == 1:
        return b
    pairs = length // 2
    constant = a.shape[0] == 1
    even = a if constant else a[0 : 2 * pairs : 2]
    odd = a if constant else a[1::2]
    # x_{2i+1} = a_{2i+1} a_{2i} x_{2i-1} + a_{2i+1} b_{2i} + b_{2i+1}
    x_odd = _odd_even(
        compose(odd, even, dense),
        apply(odd, b[0 : 2 * pairs : 2]) + b[1::2],
        dense,
    )
    # x_{2i} = a_{2i} x_{2i-1} + b_{2i}
    rest = a if constant else a[2::2]
    x_even = apply(rest, x_odd[: (length - 1) // 2]) + b[2::2]
    x_even = jnp.concatenate([b[:1], x_even])
    # Interleaved by a reshape: an indexed update would be a scatter.
    pairs_of_x = jnp.stack([x_even[:pairs], x_odd], axis=1)
    out = pairs_of_x.reshape(2 * pairs, *b.shape[1:])
    return out if length % 2 == 0 else jnp.concatenate([out, x_even[pairs:]])
