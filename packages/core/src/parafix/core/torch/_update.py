"""One sweep over a chain."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ._certificate import Certificate, ErrorEstimate, Part, vouch
from ._chain import Chain, chunk_size, chunks, slices
from ._measure import all_finite, at, first, tolerance


@dataclasses.dataclass(frozen=True, eq=False)
class SweepState:
    """All about the iterate that entered the last sweep; each of shape `(B,)`.

    `num_looks` says how often Newton's method has looked at an iterate that it was
    about to return. The certificate is that of Newton's method, once it has converged;
    otherwise it has no meaning. `memory` is what the damping remembers.
    """

    prefix: Tensor
    nonfinite: Tensor
    num_steps: Tensor
    num_looks: Tensor
    certificate: Certificate
    memory: Any = None


def advance(
    solver: Any,
    problem: Chain,
    z: Tensor,
    state: SweepState,
    error: ErrorEstimate,
    factor: Tensor | None,
) -> tuple[Tensor, SweepState]:
    """The iterate after the next sweep of `solver`, and what is known of `z`.

    `error` is that of what precedes the chain; tolerances are multiplied by `factor`,
    `(B,)`, if there is one.
    """
    # On a CPU the host sees for nothing whether something has to be looked at.
    watched = z.device.type == "cpu"
    length, structure, damping = problem.length, problem.structure, solver.damping
    step, lag = problem.at_all_times, problem.lag(z)
    broken = prefix = torch.full_like(state.prefix, length)
    nonfinite = torch.zeros_like(state.nonfinite)
    certificate = Certificate.start(problem, error)
    last, held, total, parts = None, None, 0, []
    converged = False
    chunk = chunk_size(solver.chunk, z, problem.num_entries)
    for begin, end in chunks(length, chunk):
        part_z = z[begin:end]
        xs = slices(problem.xs, begin, end)
        f, a = solver.transition(step, lag[begin:end], xs)
        r = f - part_z
        if damping is not None:
            if begin == 0:
                # Nothing precedes the first time.
                a = torch.cat([torch.zeros_like(a[:1]), a[1:]])
                held = damping.start(a[0])
            a, held = damping.damp(a, begin, state.memory, held)
            total = total + r.abs().sum((0, 2))
        d = r if a is None else structure.solve(a, r, last, solver.scan)
        new = f + (d - r)
        tidy = watched and all_finite(new) and not bool((broken < end).any())
        if not tidy:
            new, d, broken = _quarantined(f, part_z, new, d, begin, broken, length)
        tol = tolerance(solver.rtol, solver.atol, part_z)
        tol = tol if factor is None else tol * factor[:, None]
        # Comparisons with NaN are false.
        within = torch.maximum(r.abs(), d.abs()) <= tol
        stop = first(~within, begin, length)
        if not tidy:
            bad = ~torch.isfinite(at(f, stop - begin)).all(-1)
            nonfinite = torch.where(stop < prefix, bad, nonfinite)
        prefix = torch.minimum(prefix, stop)
        converged = solver.newton and bool((prefix == length).any())
        if converged and a is not None:
            part = Part(begin, part_z, r, tol)
            within = prefix == length
            certificate = vouch(
                problem, solver.scan, certificate, part, d, a, within, solver.rtol
            )
        last = d[-1]
        parts.append(new)
    new = parts[0] if len(parts) == 1 else torch.cat(parts)
    memory = state.memory
    memory = memory if damping is None else damping.update(memory, total)
    steps, looks = state.num_steps + 1, state.num_looks
    if converged:
        # An update of the size of rounding leads nowhere.
        doubtful = (prefix == length) & ~certificate.tiny
        if bool(doubtful.any()):
            prefix = _look(solver, problem, new, prefix, doubtful, chunk)
        looks = looks + doubtful
    return new, SweepState(prefix, nonfinite, steps, looks, certificate, memory)


def _look(solver, problem, z, prefix, doubtful, chunk):
    """`prefix` after a look at the iterate that is returned, where it is `doubtful`.

    What a sweep has seen is the iterate before it. The two are within tolerance of each
    other, and yet a jump of `step`, where it takes a decision, may lie between them.
    """
    length, step, lag = problem.length, problem.at_all_times, problem.lag(z)
    beyond = torch.full_like(prefix, length)
    for begin, end in chunks(length, chunk):
        part = z[begin:end]
        r = step(lag[begin:end], slices(problem.xs, begin, end)) - part
        tol = tolerance(solver.rtol, solver.atol, part)
        beyond = torch.minimum(beyond, first(~(r.abs() <= tol), begin, length))
    # Of the iterate before, one state less is within tolerance.
    before = torch.where(beyond < length, (beyond - 1).clamp(min=0), length)
    return torch.where(doubtful, before, prefix)


def _quarantined(f, z, new, d, begin, broken, length):
    """The next iterate made finite, its update, and the first time of the trouble."""
    finite = torch.isfinite(new)
    broken = torch.minimum(broken, first(~finite, begin, length))
    times = torch.arange(begin, begin + len(z), device=z.device)
    # (A sum of finite numbers may overflow by itself.)
    quarantine = (times[:, None] >= broken)[..., None] | ~finite
    new = torch.where(quarantine, torch.where(torch.isfinite(f), f, z), new)
    return new, torch.where(quarantine, new - z, d), broken
