import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._adjoint import AbstractAdjoint, ImplicitAdjoint
from ._capture import Autocast
from ._certificate import certify, ErrorEstimate, Report, worst
from ._chain import Chain, check_states, differentiable, Leaf, States
from ._chain_adjoint import ChainAdjoint
from ._chain_problem import ChainProblem
from ._check import checked_count, checked_tolerance
from ._growth import lyapunov_exponent
from ._measure import at, first
from ._named import named
from ._over_time import parted
from ._result import leaf_of, RESULTS
from ._solution import Solution
from ._solver import as_sweep, Sequential
from ._structure import Custom, Structured
from ._sweep import AbstractSweep


def solve_chain(
    problem: Chain,
    *,
    solver: str | AbstractSweep | Sequential = "jacobi",
    guess: Tensor | None = None,
    adjoint: str | AbstractAdjoint = "implicit",
    rtol: Any = None,
    atol: Any = None,
    max_steps: int | None = None,
    window: int | None = None,
    throw: bool = True,
    growth: bool = True,
    fallback: str | None = None,
    patience: int | None = None,
) -> Solution[States]:
    """Solve a batch of chains for all their states at once.

    Every sample stops by itself, and the others change no bit of it.

    **Arguments:**

    - `problem`: a [`parafix.core.torch.Chain`][] of length `T` with states `(B, n)`.
        Derivatives with respect to weights of modules and other tensors that its step
        uses come by themselves.
    - `solver`: an [`parafix.core.torch.AbstractSweep`][], a
        [`parafix.core.torch.Sequential`][], or a registered name, which is built from
        `rtol` and `atol`.
    - `guess`: shape `(T, B, n)`; the initial states at all times by default. Entries
        that are not finite count as zero. Its gradient is zero.
    - `adjoint`: a [`parafix.core.torch.ChainAdjoint`][] or a registered name.
    - `rtol`, `atol`: a number, or one for each entry of a state; `eps^(3/4)` of the
        dtype of each by default.
    - `max_steps`: at most this many sweeps (in each window); `T`, which always is
        enough, by default.
    - `window`: solve this many times to the end before going on to the next, which
        bounds memory by `O(T n) + O(window n^2)`, gradients included; `None` for all.
    - `throw`: whether a failure of any sample raises.
    - `growth`: whether to measure `stats["lyapunov_exponent"]`, which takes a Jacobian
        at every time and their product, about as much as a sweep of DEER.
    - `fallback`: what to do with samples on which sweeps fail. `"sequential"`: go on
        from the prefix, one step after the other, so that the solve ends well; from the
        beginning if the chain amplifies rounding. `None`: nothing.
    - `patience`: with `fallback`, after this many sweeps (in each window), twice as
        many, four times as many, ..., look whether further ones will pay, and go on
        sequentially with the samples for which not: if at the present pace most of the
        way is still before them, and errors do not shrink along the prefix, by its
        largest Lyapunov exponent. From four times as many on the pace alone decides.
        `None`: never.

    **Returns:**

    A [`parafix.core.torch.Solution`][] with `value` of shape `(T, B, n)`, and all else
    of shape `(B,)`. Where a sample failed, its value is the last iterate, exact on its
    prefix; from the first time at which the true state is not finite it is NaN.

    **Raises:**

    `TypeError` or `ValueError` for arguments that do not fit, `ValueError` for a false
    structure, and with `throw=True` `RuntimeError` with the sentence of the first
    sample that failed.

    ??? cite "Reference"

        The view of a recurrence as one equation, and its Newton iteration, are from
        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024, equations 3 to 5.
    """
    init, length = problem.init, problem.length
    if not init.is_floating_point():
        raise TypeError(f"`init` must be real floats, got {init.dtype}.")
    shape = (length, *init.shape)
    if guess is not None and tuple(guess.shape) != shape:
        raise ValueError(
            f"`guess` must have shape {shape}, one state for every time; got "
            f"{tuple(guess.shape)}."
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
    autocast = Autocast.now(init.device)
    wide = widened(problem, autocast)
    solver = as_sweep(solver, rtol, atol, wide.eps**0.75)
    adjoint = as_adjoint(adjoint)
    if length == 0 or init.numel() == 0:
        return _empty_solution(problem, growth)
    problem.structure.shape(problem.size)  # An error if there cannot be such blocks.
    if isinstance(solver, Sequential):
        return _solve_sequentially(problem, solver, growth)
    eps = autocast.eps([init.dtype])
    guess = None if guess is None else guess.to(wide.init.dtype)
    with differentiable(wide) as wide, autocast.entered(enabled=False):
        task = ChainProblem(
            wide,
            autocast,
            eps,
            length if window is None else min(window, length),
            throw,
            solver,
            length if max_steps is None else max_steps,
            growth,
            fallback is not None,
            patience,
        )
        z, report, error = adjoint.apply(task, guess)
    return _solution(problem, z.to(init.dtype), report, error, growth)


def as_adjoint(adjoint: Any) -> ChainAdjoint:
    """The adjoint of chains that `adjoint` names, or `adjoint` itself."""
    if isinstance(adjoint, str):
        adjoint = named("adjoint", adjoint)()
    if isinstance(adjoint, ImplicitAdjoint):
        return ChainAdjoint()
    if isinstance(adjoint, ChainAdjoint):
        return adjoint
    if isinstance(adjoint, AbstractAdjoint):
        raise TypeError(
            f"{type(adjoint).__name__} is for dense problems; chains are "
            'differentiated by adjoint="implicit".'
        )
    raise TypeError(
        "`adjoint` must be the name of a registered adjoint or an object such as "
        f"`ChainAdjoint()`, got {adjoint!r}."
    )


def assess(
    problem: Chain,
    z: States,
    *,
    rtol: Any = None,
    atol: Any = None,
    growth: bool = True,
) -> Solution[States]:
    """What can be said of states that the sequential program returned.

    **Arguments:**

    - `problem`: a [`parafix.core.torch.Chain`][] of length `T` with states `(B, n)`.
    - `z`: shape `(T, B, n)`, its states, one step after the other.
    - `rtol`, `atol`: the unit in which the residual is given.
    - `growth`: whether to measure `stats["lyapunov_exponent"]`.

    **Returns:**

    A [`parafix.core.torch.Solution`][] whose `value` is `z`: `successful`, or
    `nonfinite` with the first position at which it is not finite. The residual is not
    zero but of the size of rounding, since all times are evaluated at once for it. It
    and the error estimate are NaN where the step can be run for one time only.
    """
    if z.numel() == 0:
        return _empty_solution(problem, growth)
    wide = widened(problem, Autocast.now(z.device))
    rtol = checked_tolerance("rtol", rtol, wide.eps**0.75)
    atol = checked_tolerance("atol", atol, wide.eps**0.75)
    with differentiable(wide) as wide, torch.no_grad():
        # What is reported about the states carries no derivative.
        of_chain = (wide.init, wide.xs)
        init, xs = pytree.tree_map_only(Tensor, torch.Tensor.detach, of_chain)
        fixed = dataclasses.replace(wide, init=init, xs=xs)
        states = z.detach().to(init.dtype)
        prefix = first(~torch.isfinite(states), 0, problem.length)
        none = torch.zeros_like(prefix)
        unknown = torch.full_like(states[0, :, 0], torch.nan)
        residual = error = exponent = unknown
        entry, jacobians = worst(at(states, prefix)), 0
        if fixed.has_tangent:
            certificate = certify(
                fixed, states, ErrorEstimate.zero(fixed.init), rtol, atol
            )
            residual, error = certificate.residual, certificate.error.value
            jacobians = 1
            if growth:
                exponent = lyapunov_exponent(fixed, states, prefix)
                jacobians = 2
        bad = prefix < problem.length
        report = Report(
            torch.where(bad, RESULTS.nonfinite, RESULTS.successful),
            prefix,
            none + problem.length,
            none + jacobians,
            residual,
            entry,
            exponent,
            none,
            none + jacobians * problem.num_linear,
        )
    return _solution(problem, z, report, error, growth)


def widened(problem: Chain, autocast: Autocast) -> Chain:
    """The chain on states of at least single precision, and what rounds its steps."""
    dtype = problem.init.dtype
    leaves = problem.leaves or (Leaf("", problem.size, torch.finfo(dtype).eps),)
    if autocast.enabled and dtype != torch.float64:
        # What runs in reduced precision rounds to it, whatever the dtype of the state.
        reduced = autocast.eps([dtype])
        leaves = [leaf._replace(eps=max(leaf.eps, reduced)) for leaf in leaves]
    problem = dataclasses.replace(problem, leaves=tuple(leaves))
    wide = torch.promote_types(dtype, torch.float32)
    if wide == dtype:
        return problem
    step, formula, structure = problem.step, problem.linearised, problem.structure
    if formula is not None:
        given = formula
        formula = lambda z, x: given(z.to(dtype), x)
    if isinstance(structure, Custom):
        function = structure.function
        structure = Custom(lambda z, x: function(z.to(dtype), x), structure.form)
    return dataclasses.replace(
        problem,
        step=Structured(lambda z, x: step(z.to(dtype), x), structure),
        init=problem.init.to(wide),
        linearised=formula,
    )


def _empty_solution(problem, growth):
    samples = problem.init.shape[:1]
    none = torch.zeros(samples, dtype=torch.int64, device=problem.init.device)
    zero = problem.init.new_zeros(samples)
    length = none + problem.length
    unknown = torch.full_like(zero, torch.nan)
    report = Report(none, length, none, none, zero, none, unknown, length, none)
    z = problem.init.new_zeros((problem.length, *problem.init.shape))
    return _solution(problem, z, report, zero, growth)


def _solve_sequentially(problem, solver, growth):
    tensors, joined = parted(problem.xs)
    z, states = problem.init, []
    steps = [x.unbind(0) for x in tensors]
    for t in range(problem.length):
        # A copy: what the step does to its argument is no business of `states`.
        z = problem.step(z.clone(), joined([x[t] for x in steps]))
        check_states(z, problem.init)
        states.append(z)
    tolerances = {"rtol": solver.rtol, "atol": solver.atol}
    return assess(problem, torch.stack(states), growth=growth, **tolerances)


def _solution(problem, z, report, error, growth):
    stats = {
        "num_steps": report.num_steps,
        "num_evals": report.num_evals,
        "num_linear": report.num_linear,
        "residual": report.residual,
        "converged_prefix": report.prefix,
        "error_estimate": error,
        "sequential_from": report.start,
    }
    if growth:
        stats["lyapunov_exponent"] = report.growth
    return Solution(
        value=z,
        result=report.result,
        stats=stats,
        position=problem.offset + problem.stride * report.prefix,
        leaf=leaf_of(report.entry, problem.leaves),
        leaves=tuple(leaf.name for leaf in problem.leaves),
    )
