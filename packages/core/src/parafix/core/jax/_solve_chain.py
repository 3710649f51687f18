import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax import lax
from jaxtyping import ArrayLike

from ._adjoint import Loop
from ._attach import as_chain_adjoint, closed_chain
from ._certificate import certify, ErrorEstimate, worst_entry
from ._chain import Chain, chunk_size, scan_chunks
from ._check import checked_count, checked_tolerance
from ._custom_types import States
from ._growth import lyapunov_exponent
from ._measure import max_residual
from ._result import RESULTS
from ._segments import since_reset
from ._solution import Solution
from ._solver import as_sweep, Sequential
from ._summary import empty_solution, solution_of, Summary
from ._sweep import AbstractSweep


@eqx.filter_jit
def solve_chain(
    problem: Chain,
    *,
    solver: str | AbstractSweep | Sequential = "jacobi",
    guess: States | None = None,
    adjoint: str | optx.AbstractAdjoint = "implicit",
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int | None = None,
    window: int | None = None,
    throw: bool = True,
    fallback: str | None = None,
    patience: int | None = None,
) -> Solution[States]:
    """Solve a chain for all its states at once.

    Written for one sample: batches come by `jax.vmap`, in which every sample stops by
    itself and the others change no bit of it.

    **Arguments:**

    - `problem`: a [`parafix.core.jax.Chain`][] of length `T` and state size `n`.
    - `solver`: an [`parafix.core.jax.AbstractSweep`][], a
        [`parafix.core.jax.Sequential`][], or a registered name, which is built from
        `rtol` and `atol`.
    - `guess`: shape `(T, n)`; the initial state at all times by default. Entries that
        are not finite count as zero. Its gradient is zero.
    - `adjoint`: a [`parafix.core.jax.ChainAdjoint`][] or a registered name.
    - `rtol`, `atol`: a number, or one for each entry of a state; `eps^(3/4)` of the
        dtype of each by default.
    - `max_steps`: at most this many sweeps (in each window); `T`, which always is
        enough, by default.
    - `window`: solve this many times to the end before going on to the next, which
        bounds memory by `O(T n) + O(window n^2)`, gradients included; `None` for all.
    - `throw`: whether a failure raises, also under `jit` and when only a gradient is
        asked for.
    - `fallback`: what to do where sweeps fail. `"sequential"`: go on from the prefix,
        one step after the other, so that the solve ends well; from the beginning if the
        chain amplifies rounding. `None`: nothing.
    - `patience`: with `fallback`, after this many sweeps (in each window), twice as
        many, four times as many, ..., look whether further ones will pay, and go on
        sequentially if not: if at the present pace most of the way is still before
        them, and errors do not shrink along the prefix, by its largest Lyapunov
        exponent. From four times as many on the pace alone decides. `None`: never.

    **Returns:**

    A [`parafix.core.jax.Solution`][] with `value` of shape `(T, n)`. When a solve
    fails, that is the last iterate, exact on its prefix; from the first time at which
    the true state is not finite it is NaN, up to the next reset.

    ??? cite "Reference"

        The view of a recurrence as one equation, and its Newton iteration, are from
        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024, equations 3 to 5.
    """
    length, size = problem.length, problem.size
    dtype = problem.init.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"`init` must be real floats, got {dtype}.")
    if guess is not None and guess.shape != (length, size):
        raise ValueError(
            f"`guess` must have shape {(length, size)}, one state for every time; got "
            f"{guess.shape}."
        )
    if fallback not in (None, "sequential"):
        raise ValueError(f'`fallback` must be None or "sequential", got {fallback!r}.')
    patience = checked_count("patience", patience)
    if patience is not None and fallback is None:
        raise ValueError(
            '`patience` says when sweeps are given up for `fallback="sequential"`, '
            "which was not asked for."
        )
    max_steps = checked_count("max_steps", max_steps)
    window = checked_count("window", window)
    solver = as_sweep(solver, rtol, atol, _default_tolerance(problem))
    window = length if window is None else min(window, length)
    adjoint = as_chain_adjoint(adjoint, problem, window)
    if length == 0 or size == 0:
        return empty_solution(problem)
    problem = closed_chain(problem)
    if isinstance(solver, Sequential):
        return _solve_sequentially(problem, solver)
    options = {
        "window": window,
        "throw": throw,
        "fallback": fallback is not None,
        "patience": patience,
    }
    return _solve_in_parallel(problem, solver, guess, adjoint, max_steps, options)


def assess(
    problem: Chain,
    z: States,
    *,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
) -> Solution[States]:
    """What can be said of states that the sequential program returned.

    **Arguments:**

    - `problem`: a [`parafix.core.jax.Chain`][] of length `T` and state size `n`.
    - `z`: shape `(T, n)`, its states, one step after the other.
    - `rtol`, `atol`: the unit in which the residual is given.

    **Returns:**

    A [`parafix.core.jax.Solution`][] whose `value` is `z`: `successful`, or `nonfinite`
    with the first position at which it is not finite. The residual is not zero but of
    the size of rounding, since all times are evaluated at once for it.
    """
    if z.size == 0:
        return empty_solution(problem)
    # What is reported about the states carries no derivative.
    fixed, fixed_z = _stop_gradient((problem, z))
    bad = ~jnp.isfinite(fixed_z).all(-1)
    dead = None
    if problem.resets is not None:
        dead = since_reset(bad, problem.resets)
        fixed_z = jnp.where(dead[:, None], 0, fixed_z)
    prefix = jnp.where(bad.any(), jnp.argmax(bad), problem.length)
    default = _default_tolerance(problem)
    rtol = checked_tolerance("rtol", rtol, default)
    atol = checked_tolerance("atol", atol, default)
    if fixed.has_tangent:
        certificate = certify(
            fixed, fixed_z, ErrorEstimate.zero(fixed.init), rtol, atol, dead=dead
        )
        residual, error = certificate.residual, certificate.error.value
        growth = lyapunov_exponent(fixed, fixed_z, prefix)
        evals = jacobians = 2
    else:
        # Only what needs no derivative can be said.
        residual = max_residual(fixed(fixed_z), fixed_z, rtol, atol)
        error = growth = jnp.full((), jnp.nan, z.dtype)
        evals, jacobians = 1, 0
    if dead is not None:
        residual = jnp.where(bad.any(), jnp.nan, residual)
    summary = Summary(
        RESULTS.where(bad.any(), RESULTS.nonfinite, RESULTS.successful),
        prefix,
        jnp.array(problem.length),
        jnp.array(evals),
        jnp.array(jacobians * problem.structure.num_linear(problem.size)),
        residual,
        worst_entry(fixed, fixed_z, prefix),
        jnp.array(0),
    )
    return solution_of(problem, z, summary, error, growth)


def _default_tolerance(problem):
    tolerance = problem.eps**0.75
    one = tolerance.size == 0 or (tolerance == tolerance[0]).all()
    return float(tolerance[0]) if one and tolerance.size else tolerance


def _solve_in_parallel(problem, solver, guess, adjoint, max_steps, options):
    # The adjoint sees one solve of the whole chain, in the form of Optimistix.
    options = {"problem": problem, **options}
    inputs = (_fn, solver, guess, problem, options, max_steps, None, None, frozenset())
    z, (summaries, error) = adjoint.apply(_solve_windows, None, inputs, frozenset())
    # The first window that failed speaks for all.
    failed = summaries.result != RESULTS.successful
    one = jnp.where(failed.any(), jnp.argmax(failed), failed.shape[0] - 1)
    summary = jax.tree.map(lambda x: x[one], summaries)
    # That of the exponent is one more evaluation, with the whole Jacobian.
    whole = problem.structure.num_linear(problem.size)
    summary = dataclasses.replace(
        summary,
        num_steps=summaries.num_steps.sum(),
        num_evals=summaries.num_evals.sum() + 1,
        num_linear=summaries.num_linear.sum() + whole,
        residual=summaries.residual.max(),
        start=summaries.start.min(),
    )
    # Nobody else needs it: it costs those who look at it.
    chunk = chunk_size(solver.chunk, problem.length, problem.num_entries)
    growth = lyapunov_exponent(
        problem, z, summary.prefix, min(options["window"], chunk)
    )
    return solution_of(problem, z, summary, error.value, growth)


def _fn(z, problem):
    return problem(z)


def _solve_windows(inputs):
    """The states, and what is known of them: one window after the other."""
    _, solver, guess, problem, options, max_steps, _, _, _, while_loop = inputs

    def body(carry, elements):
        init, error, exact = carry
        xs, guess, index, resets = elements
        part = Chain(
            problem.step,
            init,
            xs,
            index.shape[0],
            problem.offset + problem.stride * index[0],
            problem.stride,
            problem.leaves,
            resets,
            None if resets is None else problem.start,
        )
        window = {"problem": part, "error": error, "exact": exact}
        z, stats = _solve_window(
            solver, guess, max_steps, {**options, **window}, while_loop
        )
        start = stats["sequential_from"]
        summary = Summary(
            stats["result"],
            index[0] + stats["converged_prefix"],
            stats["num_steps"],
            stats["num_evals"],
            stats["num_linear"],
            stats["residual"],
            stats["entry"],
            jnp.where(start < part.length, index[0] + start, problem.length),
        )
        carry = (z[-1], stats["error"], exact & (start == 0))
        return carry, (z, jax.tree.map(lambda x: x[None], summary))

    (_, error, _), (z, summaries) = scan_chunks(
        body,
        (problem.init, ErrorEstimate.zero(problem.init), jnp.array(True)),
        (problem.xs, guess, jnp.arange(problem.length), problem.resets),
        problem.length,
        options["window"],
    )
    return z, (summaries, error)


def _solve_window(solver, guess, max_steps, options, while_loop):
    problem = options["problem"]
    max_steps = problem.length if max_steps is None else max_steps
    if guess is None:
        guess = jnp.broadcast_to(problem.init, (problem.length, problem.size))
    sol = optx.fixed_point(
        _fn,
        solver,
        jnp.where(jnp.isfinite(guess), guess, 0),
        args=problem,
        options={**options, "max_steps": max_steps},
        max_steps=max_steps,
        adjoint=Loop(while_loop),
        throw=False,
    )
    return sol.value, sol.stats


def _solve_sequentially(problem, solver):
    def body(z, elements):
        x, reset = elements
        if reset is not None:
            z = jnp.where(reset, problem.start, z)
        z = problem.step(z, x)
        return z, z

    elements = (problem.xs, problem.resets)
    _, z = lax.scan(body, problem.init, elements, length=problem.length)
    return assess(problem, z, rtol=solver.rtol, atol=solver.atol)


def _stop_gradient(tree):
    def stop(x):
        return lax.stop_gradient(x) if eqx.is_inexact_array(x) else x

    return jax.tree.map(stop, tree)
