"""Finishes chains one step after the other, where sweeps have not solved them."""

from typing import Any

import torch
from torch import Tensor

from ._certificate import certify, ErrorEstimate, Report, unstable_above, where, worst
from ._chain import Chain, slices
from ._measure import at, first
from ._result import RESULTS


def finish(
    solver: Any,
    problem: Chain,
    z: Tensor,
    report: Report,
    before: ErrorEstimate,
    error: ErrorEstimate,
    exact: Tensor,
) -> tuple[Tensor, Report, ErrorEstimate]:
    """The samples that sweeps have failed on, from their prefix on by a loop.

    From the beginning where a start within tolerance is not good enough, since rounding
    is amplified, or the result is not within tolerance itself; that is a success as
    that of a loop is, if the loop has computed all that precedes, too (`exact`). What
    sweeps have solved, or found not to be finite, stays as it is.

    `before` is the error estimate of what precedes the chain, `error` that of `z`.
    """
    length, limit = problem.length, unstable_above(problem)
    result = report.result
    needed = (result != RESULTS.successful) & (result != RESULTS.nonfinite)
    if not bool(needed.any()):
        return z, report, error
    start = torch.where(error.value <= limit, report.prefix, 0)
    start = torch.where(needed, start, length)
    while True:
        z = run_from(problem, z, start)
        certificate = certify(
            problem, z, before, solver.rtol, solver.atol, solver.scan, solver.chunk
        )
        unstable = ~(certificate.error.value <= limit)
        again = needed & (unstable | ~(certificate.newton <= 1)) & (start > 0)
        if not bool(again.any()):
            break
        start = torch.where(again, 0, start)
    end = first(~torch.isfinite(z), 0, length)
    times = torch.arange(length, device=z.device)[:, None]
    entry = worst(at(z, end))
    z = torch.where((needed & (times >= end))[..., None], torch.nan, z)
    unstable = unstable & ~(exact & (start == 0)) & (end == length)
    result = torch.where(unstable, RESULTS.ill_conditioned, RESULTS.successful)
    finished = Report(
        torch.where(end < length, RESULTS.nonfinite, result),
        torch.where(unstable, certificate.prefix, end),
        report.num_steps,
        report.num_evals + 2,
        certificate.residual,
        torch.where(unstable, certificate.entry, entry),
        report.growth,
        start,
        report.num_linear + problem.num_linear,
    )
    pairs = zip(finished, report, strict=True)
    report = Report(*(torch.where(needed, new, old) for new, old in pairs))
    return z, report, where(needed, certificate.error, error)


def run_from(problem: Chain, z: Tensor, start: Tensor) -> Tensor:
    """`z` before the times `start`, `(B,)`, and from there on step after step."""
    step, begin = problem.at_all_times, int(start.min())
    states = list(z.unbind(0))
    for t in range(begin, problem.length):
        last = states[t - 1] if t else problem.init
        new = step(last[None], slices(problem.xs, t, t + 1))[0]
        states[t] = torch.where((start <= t)[:, None], new, states[t])
    return torch.stack(states)
