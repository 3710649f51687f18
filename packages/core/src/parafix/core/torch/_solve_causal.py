from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ._calculus import is_recorded
from ._capture import Autocast
from ._causal import AbstractCausalSweep, one_after_the_other, sweep_until
from ._causal_adjoint import attach
from ._check import checked_count, default_tolerance
from ._check_causal import check_causal
from ._dense import Layout
from ._entries import all_finite, by_entry, is_float
from ._iteration import bare
from ._result import raise_if, RESULTS
from ._solution import Solution
from ._solver import as_causal, Sequential


_Z = TypeVar("_Z", bound=Tensor | tuple[Tensor, ...])

MODES = ("exact", "tolerance", "budget")


def solve_causal(
    f: Callable[[_Z], _Z],
    z0: _Z,
    *,
    solver: str | AbstractCausalSweep | Sequential = "jacobi",
    mode: str = "exact",
    rtol: Any = None,
    atol: Any = None,
    max_steps: int | None = None,
    throw: bool = True,
    check: bool = True,
) -> Solution[_Z]:
    """Find `z = f(z)`, where entry `i` of `f(z)` depends on entries before `i` alone.

    So computes whoever samples one entry after the other: entry `i` needs the finished
    entries before it, and `f` is called once for each. But `f` gives all entries at
    once, and whatever is right is right for good: sweeps `z' = f(z)` are through after
    as many as the longest path of dependences, plus the one that confirms.

    The samples are on axis 0 and the entries on axis 1, and `f` must not mix samples.
    Every sample stops by itself, and at equal shapes the others change no bit of it.

    !!! example

        ```python
        import torch
        from parafix.core.torch import solve_causal

        w = torch.ones(100, 100).tril(-1) / 100
        solve_causal(lambda z: torch.sin(z @ w.T + 1), torch.zeros(8, 100)).value
        ```

    **Arguments:**

    - `f`: maps `z` to something of its structure, shapes and dtypes. All randomness in
        it must have been drawn before.
    - `z0`: the guess: a tensor `(B, N, ...)`, or a tuple of such; floats (real or
        complex), integers or booleans. The solution does not depend on it, and its
        gradient is zero. Entries that are not finite count as 0.
    - `solver`: an [`parafix.core.torch.AbstractCausalSweep`][], a registered name such
        as `"jacobi"`, or `"sequential"`: the loop itself, which accepts one entry of
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
    - `throw`: whether a failure raises. On a GPU, the host then waits for the result.
    - `check`: whether to look first if `f` is causal and deterministic, by
        [`parafix.core.torch.check_causal`][] on four cuts, which costs seven
        evaluations; on a GPU, the host waits for them. Not under `torch.func`.

    **Returns:**

    A [`parafix.core.torch.Solution`][] with `value` like `z0`. When a solve fails that
    is the last iterate, whose first `stats["exact_prefix"]` entries are those of the
    solution. A solution that holds a NaN is `nonfinite`, with the NaN where the
    sequential program has it. `stats["converged_prefix"]` are the entries from the
    start that were within tolerance of the sweep before.

    Derivatives are those of the solution in all that `f` uses and that a gradient is
    asked for; real floats have some.

    **Raises:**

    `TypeError` or `ValueError` for arguments that do not fit, `ValueError` if `f` is
    seen not to be causal, and with `throw=True` a `RuntimeError` with the sentence of
    the result.

    ??? cite "Reference"

        Song, Meng, Liao and Ermon, "Accelerating feedforward computation via parallel
        nonlinear equation solving", ICML 2021, algorithms 1 and 3.
    """
    # A solve stops by what it finds, which `torch.compile` cannot follow.
    solve: Any = _solve
    if torch.compiler.is_compiling():
        solve = torch.compiler.disable(_solve)
    return solve(f, z0, solver, mode, rtol, atol, max_steps, throw, check)


def _solve(f, z0, solver, mode, rtol, atol, max_steps, throw, check):
    leaves, single = _checked_entries(z0)
    if mode not in MODES:
        raise ValueError(
            f'`mode` must be "exact", "tolerance" or "budget", got {mode!r}.'
        )
    max_steps = checked_count("max_steps", max_steps)
    if max_steps is None and mode == "budget":
        raise ValueError('`mode="budget"` needs `max_steps`, the number of sweeps.')
    samples, count = leaves[0].shape[:2]
    max_steps = count + 1 if max_steps is None else max_steps
    solver = as_causal(solver, rtol, atol, _tolerance(leaves))
    _check_floats(solver, leaves)

    def image(z):
        out = f(z[0] if single else tuple(z))
        return _checked_image(leaves, out, single)

    if samples * count == 0:
        return _empty(z0, leaves)
    if check:
        whole = lambda z: image([z])[0] if single else tuple(image(z))
        found = check_causal(whole, z0, exact=mode == "exact")
        if found is not None and not found.causal:
            raise ValueError(found.message())
    with torch.no_grad():
        if isinstance(solver, Sequential):
            z, result, stats = _sequentially(image, leaves)
        else:
            z, result, stats = _in_sweeps(image, leaves, solver, mode, max_steps)
        bad = ~all_finite(z)
        position = stats["exact_prefix"].clamp(max=count - 1)
        nonfinite = result == RESULTS.nonfinite
        position = torch.where(nonfinite, bad.int().argmax(1), position)
        leaf = _first_leaf(z, position)
    names = ("",) if single else tuple(f"[{i}]" for i in range(len(leaves)))
    if throw:
        raised = result
        if mode == "budget":
            within = result == RESULTS.max_steps_reached
            raised = torch.where(within, RESULTS.successful, result)
        raise_if(bare(raised), bare(position), bare(leaf), names)
    if is_recorded():
        z = _attached(image, z, count)
    value = z[0] if single else tuple(z)
    return Solution(value, result, stats, position, leaf, names)


def _in_sweeps(image, leaves, solver, mode, max_steps):
    exact = mode == "exact"
    state = sweep_until(image, leaves, solver, max_steps, exact=exact)
    # The last sweep may have brought the last entry; another would confirm it.
    ended = state.proven | (state.prefix == leaves[0].shape[1])
    ended = ended if exact else ended | state.close
    nonfinite = ended & ~all_finite(state.z).all(1)
    result = torch.where(ended, RESULTS.successful, RESULTS.max_steps_reached)
    result = torch.where(nonfinite, RESULTS.nonfinite, result)
    result = torch.where(state.contradicted, RESULTS.not_causal, result)
    prefix = torch.where(state.contradicted, 0, state.prefix)
    converged = torch.where(ended, leaves[0].shape[1], prefix)
    stats = _stats(state.num_steps, prefix, converged, state.residual)
    return state.z, result, stats


def _sequentially(image, leaves):
    z = one_after_the_other(image, leaves)
    bad = ~all_finite(z)
    result = torch.where(bad.any(1), RESULTS.nonfinite, RESULTS.successful)
    count = torch.full_like(result, bad.shape[1])
    return z, result, _stats(count, count, count, torch.zeros_like(count) * 0.0)


def _attached(image, z, count):
    """The solution with its derivatives in floats; other leaves are as they are."""
    places = [i for i, x in enumerate(z) if x.is_floating_point()]
    if not places:
        return z
    floats = tuple(z[i] for i in places)
    shapes = tuple(tuple(x.shape[1:]) for x in floats)
    layout = Layout(False, shapes, tuple(x.dtype for x in floats))

    def completed(flat):
        new = list(z)
        for i, x in zip(places, layout.unflatten(flat), strict=True):
            new[i] = x
        return new

    def fn(flat):
        f = image(completed(flat))
        return layout.flatten(tuple(f[i] for i in places))

    autocast = Autocast.now(z[0].device)
    with autocast.entered(enabled=False):
        flat = attach(fn, layout.flatten(floats), count, autocast)
        return completed(flat)


def _stats(steps, exact, converged, residual):
    return {
        "num_steps": steps,
        "num_evals": steps,
        "num_linear": torch.zeros_like(steps),
        "residual": residual,
        "converged_prefix": converged,
        "exact_prefix": exact,
    }


def _empty(z0, leaves):
    none = torch.zeros(leaves[0].shape[0], dtype=torch.int64, device=leaves[0].device)
    stats = _stats(none, none, none, none * 0.0)
    return Solution(z0, torch.full_like(none, RESULTS.successful), stats)


def _first_leaf(z, position):
    """The first leaf that is not finite at the position of each sample; 0 if none."""
    rows = torch.arange(len(position), device=position.device)
    flags = [~by_entry(torch.isfinite(x)).all(2)[rows, position] for x in z]
    return torch.stack(flags).int().argmax(0)


def _tolerance(leaves):
    floats = [x.dtype for x in leaves if is_float(x)]
    return min(map(default_tolerance, floats), default=0.0)


def _checked_entries(z0):
    single = isinstance(z0, Tensor)
    if not single and not (
        isinstance(z0, tuple) and z0 and all(isinstance(x, Tensor) for x in z0)
    ):
        raise TypeError(f"`z0` must be a tensor or a tuple of tensors, got {z0!r}.")
    leaves = (z0,) if single else z0
    for i, x in enumerate(leaves):
        name = "`z0`" if single else f"`z0[{i}]`"
        if x.ndim < 2:
            raise ValueError(
                f"{name} must have the samples on axis 0 and the entries on axis 1, "
                f"got shape {list(x.shape)}. One sample is `z0[None]`."
            )
        if x.shape[:2] != leaves[0].shape[:2]:
            raise ValueError(
                "All leaves of `z0` must have the same number of samples and of "
                f"entries: `z0[0]` has {list(leaves[0].shape[:2])}, {name} "
                f"{list(x.shape[:2])}."
            )
        recorded = x.is_complex() and torch.is_grad_enabled() and x.requires_grad
        if recorded:
            raise TypeError(f"{name} is complex, which has no derivatives here.")
    return leaves, single


def _check_floats(solver, leaves):
    if getattr(solver, "for_floats_only", False):
        for x in leaves:
            if not is_float(x):
                raise TypeError(
                    f"{type(solver).__name__} adds and scales entries, which must be "
                    f'floats; got {x.dtype}. `solver="jacobi"` takes any.'
                )


def _checked_image(leaves, out, single):
    found = (out,) if single else out
    ok = isinstance(found, tuple) and len(found) == len(leaves)
    ok = ok and all(
        isinstance(y, Tensor) and y.shape == x.shape and y.dtype == x.dtype
        for x, y in zip(leaves, found, strict=False)
    )
    if not ok:
        describe = lambda x: f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
        names = [describe(x) if isinstance(x, Tensor) else repr(x) for x in found]
        raise TypeError(
            "`f` must return what it takes, with the same structure, shapes and "
            f"dtypes: `z0` is {', '.join(map(describe, leaves))}, and `f` returned "
            f"{', '.join(names)}."
        )
    return found
