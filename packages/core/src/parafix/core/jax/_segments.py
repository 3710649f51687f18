"""Segments of a chain: the times from one reset to the next."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Shaped

from ._custom_types import BoolScalar


def checked_resets(resets: Any, length: int) -> Bool[Array, " T"]:
    """`resets` as booleans `(T,)`, or an error that names them."""
    if not hasattr(resets, "dtype"):
        resets = jnp.asarray(resets)
    if resets.dtype != bool:
        raise TypeError(f"`resets` must be booleans, got {resets.dtype}.")
    if resets.shape != (length,):
        raise ValueError(
            f"`resets` must have shape {(length,)}, one for every time; got "
            f"{resets.shape}."
        )
    return jnp.asarray(resets)


def along_time(flags: Bool[Array, " T"], x: Array) -> Bool[Array, "T ..."]:
    """`flags` with as many axes as `x`, whose first is time."""
    return flags.reshape(-1, *(1,) * (x.ndim - 1))


def since_reset(
    flags: Bool[Array, " T"],
    resets: Bool[Array, " T"] | None,
    before: BoolScalar | bool = False,
) -> Bool[Array, " T"]:
    """Whether `flags` has been true since the last reset, the time itself included.

    `before` says so of the time before the first. Without resets there is none.
    """
    index = jnp.arange(flags.shape[0])
    last_flag = lax.cummax(jnp.where(flags, index, -1))
    sofar = (last_flag >= 0) | before
    if resets is None:
        return sofar
    last_reset = lax.cummax(jnp.where(resets, index, -1))
    return jnp.where(last_reset >= 0, last_flag >= last_reset, sofar)


def earlier(flags: Bool[Array, " T"], before: BoolScalar) -> Bool[Array, " T"]:
    """`flags` one time later, `before` in front."""
    return jnp.concatenate([before[None], flags[:-1]])


def select(flags: Bool[Array, ""], x: Any, y: Any) -> Any:
    """`x` where true, `y` elsewhere, leaf by leaf; keys and counters included."""

    def one(x: Shaped[Array, "..."], y: Shaped[Array, "..."]):
        return jnp.where(flags, x, y)

    return jax.tree.map(one, x, y)
