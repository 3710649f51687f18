"""A loop over time in Python, and the derivatives that a chain has at its states."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from parafix.core.torch import assess, attach, ChainAdjoint, RESULTS, Solution

from ._job import check_pair, check_samples, Job, Outputs, sweeps_serve


def run_sequentially(
    job: Job,
    rtol: Any,
    atol: Any,
    ask: bool,
    adjoint: str | ChainAdjoint | None = None,
) -> Any:
    """The plain loop; with `ask` what can be said of it, too.

    With an `adjoint` its derivatives are those of the chain, where `f` allows for it.
    """
    if adjoint is not None and _is_chain(job):
        out, every = _attached(job, adjoint)
    else:
        out, every, _ = _loop(job, ask)
    if not ask:
        return out
    z, _ = job.layout.split(every)
    if not job.layout.floats:
        z = z.expand(job.length, *z.shape)
    found = job.drivers()
    if found.tainted:
        return out, _unassessed(job, job.flip(every), z)
    before, _ = found.run(job.init, job.xs, job.length)
    solution = assess(job.chain(before), z, rtol=rtol, atol=atol)
    return out, dataclasses.replace(solution, value=job.flip(every))


def _loop(job, ask):
    """`(carry, ys)`; if `ask` the carries in the order of time; the first pair."""
    carry, carries, ys = job.init, [], []
    first: Any = None
    for t, x in enumerate(job.steps()):
        out = job.f(carry, x)
        if t == 0:
            check_pair(out)
            job.layout.check(out[0], job.autocast)
            first = out
        carry, y = out
        ys.append(y)
        if ask:
            carries.append(carry)
    if not ys:
        ys, every = _nothing(job)
    else:
        ys, every = _stacked(ys), _stacked(carries) if ask else None
    return (carry, job.flip(ys)), every, first


def _is_chain(job):
    """Whether derivatives may be asked for, and are those of a chain of each sample."""
    wanted = torch.is_grad_enabled() or forward_ad._current_level >= 0
    wanted = wanted or torch._C._are_functorch_transforms_active()
    entries = job.length * job.layout.size * job.layout.samples
    return wanted and entries > 0 and sweeps_serve(job)


def _attached(job, adjoint):
    """The same as `_loop`, which records nothing, and then the chain at its states."""
    with torch.no_grad():
        _, every, first = _loop(job, True)
        check_samples(job, first[0])
        z, _ = job.layout.split(every)
    drivers = job.run_drivers()
    problem = job.chain(drivers[0])
    z = attach(problem, z, adjoint=adjoint)
    out, carries = Outputs(first).at_states(job, problem, z, drivers, None)
    return out, job.flip(carries)


def _stacked(steps):
    """The trees of all steps as one, whose leaves have time as their first axis."""
    if isinstance(steps[0], Tensor):
        return torch.stack(steps)
    leaves = [pytree.tree_leaves(x) for x in steps]
    structure = pytree.tree_structure(steps[0])
    together = [
        None if x[0] is None else torch.stack([torch.as_tensor(each) for each in x])
        for x in zip(*leaves, strict=True)
    ]
    return pytree.tree_unflatten(together, structure)


def _nothing(job):
    """Outputs and carries of no steps, in the structure that `f` gives them."""
    with torch.no_grad():
        out = job.f(job.init, job.example())
    check_pair(out)
    carry, y = out
    job.layout.check(carry, job.autocast)
    empty = lambda x: None if x is None else torch.as_tensor(x)[None][:0].detach()
    return pytree.tree_map(empty, y), pytree.tree_map(empty, job.init)


def _unassessed(job, carries, z):
    """About a sequential solve that is no chain: only whether it is finite."""
    fine = torch.isfinite(z.detach()).all(-1)
    prefix = fine.long().cumprod(0).sum(0)
    unknown = torch.full_like(prefix, torch.nan, dtype=job.layout.dtype)
    none = torch.zeros_like(prefix)
    bad = prefix < job.length
    return Solution(
        value=carries,
        result=torch.where(bad, RESULTS.nonfinite, RESULTS.successful),
        stats={
            "num_steps": none + job.length,
            "num_evals": none,
            "num_linear": none,
            "residual": unknown,
            "converged_prefix": prefix,
            "error_estimate": unknown,
            "lyapunov_exponent": unknown,
            "sequential_from": none,
        },
        position=job.length - 1 - prefix if job.reverse else prefix,
    )
