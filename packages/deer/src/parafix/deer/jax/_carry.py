import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import partial_eval as pe
from jaxtyping import Array, Float, PyTree

from parafix.core.jax import Leaf


class Layout(eqx.Module):
    """How the leaves of a carry become a flat state, and back.

    Real and complex floats are iterated on: raveled, in one dtype (at least float32, so
    that the algebra on half-precision states is done in float32). All other leaves
    (counters, keys) drive the iteration and must not depend on it.
    """

    treedef: Any = eqx.field(static=True)
    structs: tuple[jax.ShapeDtypeStruct, ...] = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, carry: PyTree[jax.ShapeDtypeStruct]) -> "Layout":
        paths, treedef = jax.tree_util.tree_flatten_with_path(carry)
        return cls(
            treedef,
            tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in paths),
            tuple("carry" + jax.tree_util.keystr(path) for path, _ in paths),
        )

    @property
    def floats(self) -> tuple[int, ...]:
        return tuple(i for i, x in enumerate(self.structs) if _is_float(x))

    @property
    def drivers(self) -> tuple[int, ...]:
        return tuple(i for i, x in enumerate(self.structs) if not _is_float(x))

    @property
    def dtype(self) -> Any:
        dtypes = [jnp.finfo(self.structs[i].dtype).dtype for i in self.floats]
        with jax.numpy_dtype_promotion("standard"):
            return jnp.result_type(jnp.float32, *dtypes)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Name, number of state entries and rounding error of every float leaf."""
        return tuple(
            Leaf(
                self.names[i],
                _size(self.structs[i]),
                float(jnp.finfo(self.structs[i].dtype).eps),
            )
            for i in self.floats
        )

    @property
    def size(self) -> int:
        return sum(leaf.size for leaf in self.leaves)

    def cast(self, carry: PyTree) -> PyTree:
        """`carry` with exactly the dtypes of the layout."""
        leaves = [
            x if x.dtype == s.dtype else x.astype(s.dtype)
            for x, s in zip(
                map(jnp.asarray, self.treedef.flatten_up_to(carry)),
                self.structs,
                strict=True,
            )
        ]
        return self.treedef.unflatten(leaves)

    def split(self, carry: PyTree) -> tuple[Float[Array, " n"], tuple[Array, ...]]:
        """The state and the drivers of one carry."""
        leaves = self.treedef.flatten_up_to(carry)
        parts = [jnp.zeros((0,), self.dtype)] if not self.floats else []
        for i in self.floats:
            x = leaves[i]
            if jnp.iscomplexobj(x):
                parts += [x.real.ravel(), x.imag.ravel()]
            else:
                parts.append(x.ravel())
        state = jnp.concatenate([x.astype(self.dtype) for x in parts])
        return state, tuple(leaves[i] for i in self.drivers)

    def join(self, state: Float[Array, " n"], drivers: tuple[Array, ...]) -> PyTree:
        """The carry of a state and its drivers."""
        leaves: list[Any] = [None] * len(self.structs)
        at = 0
        for i in self.floats:
            struct = self.structs[i]
            size = _size(struct)
            x = state[at : at + size]
            at += size
            if jnp.issubdtype(struct.dtype, jnp.complexfloating):
                x = lax.complex(x[: size // 2], x[size // 2 :])
            leaves[i] = x.reshape(struct.shape).astype(struct.dtype)
        for i, x in zip(self.drivers, drivers, strict=True):
            leaves[i] = x
        return self.treedef.unflatten(leaves)


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _size(struct):
    twice = 2 if jnp.issubdtype(struct.dtype, jnp.complexfloating) else 1
    return twice * math.prod(struct.shape)


class Body(eqx.Module):
    """What the jaxpr of `f` tells about its outputs."""

    # For each driver that depends on a float leaf: the names of both.
    tainted: tuple[tuple[str, str], ...] = eqx.field(static=True)
    # For each leaf of y: the carry leaf that it is, or None.
    aliases: tuple[int | None, ...] = eqx.field(static=True)
    y_treedef: Any = eqx.field(static=True)
    # Whether it does more than compute: prints, or talks to other samples.
    effects: bool = eqx.field(static=True, default=False)

    def check_drivers(self, layout: Layout) -> None:
        """Raises `TypeError` if a leaf that is no float depends on one that is."""
        if self.tainted:
            driver, source = self.tainted[0]
            dtype = layout.structs[layout.names.index(driver)].dtype
            raise TypeError(
                f"`{driver}` ({dtype}) depends on `{source}`, and only float leaves of "
                "the carry can be iterated on. Make it a float, or use "
                'solver="sequential".'
            )


def inspect(f: Callable, layout: Layout, carry: PyTree, x: PyTree) -> Body:
    """Which drivers depend on floats, and which outputs are the new carry itself."""
    closed, (_, y) = jax.make_jaxpr(f, return_shape=True)(carry, x)
    jaxpr, count = closed.jaxpr, len(layout.structs)
    tainted = []
    for i in layout.drivers:
        wanted = [j == i for j in range(len(jaxpr.outvars))]
        _, used = pe.dce_jaxpr(jaxpr, wanted)
        tainted += [
            (layout.names[i], layout.names[j]) for j in layout.floats if used[j]
        ]
    new_carry = {id(var): i for i, var in enumerate(jaxpr.outvars[:count])}
    aliases = tuple(
        new_carry.get(id(var)) if _is_variable(var) else None
        for var in jaxpr.outvars[count:]
    )
    return Body(tuple(tainted), aliases, jax.tree.structure(y), bool(closed.effects))


def _is_variable(var):
    return not hasattr(var, "val")
