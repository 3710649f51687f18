"""The algebra of affine maps `x -> a x + b`, for diagonal and dense `a`."""

import jax.numpy as jnp
from jax import lax

from .._custom_types import Inexact


def is_dense(a: Inexact, b: Inexact) -> bool:
    return a.ndim == b.ndim + 1


def apply(a: Inexact, x: Inexact) -> Inexact:
    """`a x`, with `a` diagonal (as many axes as `x`) or dense (one more)."""
    if a.ndim == x.ndim:
        return a * x
    # A sum of products is several times faster than a batched `dot_general` for the
    # small `n` that a dense scan is for, and never runs in TF32.
    return (a * x[..., None, :]).sum(-1)


def compose(second: Inexact, first: Inexact, dense: bool) -> Inexact:
    """The linear part of the affine map `second` after `first`, in full precision.

    Diagonals, or with `dense` matrices on the last two axes; other axes broadcast.
    """
    if dense:
        return jnp.matmul(second, first, precision=lax.Precision.HIGHEST)
    return second * first
