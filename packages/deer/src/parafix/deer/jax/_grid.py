"""What solvers on a time grid ask of their arguments, and what they return."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from parafix.core.jax import RESULTS, Solution


def checked_state(y0: Any) -> Float[Array, " n"]:
    """`y0`, a vector of real floats."""
    nested = jax.tree.structure(y0) != jax.tree.structure(0)
    if nested and not isinstance(y0, list | tuple):
        raise TypeError(
            f"`y0` must be an array (n,), got a {type(y0).__name__}. "
            "`jax.flatten_util.ravel_pytree` makes a pytree one."
        )
    y0 = jnp.asarray(y0)
    if y0.ndim != 1:
        raise ValueError(
            f"`y0` must have shape (n,), the state of one sample; got {y0.shape}. "
            "Batches come by `jax.vmap`."
        )
    if not jnp.issubdtype(y0.dtype, jnp.floating):
        raise TypeError(f"`y0` must be real floats, got {y0.dtype}.")
    return y0


def checked_times(ts: Any, y0: Array) -> Float[Array, " T"]:
    """`ts` in the dtype of `y0`; they must increase, where their values are known."""
    if not isinstance(ts, Tracer):
        values = np.asarray(ts)
        if values.ndim == 1 and not (np.diff(values) > 0).all():
            where = int(np.argmin(np.diff(values) > 0))
            raise ValueError(
                f"`ts` must increase; ts[{where}] is {values[where]} and "
                f"ts[{where + 1}] is {values[where + 1]}."
            )
    ts = jnp.asarray(ts)
    if ts.ndim != 1 or ts.shape[0] == 0:
        raise ValueError(
            f"`ts` must have shape (T,) with at least one time; got {ts.shape}."
        )
    if not (
        jnp.issubdtype(ts.dtype, jnp.floating) or jnp.issubdtype(ts.dtype, jnp.integer)
    ):
        raise TypeError(f"`ts` must be real numbers, got {ts.dtype}.")
    return ts if ts.dtype == y0.dtype else ts.astype(y0.dtype)


def checked_inputs(xs: PyTree, length: int) -> PyTree[Array]:
    """`xs`, of which every leaf must have `length` as its first axis."""
    for path, x in jax.tree_util.tree_leaves_with_path(xs):
        if jnp.shape(x)[:1] != (length,):
            raise ValueError(
                f"`xs{jax.tree_util.keystr(path)}` must have the length of `ts`, "
                f"{length}, as its first axis; got shape {jnp.shape(x)}."
            )
    return jax.tree.map(jnp.asarray, xs)


def check_output(out: PyTree, y: Array, meaning: str) -> None:
    """Raises unless what `f` returned, as shapes, is an array like `y`."""
    leaves = jax.tree.leaves(out)
    if jax.tree.structure(out) != jax.tree.structure(0) or leaves[0].shape != y.shape:
        shapes = jax.tree.map(lambda x: x.shape, out)
        raise ValueError(
            f"`f` must return {meaning} of shape {y.shape}, that of `y0`; got {shapes}."
        )
    if leaves[0].dtype != y.dtype:
        raise TypeError(
            f"`f` must return {meaning} of the dtype of `y0`, {y.dtype}; got "
            f"{leaves[0].dtype}."
        )


def without_first(guess: Any, length: int) -> Any:
    """A guess at all times, as one for the steps between them."""
    if isinstance(guess, Solution):
        guess = guess.value
    if guess is None or isinstance(guess, str):
        return guess
    if jnp.shape(guess)[:1] != (length,):
        raise ValueError(
            f"`guess` must hold states at all {length} times, as what is returned "
            f"does; got shape {jnp.shape(guess)}."
        )
    return jnp.asarray(guess)[1:]


def with_first(y0: Array, out: Any, throw: bool) -> Any:
    """What a recurrence returned, `ys` or `(ys, solution)`, with `y0` as row 0."""
    solution = None
    if isinstance(out, tuple):
        out, solution = out[1].value, out[1]
    ys = jnp.concatenate([y0[None], out])
    # Where there is no step, nobody else has looked at the start.
    bad = jnp.array(False) if out.shape[0] else ~jnp.isfinite(y0).all()
    if throw and not out.shape[0]:
        ys = RESULTS.nonfinite.error_if(ys, bad)
    if solution is None:
        return ys
    result = RESULTS.where(bad, RESULTS.nonfinite, solution.result)
    return ys, eqx.tree_at(lambda s: (s.value, s.result), solution, (ys, result))
