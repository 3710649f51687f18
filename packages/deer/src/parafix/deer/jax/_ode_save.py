"""Writes what `SaveAt` asks for into the buffers that Diffrax has made for it."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Real

from ._ode_grid import Grid


class Path(eqx.Module):
    """The solution at the start, at the end of each of `N` steps, and in between."""

    grid: Grid
    t0: Real[Array, ""]
    y0: PyTree[Array]
    ys: PyTree[Array]
    # From times (m,) to states (m, ...).
    between: Callable[[Array], PyTree[Array]]

    @property
    def length(self) -> int:
        return self.grid.after.shape[0]

    def save(self, sub: diffrax.SubSaveAt, saved: Any, args: PyTree) -> Any:
        """`saved`, a record of Diffrax with buffers, filled with what `sub` asks for.

        The order is that of time; at one time `ts` goes before `steps`.
        """
        times, states, places = [], [], []
        every, ends, length = sub.steps, self.grid.ends, self.length
        at = int(sub.t0)
        # How many of `sub.ts` lie before the end of each step, or on it.
        earlier = jnp.zeros(length, int)

        def add(t, y, place):
            times.append(t)
            states.append(y)
            places.append(place)

        if sub.t0:
            add(self.t0[None], jax.tree.map(lambda x: x[None], self.y0), jnp.arange(1))
        number = 0 if sub.ts is None else sub.ts.shape[0]
        if sub.ts is not None:
            place = at + jnp.arange(number)
            if every:
                before = jnp.searchsorted(self.grid.after, sub.ts).astype(int)
                place = place + before // every
                earlier = jnp.searchsorted(sub.ts, self.grid.after, side="right")
                earlier = earlier.astype(int)
            add(sub.ts, self.between(sub.ts), place)
        if every:
            chosen = slice(every - 1, length, every)
            place = at + earlier[chosen] + jnp.arange(length // every)
            add(ends[chosen], jax.tree.map(lambda x: x[chosen], self.ys), place)
        total = at + number + (length // every if every else 0)
        if sub.t1 and (every == 0 or length % every != 0):
            t, y = self.t0, self.y0
            if length:
                t, y = jax.tree.map(lambda x: x[-1], (ends, self.ys))
            add(t[None], jax.tree.map(lambda x: x[None], y), jnp.array([total]))
            total += 1
        if not times:
            return saved
        t, y = jnp.concatenate(times), jax.tree.map(_concatenate, *states)
        place = jnp.concatenate(places)
        values = jax.vmap(lambda t, y: sub.fn(t, y, args))(t, y)
        ts = saved.ts.at[place].set(t)
        ys = jax.tree.map(
            lambda buffer, x: buffer.at[place].set(x.astype(buffer.dtype)),
            saved.ys,
            values,
        )
        return eqx.tree_at(lambda s: (s.ts, s.ys, s.save_index), saved, (ts, ys, total))


def _concatenate(*xs):
    return jnp.concatenate(xs)
