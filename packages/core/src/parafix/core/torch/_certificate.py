"""What can be said of an iterate of a chain: how right it is, what rounding does.

Everything is per sample: a field is `(B,)`, or `(B, n)` if it is a state.
"""

import dataclasses
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ._chain import Chain, chunk_size, chunks, jacobian, slices
from ._measure import at, first, max_abs, ratio, rounded_throughout, tolerance
from ._scan import AbstractScan


_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, eq=False)
class ErrorEstimate:
    """How far rounding may have carried the solution, carried along a chain.

    Rounding perturbs every step by about `eps |z_t|`, and the chain propagates it:
    `e_t = A_t e_{t-1} + eps |z_t| s_t` with signs `s_t`. The estimate is
    `max_t |e_t| / max_t |z_t|`.

    The last update of Newton's method is the same recurrence, with the residuals on
    the right. Where these hold rounding of their own all along, it is the estimate
    already; where they are exactly zero (what was fed back is exact, or a number is
    only passed on), nothing can be seen in it.

    **Attributes:**

    - `last`, `error`, `scale`: `e_t` and the two maxima so far.
    - `step`: the Newton step of the last state: how far it is from its true value.
    - `measured`: whether so far the updates have been the estimate.
    """

    last: Tensor
    error: Tensor
    scale: Tensor
    step: Tensor
    measured: Tensor

    @classmethod
    def zero(cls, init: Tensor) -> "ErrorEstimate":
        zero, none = init.new_zeros(init.shape[:1]), torch.zeros_like(init)
        return cls(none, zero, zero, none, torch.ones_like(zero, dtype=torch.bool))

    @property
    def value(self) -> Tensor:
        return torch.where(self.error == 0, 0, self.error / self.scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Certificate:
    """What can be said of an iterate; `residual` is in units of the tolerance.

    `newton` is the largest Newton step, in units of the tolerance and of what rounding
    alone may cause; `near` the first time at which it is above one. `prefix` is the
    first time at which rounding may have carried `z` beyond tolerance, and `entry` the
    entry of the state for which it is worst there. `tiny` says whether the updates of
    Newton's method were of the size of rounding, so that `z` was what they led to.
    """

    residual: Tensor
    newton: Tensor
    near: Tensor
    error: ErrorEstimate
    prefix: Tensor
    entry: Tensor
    tiny: Tensor

    @classmethod
    def start(cls, problem: Chain, error: ErrorEstimate) -> "Certificate":
        """Before anything was looked at; `error` is that of what precedes the chain."""
        zero = torch.zeros_like(error.error)
        none = torch.zeros_like(zero, dtype=torch.int64)
        end = torch.full_like(none, problem.length)
        return cls(zero, zero, end, error, end, none, none == 0)


class Report(NamedTuple):
    """What is known of the solve of a chain; each of shape `(B,)`.

    `entry` is the entry of a state that messages speak about, `growth` the Lyapunov
    exponent, NaN where nobody has asked for it.
    """

    result: Tensor
    prefix: Tensor
    num_steps: Tensor
    num_evals: Tensor
    residual: Tensor
    entry: Tensor
    growth: Tensor
    # The first time at which a loop has computed the state.
    start: Tensor
    num_linear: Tensor


class Part(NamedTuple):
    """What is known of some times: the first, the iterate, `f - z`, what is allowed."""

    begin: int
    z: Tensor
    r: Tensor
    tol: Tensor


def certify(
    problem: Chain,
    z: Tensor,
    error: ErrorEstimate,
    rtol: Any,
    atol: Any,
    scan: str | AbstractScan = "auto",
    chunk: int | None = None,
) -> Certificate:
    """The residual and the Newton step at `z`, and how far rounding is carried.

    One more evaluation, with the whole Jacobian whatever the solver used. `error` is
    that of what precedes the chain. Carries no derivative.
    """
    sofar = Certificate.start(problem, error)
    lag, structure = problem.lag(z), problem.structure
    chunk = chunk_size(chunk, z, problem.num_entries)
    for begin, end in chunks(problem.length, chunk):
        part_z = z[begin:end]
        xs = slices(problem.xs, begin, end)
        f, a = jacobian(problem.at_all_times, lag[begin:end], xs)
        r = f - part_z
        tol = tolerance(rtol, atol, part_z)
        part = Part(begin, part_z, r, tol)
        # A derivative that is not finite says nothing about rounding.
        a = torch.where(torch.isfinite(a), a, 0)
        new = _carry_rounding(problem, scan, sofar, part, a)
        d = structure.solve(a, r, sofar.error.step, scan)
        distance = ratio(d, tol + 10 * new.error.error[:, None])
        near = first(~(distance.abs() <= 1), begin, problem.length)
        sofar = dataclasses.replace(
            new,
            residual=torch.maximum(sofar.residual, max_abs(ratio(r, tol))),
            newton=torch.maximum(sofar.newton, max_abs(distance)),
            near=torch.minimum(sofar.near, near),
            error=dataclasses.replace(new.error, step=d[-1]),
        )
    return sofar


def vouch(
    problem: Chain,
    scan: str | AbstractScan,
    sofar: Certificate,
    part: Part,
    d: Tensor,
    a: Tensor,
    within: Tensor,
    rtol: Any,
) -> Certificate:
    """Takes the certificate of an iterate of Newton's method over the next times.

    `d` is the update, `a` the Jacobian, and `within` says of each sample whether all
    was within tolerance so far; what is returned for others is not made use of.
    """
    before = sofar.error
    error = torch.maximum(before.error, max_abs(d))
    scale = torch.maximum(before.scale, max_abs(part.z))
    # With loose tolerances, an update says more of them than of rounding.
    small = max_abs(d) <= unstable_above(problem) * scale
    measured = before.measured & rounded_throughout(part.r) & small
    # The state that is returned is one Newton step further.
    step = torch.zeros_like(before.step)
    # `tol / rtol` is `|z|`, and what takes its place near zero.
    rtol = torch.as_tensor(rtol, dtype=d.dtype, device=d.device)
    tiny = (d.abs() * rtol < 16 * problem.eps * part.tol) & (rtol > 0)
    sofar = dataclasses.replace(sofar, tiny=sofar.tiny & tiny.all(-1).all(0))
    seen = dataclasses.replace(
        sofar, error=ErrorEstimate(d[-1], error, scale, step, measured)
    )
    if d.device.type == "cpu" and not bool((within & ~measured).any()):
        return seen
    sofar = dataclasses.replace(sofar, error=dataclasses.replace(before, step=step))
    a = torch.where(torch.isfinite(a), a, 0)
    return where(measured, seen, _carry_rounding(problem, scan, sofar, part, a))


def unstable_above(problem: Chain) -> float:
    """The relative error above which digits count as lost to rounding."""
    eps = problem.eps
    return float(eps.max() if isinstance(eps, Tensor) else eps) ** 0.5


def _carry_rounding(problem, scan, sofar, part, a):
    """Takes the estimate of the error over the next times; `a` is finite."""
    begin, z, _, tol = part
    rounding = problem.eps * z * _signs(problem, part)
    e = problem.structure.solve(a, rounding, sofar.error.last, scan)
    lost = first(~(e.abs() <= tol), begin, problem.length)
    new = (lost < problem.length) & (sofar.prefix == problem.length)
    error = ErrorEstimate(
        e[-1],
        torch.maximum(sofar.error.error, max_abs(e)),
        torch.maximum(sofar.error.scale, max_abs(z)),
        sofar.error.step,
        torch.zeros_like(sofar.error.measured),
    )
    return dataclasses.replace(
        sofar,
        error=error,
        prefix=torch.where(new, lost, sofar.prefix),
        entry=torch.where(new, worst(at(e, lost - begin)), sofar.entry),
    )


def _signs(problem, part):
    # A fixed sequence without period that any recurrence could resonate with: bits of
    # a linear congruential hash of the entry's number.
    z = part.z
    times = torch.arange(part.begin, part.begin + len(z), device=z.device)
    position = problem.offset + problem.stride * times
    entry = position[:, None] * problem.size
    entry = entry + torch.arange(problem.size, device=z.device)
    bits = (entry * 1103515245 + 12345) & 0x10000
    return torch.where(bits != 0, 1, -1).to(z.dtype)[:, None]


def worst(x: Tensor) -> Tensor:
    """Which entry of each state is largest; NaN is larger than all."""
    return torch.where(torch.isnan(x), torch.inf, x.abs()).argmax(-1)


def where(pred: Tensor, x: _T, y: _T) -> _T:
    """`x` for the samples for which `pred` is true, and `y` for the others."""
    if x is None:
        return y
    if isinstance(x, tuple) and isinstance(y, tuple):
        each = (where(pred, *pair) for pair in zip(x, y, strict=True))
        return tuple(each)  # pyright: ignore[reportReturnType]
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        pred = pred.reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(pred, x, y)  # pyright: ignore[reportReturnType]
    fields = dataclasses.fields(x)  # pyright: ignore[reportArgumentType]
    pairs = {
        field.name: where(pred, getattr(x, field.name), getattr(y, field.name))
        for field in fields
    }
    return type(x)(**pairs)
