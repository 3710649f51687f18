"""What of a sequence is run: where it starts over, and how long it is."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree


class Segments(eqx.Module):
    """Resets and the length of one sample; `None` where neither was asked for."""

    resets: Bool[Array, " T"] | None = None
    # True for the times that belong to the sample.
    valid: Bool[Array, " T"] | None = None

    @property
    def trivial(self) -> bool:
        return self.resets is None and self.valid is None

    @property
    def starts(self) -> Bool[Array, " T"] | None:
        """Where a chain is reset: what does not belong to it hangs on nothing."""
        if self.valid is None:
            return self.resets
        return ~self.valid if self.resets is None else self.resets | ~self.valid

    def filled(self, xs: PyTree, reverse: bool) -> PyTree:
        """`xs` with the input that is run first where none belongs to the sample.

        A step evaluated there is thrown away; but were it NaN, or had it no derivative,
        then so would be what zero times its derivative gives. From `init` the sample
        takes that input, and perhaps no other.
        """
        valid = self.valid
        if valid is None or valid.shape[0] == 0:
            return xs
        place = jnp.maximum(valid.sum() - 1, 0) if reverse else 0

        def fill(x):
            first = x[place]
            if jnp.issubdtype(x.dtype, jnp.inexact):
                first = jnp.where(valid[0], first, 0)
            return jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, first)

        return jax.tree.map(fill, xs)

    def looped(self, f: Callable, init: PyTree) -> Callable:
        """`f` for a loop over `(x, reset, valid)`."""

        def body(carry, inputs):
            x, reset, valid = inputs
            before = carry if reset is None else select(reset, init, carry)
            if valid is None:
                return f(before, x)
            new, y = f(select(valid, before, init), x)
            return select(valid, new, carry), select(valid, y, jax.tree.map(zero, y))

        return body

    def held(
        self, z: Float[Array, "T n"], init: Float[Array, " n"]
    ) -> Float[Array, "T n"]:
        """`z` in the order of running, unchanged after the last time that belongs."""
        if self.valid is None:
            return z
        index = jnp.arange(z.shape[0])
        last = jnp.max(jnp.where(self.valid, index, -1))
        final = jnp.where(last < 0, init, z[last])
        # In a reversed run it is the first times that do not belong.
        ended = (index > last) & ~self.valid
        return jnp.where(ended[:, None], final, jnp.where(self.valid[:, None], z, init))

    def cleared(self, ys: PyTree) -> PyTree:
        """`ys` with zeros for what does not belong to the sample."""
        valid = self.valid
        if valid is None:
            return ys
        return jax.tree.map(
            lambda y: jnp.where(valid.reshape(-1, *(1,) * (y.ndim - 1)), y, zero(y)), ys
        )


def checked_segments(resets: Any, lengths: Any, length: int) -> Segments:
    """The segments of a sequence of `length` steps; an error names what is wrong."""
    if resets is not None:
        resets = jnp.asarray(resets)
        if resets.dtype != bool:
            raise TypeError(f"`resets` must be booleans, got {resets.dtype}.")
        if resets.shape != (length,):
            raise ValueError(
                f"`resets` must have shape {(length,)}, one for every step; got "
                f"{resets.shape}."
            )
    if lengths is None:
        return Segments(resets)
    lengths = lengths if isinstance(lengths, Tracer) else np.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"`lengths` must be an integer, got {lengths.dtype}.")
    if lengths.shape != ():
        raise ValueError(
            "`lengths` must be one number, that of the steps of one sample (a batch "
            f"comes by `jax.vmap`); got shape {lengths.shape}."
        )
    message = f"`lengths` must be between 0 and {length}, the length of `xs`"
    beyond = (lengths < 0) | (lengths > length)
    if isinstance(lengths, Tracer):
        lengths = eqx.error_if(lengths, beyond, f"{message}.")
    elif beyond:
        raise ValueError(f"{message}; got {lengths}.")
    return Segments(resets, jnp.arange(length) < lengths)


def select(flag: Bool[Array, ""], x: PyTree, y: PyTree) -> PyTree:
    """`x` where true, `y` elsewhere, leaf by leaf; keys and counters included."""
    return jax.tree.map(lambda x, y: jnp.where(flag, x, y), x, y)


def zero(x: Array) -> Array:
    """Zeros like `x`; a PRNG key has none, and stays."""
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return x
    return jnp.zeros_like(x)
