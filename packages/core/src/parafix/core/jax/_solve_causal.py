from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import ArrayLike

from ._causal import AbstractCausalSweep, one_after_the_other, sweep_until
from ._causal_adjoint import solved
from ._chain import Leaf
from ._check import checked_count, default_tolerance
from ._check_causal import check_causal
from ._entries import all_finite, by_entry, count_of, finite, is_float
from ._result import fail_if, leaf_of, Places, RESULTS
from ._solution import Solution
from ._solver import as_causal, Sequential


_Z = TypeVar("_Z")

MODES = ("exact", "tolerance", "budget")


def solve_causal(
    f: Callable[[_Z], _Z],
    z0: _Z,
    *,
    solver: str | AbstractCausalSweep | Sequential = "jacobi",
    mode: str = "exact",
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int | None = None,
    throw: bool = True,
    check: bool = True,
) -> Solution[_Z]:
    """Find `z = f(z)`, where entry `i` of `f(z)` depends on entries before `i` alone.

    So computes whoever samples one entry after the other: entry `i` needs the finished
    entries before it, and `f` is called once for each. But `f` gives all entries at
    once, and whatever is right is right for good: sweeps `z' = f(z)` are through after
    as many as the longest path of dependences, plus the one that confirms.

    Written for one sample, with the entries on axis 0; batches come by `jax.vmap`, in
    which every sample stops by itself and the others change no bit of it.

    !!! example

        ```python
        import jax.numpy as jnp
        from parafix.core.jax import solve_causal

        w = jnp.tril(jnp.ones((100, 100)), -1) / 100
        solve_causal(lambda z: jnp.sin(w @ z + 1), jnp.zeros(100)).value
        ```

    **Arguments:**

    - `f`: maps `z` to something of its structure, shapes and dtypes. All randomness in
        it must have been drawn before.
    - `z0`: the guess: an array, or a pytree of arrays, whose first axis are the `N`
        entries; floats (real or complex), integers or booleans. The solution does not
        depend on it, and its gradient is zero. Entries that are not finite count as 0.
    - `solver`: an [`parafix.core.jax.AbstractCausalSweep`][], a registered name such as
        `"jacobi"`, or `"sequential"`: the loop itself, which accepts one entry of
        `f(z)` in every pass.
    - `mode`: when to stop. `"exact"`: when two sweeps agree bit for bit, which proves
        that the answer is that of `"sequential"`. `"tolerance"`: when they agree to
        within tolerance; the first of the two is returned, whose residual that is. The
        rest of the wave, if there is one, is given up, and `stats["exact_prefix"]` says
        from where. `"budget"`: after `max_steps` sweeps at the latest, whatever has
        been reached; it never raises for that.
    - `rtol`, `atol`: of floats; `eps^(3/4)` of the dtype by default, of the finest if
        there are several. With `"exact"` they are only the unit of `stats["residual"]`.
    - `max_steps`: at most this many sweeps, each of which evaluates `f` once; `N + 1`,
        which always is enough, by default. `"budget"` needs one. `N` bring all entries,
        and one more confirms them.
    - `throw`: whether a failure raises, also under `jit` and when only a gradient is
        asked for.
    - `check`: whether to look first if `f` is causal and deterministic, by
        [`parafix.core.jax.check_causal`][] on four cuts, where the call is not traced.
        That costs seven evaluations.

    **Returns:**

    A [`parafix.core.jax.Solution`][] with `value` like `z0`. When a solve fails that is
    the last iterate, whose first `stats["exact_prefix"]` entries are those of the
    solution. A solution that holds a NaN is `nonfinite`, with the NaN where the
    sequential program has it. `stats["converged_prefix"]` are the entries from the
    start that were within tolerance of the sweep before.

    **Raises:**

    `TypeError` or `ValueError` for arguments that do not fit, `ValueError` if `f` is
    seen not to be causal, and at run time, with `throw=True`, the sentence of the
    result.

    ??? cite "Reference"

        Song, Meng, Liao and Ermon, "Accelerating feedforward computation via parallel
        nonlinear equation solving", ICML 2021, algorithms 1 and 3.
    """
    z0 = jax.tree.map(jnp.asarray, z0)
    count = _checked_entries(z0)
    if mode not in MODES:
        raise ValueError(
            f'`mode` must be "exact", "tolerance" or "budget", got {mode!r}.'
        )
    max_steps = checked_count("max_steps", max_steps)
    if max_steps is None and mode == "budget":
        raise ValueError('`mode="budget"` needs `max_steps`, the number of sweeps.')
    max_steps = count + 1 if max_steps is None else max_steps
    solver = as_causal(solver, rtol, atol, _tolerance(z0))
    _check_floats(solver, z0)
    jax.eval_shape(lambda z: _checked_image(z0, f(z)), z0)
    if check and count and not any(isinstance(x, Tracer) for x in jax.tree.leaves(z0)):
        found = check_causal(f, z0, exact=mode == "exact")
        if found is not None and not found.causal:
            raise ValueError(found.message())
    return _solve(f, z0, solver, mode, max_steps, throw)


@eqx.filter_jit
def _solve(f, z0, solver, mode, max_steps, throw):
    fn = eqx.filter_closure_convert(lambda z: _checked_image(z0, f(z)), z0)
    if count_of(z0) == 0:
        none = jnp.array(0)
        return Solution(
            z0, RESULTS.successful, _stats(none, none, none, jnp.array(0.0))
        )
    leaves = tuple(
        Leaf(jax.tree_util.keystr(path), max(1, by_entry(x).shape[1]), 0.0)
        for path, x in jax.tree_util.tree_leaves_with_path(z0)
    )
    task = _Task(solver, mode, max_steps, throw, leaves)
    z, (result, stats, position, leaf) = solved(fn, task, z0)
    names = tuple(leaf.name for leaf in leaves)
    return Solution(z, result, stats, position, leaf, names)


class _Task(eqx.Module):
    """How to solve, and what to do about a failure."""

    solver: AbstractCausalSweep | Sequential
    mode: str = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    throw: bool = eqx.field(static=True)
    leaves: tuple[Leaf, ...] = eqx.field(static=True)

    def __call__(self, fn, z0):
        if isinstance(self.solver, Sequential):
            z, result, stats = _sequentially(fn, z0)
        else:
            z, result, stats = _in_sweeps(
                fn, z0, self.solver, self.mode, self.max_steps
            )
        bad = ~all_finite(z)
        last = len(bad) - 1
        position = jnp.minimum(stats["exact_prefix"], last)
        nonfinite = result == RESULTS.nonfinite
        position = jnp.where(nonfinite, jnp.argmax(bad), position)
        leaf = leaf_of(_first_bad(z, position), self.leaves)
        if self.throw:
            raised = result
            if self.mode == "budget":
                within = result == RESULTS.max_steps_reached
                raised = RESULTS.where(within, RESULTS.successful, result)
            growth = jnp.full((), jnp.nan)
            places = Places(self.leaves)
            z = fail_if(z, raised, places, position, leaf, growth)
        return z, (result, stats, position, leaf)


def _in_sweeps(fn, z0, solver, mode, max_steps):
    count = count_of(z0)
    state = sweep_until(fn, z0, solver, max_steps, exact=mode == "exact")
    # The last sweep may have brought the last entry; another would confirm it.
    ended = state.proven | (state.prefix == count)
    ended = ended if mode == "exact" else ended | state.close
    result = RESULTS.max_steps_reached
    for flag, meaning in (
        (ended, RESULTS.successful),
        (ended & ~all_finite(state.z).all(), RESULTS.nonfinite),
        (state.contradicted, RESULTS.not_causal),
    ):
        result = RESULTS.where(flag, meaning, result)
    exact = jnp.where(state.contradicted, 0, state.prefix)
    converged = jnp.where(ended, count, exact)
    steps = state.num_steps
    return state.z, result, _stats(steps, exact, converged, state.residual)


def _sequentially(fn, z0):
    z = one_after_the_other(fn, z0)
    bad = ~all_finite(z)
    result = RESULTS.where(bad.any(), RESULTS.nonfinite, RESULTS.successful)
    count = jnp.array(len(bad))
    return z, result, _stats(count, count, count, jnp.zeros(()))


def _stats(steps, exact, converged, residual):
    return {
        "num_steps": steps,
        "num_evals": steps,
        "num_linear": jnp.array(0),
        "residual": residual,
        "converged_prefix": converged,
        "exact_prefix": exact,
    }


def _first_bad(z, position):
    """The first number of an entry that is not finite; the first of all if none."""
    flags = [~by_entry(finite(x))[position] for x in jax.tree.leaves(z)]
    flags = [x if x.size else jnp.zeros(1, bool) for x in flags]
    return jnp.argmax(jnp.concatenate(flags))


def _tolerance(z0):
    floats = [x.real.dtype for x in jax.tree.leaves(z0) if is_float(x)]
    return min(map(default_tolerance, floats), default=0.0)


def _checked_entries(z0):
    """`N`."""
    leaves = jax.tree_util.tree_leaves_with_path(z0)
    if not leaves:
        raise ValueError("`z0` has no array in it.")
    counts = set()
    for path, x in leaves:
        name = f"`z0{jax.tree_util.keystr(path)}`"
        if x.ndim == 0:
            raise ValueError(f"{name} is a scalar; its first axis must be the entries.")
        if not jnp.issubdtype(x.dtype, jnp.number) and x.dtype != bool:
            raise TypeError(f"{name} must hold numbers, got {x.dtype}.")
        counts.add(x.shape[0])
    if len(counts) > 1:
        raise ValueError(
            "All leaves of `z0` must have the same number of entries on their first "
            f"axis, got {sorted(counts)}."
        )
    return counts.pop()


def _check_floats(solver, z0):
    if getattr(solver, "for_floats_only", False):
        for x in jax.tree.leaves(z0):
            if not is_float(x):
                raise TypeError(
                    f"{type(solver).__name__} adds and scales entries, which must be "
                    f'floats; got {x.dtype}. `solver="jacobi"` takes any.'
                )


def _checked_image(z: Any, f: Any) -> Any:
    """`f(z)`, which must be like `z`."""
    f = jax.tree.map(jnp.asarray, f)
    describe = lambda tree: jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
    if describe(f) != describe(z):
        raise TypeError(
            "`f` must return what it takes, with the same structure, shapes and "
            f"dtypes: `z0` is {describe(z)}, and `f` returned {describe(f)}."
        )
    return f
