import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import ArrayLike, PyTree

from ._adjoint import as_adjoint, Loop
from ._check import checked_count
from ._custom_types import State
from ._result import RESULTS
from ._solution import Solution
from ._solver import as_dense


_Y = TypeVar("_Y")


@eqx.filter_jit
def fixed_point(
    fn: Callable[..., _Y],
    y0: _Y,
    args: PyTree[Any] = None,
    *,
    solver: str | optx.AbstractIterativeSolver = "anderson",
    adjoint: str | optx.AbstractAdjoint = "implicit",
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> Solution[_Y]:
    """Find `y` with `fn(y, args) = y`.

    Written for one sample: batches come by `jax.vmap`, in which every sample stops by
    itself and the others change no bit of it. (A batch inside `y` is one problem, which
    has converged when all of it has.)

    !!! example

        ```python
        import jax.numpy as jnp
        from parafix.core.jax import fixed_point

        fixed_point(jnp.cos, jnp.array(1.0)).value  # 0.739...
        ```

    **Arguments:**

    - `fn`: maps `(y, args)`, or `y` alone if `args` is `None`, to something of the
        structure, shapes and dtypes of `y`.
    - `y0`: the guess: a pytree of real floating-point arrays. Its gradient is zero,
        unless `adjoint="unrolled"`.
    - `args`: passed on to `fn`; any pytree.
    - `solver`: a registered name, which is built from `rtol` and `atol`, an
        [`parafix.core.jax.AbstractIteration`][], or any solver of Optimistix.
    - `adjoint`: how to differentiate: a registered name or an Optimistix adjoint.
    - `rtol`, `atol`: `y` is a solution if `max |fn(y) - y| / (atol + rtol |y|)` is at
        most one; `eps^(3/4)` of the dtype of each leaf by default.
    - `max_steps`: at most this many steps, each of which measures an iterate and then
        moves, so that the last move is in vain; 256 by default.
    - `throw`: whether a failure raises, also under `jit` and when only a gradient is
        asked for.

    **Returns:**

    A [`parafix.core.jax.Solution`][]; its `value` has the structure of `y0`. When a
    solve fails, that is the iterate of lowest residual.

    **Raises:**

    `TypeError` if `y0` or `fn` is not as above, `ValueError` for bad numbers, and at
    run time, with `throw=True`, the sentence of the result.
    """
    return _solve(fn, y0, args, False, solver, adjoint, rtol, atol, max_steps, throw)


@eqx.filter_jit
def root_find(
    fn: Callable[..., _Y],
    y0: _Y,
    args: PyTree[Any] = None,
    *,
    solver: str | optx.AbstractIterativeSolver = "newton",
    adjoint: str | optx.AbstractAdjoint = "implicit",
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> Solution[_Y]:
    """Find `y` with `fn(y, args) = 0`.

    The same as [`parafix.core.jax.fixed_point`][] of `y - fn(y, args)`, and so is
    everything about it: in particular, `y` is a solution if
    `max |fn(y)| / (atol + rtol |y|)` is at most one.

    !!! example

        ```python
        import jax.numpy as jnp
        from parafix.core.jax import root_find

        root_find(lambda y, a: y**2 - a, jnp.array(1.0), 2.0).value  # 1.414...
        ```

    **Arguments:**

    - `fn`: maps `(y, args)`, or `y` alone if `args` is `None`, to something of the
        structure, shapes and dtypes of `y`.
    - All others: as in [`parafix.core.jax.fixed_point`][].

    **Returns:**

    A [`parafix.core.jax.Solution`][].
    """
    return _solve(fn, y0, args, True, solver, adjoint, rtol, atol, max_steps, throw)


class Layout(eqx.Module):
    """How a pytree lies in a flat vector, which is at least of single precision."""

    treedef: Any = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    dtypes: tuple[np.dtype, ...] = eqx.field(static=True)

    @property
    def dtype(self) -> np.dtype:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.result_type(jnp.float32, *self.dtypes)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(int(np.prod(shape)) for shape in self.shapes)

    @property
    def tolerance(self) -> float | np.ndarray:
        """`eps^(3/4)`, one number, or one for each entry if dtypes differ."""
        each = [float(jnp.finfo(dtype).eps) ** 0.75 for dtype in self.dtypes]
        if len(set(each)) <= 1:
            return each[0] if each else 0.0
        return np.repeat(each, self.sizes)

    def flatten(self, y: PyTree) -> State:
        leaves = [jnp.ravel(leaf).astype(self.dtype) for leaf in jax.tree.leaves(y)]
        return jnp.concatenate(leaves) if leaves else jnp.zeros(0, self.dtype)

    def unflatten(self, z: State) -> PyTree:
        parts = jnp.split(z, np.cumsum(self.sizes)[:-1]) if self.sizes else []
        leaves = [
            part.reshape(shape).astype(dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, leaves)

    def round(self, z: State) -> State:
        """`z` as its leaves can hold it."""
        if all(dtype == self.dtype for dtype in self.dtypes):
            return z
        return self.flatten(self.unflatten(z))


def _layout(y0):
    leaves, treedef = jax.tree.flatten_with_path(y0)
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            hint = ""
            if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                hint = " Split it into its real and its imaginary part."
            raise TypeError(
                f"`y0{jax.tree_util.keystr(path)}` must be real floats, got "
                f"{leaf.dtype}.{hint}"
            )
    return Layout(
        treedef,
        tuple(leaf.shape for _, leaf in leaves),
        tuple(np.dtype(leaf.dtype) for _, leaf in leaves),
    )


def _checked_output(layout, out):
    expected = jax.tree.unflatten(
        layout.treedef,
        [
            f"{dtype}{list(shape)}"
            for shape, dtype in zip(layout.shapes, layout.dtypes, strict=True)
        ],
    )
    got = jax.tree.map(lambda x: f"{jnp.asarray(x).dtype}{list(jnp.shape(x))}", out)
    if got != expected:
        raise TypeError(
            "`fn` must return what it takes, with the same structure, shapes and "
            f"dtypes: `y0` is {expected}, and `fn` returned {got}."
        )
    return out


def _solve(fn, y0, args, root, solver, adjoint, rtol, atol, max_steps, throw):
    y0 = jax.tree.map(_as_array, y0)
    layout = _layout(y0)
    max_steps = checked_count("max_steps", max_steps)
    max_steps = 256 if max_steps is None else max_steps
    solver = as_dense(solver, rtol, atol, layout.tolerance)
    adjoint = as_adjoint(adjoint)

    def f(z, args):
        y = layout.unflatten(z)
        out = fn(y) if args is None else fn(y, args)
        out = layout.flatten(_checked_output(layout, out))
        return (z - out if root else out), None

    z0 = layout.flatten(y0)
    if z0.size == 0:
        return _empty(y0, z0)
    # What `fn` closes over becomes an input, where the adjoint sees it.
    f = eqx.filter_closure_convert(f, z0, args)
    options = {"throw": throw, "round": layout.round}
    inputs = (f, solver, z0, args, options, max_steps, None, None, frozenset())
    z, (stats, _) = adjoint.apply(_primal, _rewrite, inputs, frozenset())
    stats = dict(stats)
    result = stats.pop("result")
    return Solution(layout.unflatten(z), result, stats, position=None)


def _as_array(x):
    x = jnp.asarray(x)
    # A plain Python integer is a number; an array of integers may be a mistake.
    if jnp.issubdtype(x.dtype, jnp.integer) and x.weak_type:
        return x.astype(jnp.result_type(float))
    return x


def _primal(inputs):
    f, solver, z0, args, options, max_steps, _, _, _, while_loop = inputs
    solution = optx.fixed_point(
        f,
        solver,
        z0,
        args,
        options,
        has_aux=True,
        max_steps=max_steps,
        adjoint=Loop(while_loop),
        throw=False,
    )
    stats = {
        name: solution.stats[name]
        for name in ("num_steps", "num_evals", "num_linear", "residual", "result")
    }
    # For an adjoint that makes use of what the solver has learnt.
    return solution.value, (stats, eqx.filter(solution.state.memory, eqx.is_array))


def _rewrite(z, _, inputs):
    # The form in which Optimistix's own adjoints differentiate.
    f, _, _, args, *_ = inputs
    return f(z, args)[0] - z


# Optimistix wants plain functions; where types are checked at run time, they are not.
_primal, _rewrite = inspect.unwrap(_primal), inspect.unwrap(_rewrite)


def _empty(y0, z0):
    none = jnp.array(0)
    stats = {
        "num_steps": none,
        "num_evals": none,
        "num_linear": none,
        "residual": jnp.zeros((), z0.dtype),
    }
    return Solution(y0, RESULTS.successful, stats, position=None)
