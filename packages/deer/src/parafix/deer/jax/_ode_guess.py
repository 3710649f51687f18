"""Where the sweeps start from."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from ._ode_grid import Grid
from ._ode_step import Carry, Interval, Step


# A coarse step is as long as this many steps of the grid.
STRIDE = 10


def checked_name(guess: Any) -> None:
    """Raises `ValueError` if `guess` is a name that there is not."""
    if isinstance(guess, str) and guess not in ("coarse", "constant", "step"):
        raise ValueError(
            '`guess` must be "coarse", "constant", "step", states at all times or a '
            f"`diffrax.Solution`, got {guess!r}."
        )


def guess_of(
    guess: Any, step: Step, init: Carry, intervals: Interval, grid: Grid
) -> Any:
    """What `scan` takes as a guess: a name, carries at all `N` times, or `None`."""
    if isinstance(guess, str):
        if guess != "coarse":
            return "init" if guess == "constant" else guess
        ys = _coarse(step, init, intervals, grid)
    elif isinstance(guess, diffrax.Solution):
        ys = _finite(_resampled(guess, init.y, grid), init.y)
    else:
        ys = _checked(jax.tree.map(jnp.asarray, guess), init.y, grid.after.shape[0])
    ys = lax.stop_gradient(jax.tree.map(lambda x, y: x.astype(y.dtype), ys, init.y))
    return lax.stop_gradient(_remembered(step, init, ys, intervals))


def delayed(first: PyTree[Array], rest: PyTree[Array]) -> PyTree[Array]:
    """What was there before each of `rest`."""
    return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs[:-1]]), first, rest)


def _coarse(step, init, intervals, grid):
    """A solve by few long steps, interpolated; the initial state if that blows up.

    The solver is the one of the solve itself, and so is its interpolation.
    """
    length = grid.after.shape[0]
    starts = np.arange(0, length, STRIDE)
    stops = np.minimum(starts + STRIDE, length) - 1
    before, after, jump = intervals
    long = (before[starts], after[stops], None if jump is None else jump[starts])

    def body(carry, interval):
        carry, report = step(carry, interval)
        return carry, (carry.y, report.dense_info)

    _, (reached, infos) = lax.scan(body, init, long)

    def fill(before, after, info, times):
        return jax.vmap(lambda t: step.evaluate(before, after, info, t))(times)

    # The last long step may be shorter: its last time is asked for again, and dropped.
    inside = np.minimum(starts[:, None] + np.arange(STRIDE), length - 1)
    ys = jax.vmap(fill)(*long[:2], infos, grid.after[inside])
    ys = jax.tree.map(lambda x: lax.collapse(x, 0, 2)[:length], ys)
    sound = _is_sound(init.y, reached)
    return jax.tree.map(lambda x, y: jnp.where(sound, x, y), ys, init.y)


def _is_sound(y0, ys):
    """Whether no state is beyond `1 / sqrt(eps)` times the first ones.

    The long steps may be unstable where the others are not.
    """
    sound = jnp.array(True)
    for first, rest in zip(jax.tree.leaves(y0), jax.tree.leaves(ys), strict=True):
        if rest.size == 0:
            continue
        sizes = jnp.abs(rest).reshape(rest.shape[0], -1).max(1)
        limit = jnp.maximum(jnp.abs(first).max(), sizes[0])
        limit = limit / float(jnp.finfo(rest.dtype).eps) ** 0.5
        # NaN is not smaller than anything.
        sound = sound & (sizes <= limit).all() & jnp.isfinite(sizes).all()
    return sound


def _resampled(solution, y0, grid):
    """An earlier solution at the times of `grid`."""
    if solution.interpolation is not None:
        path = solution.interpolation
        return jax.vmap(lambda t: path.evaluate(t * path.direction))(grid.after)
    times = jax.tree.leaves(solution.ts)
    if len(times) != 1 or times[0].shape[0] < 2:
        raise ValueError(
            "A `diffrax.Solution` as `guess` must have been made with "
            "`SaveAt(steps=True)`, `SaveAt(ts=...)` or `SaveAt(dense=True)`."
        )
    ts = times[0] * jnp.where(solution.t0 < solution.t1, 1, -1).astype(times[0].dtype)
    ys = _checked(solution.ys, y0, ts.shape[0], "`guess.ys`")
    t = grid.after.astype(ts.dtype)
    k = jnp.clip(jnp.searchsorted(ts, t), 1, ts.shape[0] - 1)
    weight = jnp.clip((t - ts[k - 1]) / (ts[k] - ts[k - 1]), 0, 1)

    def between(x):
        shape = (-1,) + (1,) * (x.ndim - 1)
        w = weight.reshape(shape).astype(x.dtype)
        return x[k - 1] + w * (x[k] - x[k - 1])

    return jax.tree.map(between, ys)


def _finite(ys, y0):
    return jax.tree.map(lambda x, y: jnp.where(jnp.isfinite(x), x, y), ys, y0)


def _checked(ys, y0, length, name="`guess`"):
    if jax.tree.structure(ys) != jax.tree.structure(y0):
        raise ValueError(
            f"{name} must have the structure of `y0`, {jax.tree.structure(y0)}, with "
            f"time as the first axis; got {jax.tree.structure(ys)}."
        )
    for x, y in zip(jax.tree.leaves(ys), jax.tree.leaves(y0), strict=True):
        expected = (length, *y.shape)
        if x.shape != expected:
            raise ValueError(
                f"{name} must hold the states at all {length} times after `t0`: "
                f"expected shape {expected}, got {x.shape}."
            )
    return ys


def _remembered(step, init, ys, intervals):
    """Carries with the states `ys`; what the solver remembers comes from one step."""
    if not step.remembers:
        return Carry(ys, None)

    def state(y, interval):
        before, after, _ = interval
        start = step.solver.init(step.terms, before, after, y, step.args)
        return step(Carry(y, start), interval)[0].solver_state

    return Carry(ys, jax.vmap(state)(delayed(init.y, ys), intervals))
