import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._certificate import (
    Certificate,
    certify,
    ErrorEstimate,
    Report,
    unstable_above,
    where,
    worst,
)
from ._chain import Chain, Matrices, States
from ._check import checked_count, checked_tolerance
from ._measure import at, max_abs, ratio, tolerance
from ._patience import Watch, watched
from ._result import RESULTS
from ._scan import AbstractScan
from ._update import advance, SweepState


@dataclasses.dataclass(frozen=True)
class AbstractSweep(abc.ABC):
    """Solves a chain by sweeps that treat all times at once.

    With `f` and a matrix `A_t` for every time, one sweep takes `z` to

    `z'_t = f(z)_t + A_t (z'_{t-1} - z_{t-1})`,

    which is one affine scan. Subclasses, frozen dataclasses, say what `A_t` is, and
    nothing else: the Jacobian gives Newton's method (DEER), its diagonal quasi-DEER,
    zero Jacobi, the identity Picard. Whatever `A_t`, the first `k` states are final
    after `k` sweeps, since `z_{t-1}` being right makes the correction zero and
    `z'_t = f(z)_t` right.

    - A sweep works in `f`, `r = f - z` and `d = z' - z`, so that rounding scales with
      the update and the correction is exactly zero on the exact prefix.
    - From the first time at which `z'` is not finite, it is replaced by `f`, and where
      `f` is not finite by `z`: iterates are always finite, and a NaN ahead cannot reach
      the times before it.
    - A solve has converged when `|r|` and `|d|` are both within `atol + rtol |z|` at
      all times, and so is the Newton step there: where a chain forgets slowly, small
      residuals add up, and a sweep without derivatives does not see it. Then it goes
      on, with tolerances as much smaller as the step is too large.
    - How far rounding is carried is looked at, too: an unstable chain has no solution
      that another order of the same operations would confirm.
    - It has failed for good when `r` and `d` are within tolerance at all times before
      `t`, and `f_t` is not finite: then the sequential program returns that value too.

    Every sample of a batch stops by itself, and the others change no bit of it.

    A subclass whose `transition` returns the whole Jacobian, at every iterate, sets
    `newton: ClassVar[bool] = True`: an update is a Newton step then, and needs no other
    to vouch for it.

    **Arguments:**

    - `rtol`, `atol`: relative and absolute tolerance: a state `z` is within tolerance
        if the residual and the last update are at most `atol + rtol |z|`, entry by
        entry. One number each, or one for each entry of a state.
    - `scan`: an [`parafix.core.torch.AbstractScan`][] or a registered name, for the
        affine recurrence inside a sweep; `"auto"` goes by size and device.
    - `chunk`: hold Jacobian blocks for this many times at once; `None` decides. It
        changes memory and speed, and the numbers to rounding.
    """

    rtol: float | Tensor
    atol: float | Tensor
    scan: str | AbstractScan = "auto"
    chunk: int | None = None
    newton: ClassVar[bool] = False
    # What holds the matrices back, if anything: an `AbstractDamping`. It has no
    # annotation, so that a subclass may have a field of this name where it likes.
    damping = None

    def __post_init__(self) -> None:
        checked_tolerance("rtol", self.rtol, None)
        checked_tolerance("atol", self.atol, None)
        checked_count("chunk", self.chunk)

    @abc.abstractmethod
    def transition(
        self, step: Callable[[Any, Any], Any], z: States, x: Any
    ) -> tuple[States, Matrices | None]:
        """`step(z, x)` and the `A_t` that go with it, at many times at once.

        Called where no derivatives are recorded.

        **Arguments:**

        - `step`: maps states `(T, B, n)` and inputs to the next states `(T, B, n)`;
            [`parafix.core.torch.jacobian`][] takes its Jacobian.
        - `z`: shape `(T, B, n)`, the states before these times in the current iterate.
        - `x`: the inputs at these times.

        **Returns:**

        The next states `(T, B, n)` and `A_t`: dense `(T, B, n, n)`, diagonal
        `(T, B, n)`, in the form of the structure of `step`, or `None` for zero.
        """

    @abc.abstractmethod
    def num_linear(self, size: int) -> int:
        """How many products with Jacobians, or pulls, `transition` takes.

        **Arguments:**

        - `size`: how many a whole Jacobian takes: `n`, unless a structure is declared.
        """


def solve_by_sweeps(
    solver: AbstractSweep,
    problem: Chain,
    z: Tensor,
    error: ErrorEstimate,
    max_steps: int,
    patience: int | None = None,
) -> tuple[Tensor, Report, ErrorEstimate]:
    """Sweeps from `z` until every sample has converged, or failed for good.

    With `patience` also until no further sweep will pay for the others.

    Plain numerics, outside of autograd. `error` is that of what precedes the chain.
    The states come back in memory of their own, NaN where the true ones are not finite.
    """
    run = _Run(solver, problem, error, max_steps)
    none = torch.zeros_like(error.error, dtype=torch.int64)
    everyone = torch.ones_like(none, dtype=torch.bool)
    memory = None if solver.damping is None else solver.damping.init(problem.init)
    certificate = Certificate.start(problem, error)
    state = SweepState(none, ~everyone, none, none, certificate, memory)
    z, state = run.sweeps(z, state, everyone, None, patience)
    certified = run.certified if solver.newton else run.refined
    z, state, certificates = certified(z, state)
    certificate, length = state.certificate, problem.length
    result = torch.where(certificate.newton <= 1, RESULTS.successful, RESULTS.stalled)
    for flag, code in (
        (run.unstable(certificate), RESULTS.ill_conditioned),
        (~run.converged(state), RESULTS.max_steps_reached),
        (state.nonfinite, RESULTS.nonfinite),
    ):
        result = torch.where(flag, code, result)
    # The prefix is about the iterate that entered the last sweep. The one that is
    # returned has one more state within tolerance, and at least `num_steps` exact.
    prefix = torch.maximum(state.prefix + 1, state.num_steps).clamp(max=length)
    prefix = torch.where(state.nonfinite, state.prefix, prefix)
    unstable = result == RESULTS.ill_conditioned
    prefix = torch.where(unstable, certificate.prefix, prefix)
    # Residuals within tolerance add up where a chain forgets slowly: how far states are
    # right is what the Newton step says.
    near = torch.maximum(torch.minimum(certificate.near, prefix), state.num_steps)
    short = (result == RESULTS.stalled) | (result == RESULTS.max_steps_reached)
    prefix = torch.where(short, near, prefix)
    entry = torch.where(unstable, certificate.entry, none)
    residual = certificate.residual
    failed = result != RESULTS.successful
    if solver.newton or bool(failed.any()):
        r = problem(z) - z
        residual = max_abs(ratio(r, tolerance(solver.rtol, solver.atol, z)))
        entry = torch.where(unstable, certificate.entry, worst(at(r, prefix)))
        entry = torch.where(failed, entry, none)
    if bool(state.nonfinite.any()):
        end = torch.where(state.nonfinite, prefix, length)
        beyond = torch.arange(length, device=z.device)[:, None] >= end
        z = torch.where(beyond[..., None], torch.nan, z)
    unknown = torch.full_like(residual, torch.nan)
    # Newton's method evaluates once more for the residual, without a Jacobian.
    evals = state.num_steps + state.num_looks + certificates + int(solver.newton)
    whole = problem.num_linear
    linear = state.num_steps * solver.num_linear(whole) + certificates * whole
    report = Report(
        result,
        prefix,
        state.num_steps,
        evals,
        residual,
        entry,
        unknown,
        none + length,
        linear,
    )
    return z, report, certificate.error


class _Run:
    """The loops of one solve."""

    def __init__(self, solver, problem, error, max_steps):
        self.solver, self.problem, self.error = solver, problem, error
        self.budget = min(max_steps, problem.length)
        # On a CPU the host sees for nothing whether work is needed. An accelerator has
        # to be waited for, so there it is asked once or twice in a sweep: whether some
        # sample has converged, and whether one has not.
        self.watched = problem.init.device.type == "cpu"

    def converged(self, state):
        # After `length` sweeps every state is exact, whether or not that was confirmed.
        length = self.problem.length
        return (state.prefix == length) | (state.num_steps >= length)

    def unstable(self, certificate):
        return ~(certificate.error.value <= unstable_above(self.problem))

    def sweeps(self, z, state, active, factor, patience=None):
        """Sweeps until no sample is active, with tolerances times `factor`."""
        watch, count = Watch.start(state.prefix), 0
        while True:
            count += 1
            new_z, new = self.sweep(z, state, factor)
            everyone = self.watched and bool(active.all())
            z = new_z if everyone else torch.where(active[:, None], new_z, z)
            state = new if everyone else where(active, new, state)
            going = ~self.converged(state) & ~state.nonfinite
            active = active & going & (state.num_steps < self.budget)
            if patience is not None:
                watch = watched(
                    self.solver,
                    self.problem,
                    z,
                    watch,
                    state.prefix,
                    active,
                    count,
                    patience,
                )
                active = active & ~watch.hopeless
            if not bool(active.any()):
                return z, state

    def certified(self, z, state):
        """The certificate of Newton's method, and the number of Jacobians it took."""
        # The sweep that confirmed `z` has done it, so only failures are looked at.
        sure = state.prefix == self.problem.length
        if not bool(sure.all()):
            certificate = where(sure, state.certificate, self.certify(z))
            state = dataclasses.replace(state, certificate=certificate)
        return z, state, torch.where(sure, 0, 1)

    def refined(self, z, state):
        """Sweeps on until the Newton step of `z` is within tolerance too."""
        state = dataclasses.replace(state, certificate=self.certify(z))
        factor = torch.ones_like(state.certificate.newton)
        count = torch.ones_like(state.num_steps)
        while True:
            certificate = state.certificate
            # Of a chain that is not finite, what precedes that is to be right.
            right = torch.where(
                state.nonfinite,
                certificate.near >= state.prefix,
                (certificate.newton <= 1) | self.unstable(certificate),
            )
            going = (self.converged(state) | state.nonfinite) & ~right
            going = going & (state.num_steps < self.budget)
            if not bool(going.any()):
                return z, state, count
            # The largest step may be one that is not finite.
            excess = certificate.newton.nan_to_num(1e6).clamp(1, 1e6)
            tighter = factor / (2 * excess)
            factor = torch.where(going, tighter, factor)
            count = count + going
            prefix = torch.where(going, 0, state.prefix)
            state = dataclasses.replace(state, prefix=prefix)
            z, state = self.sweeps(z, state, going, factor)
            certificate = where(going, self.certify(z), certificate)
            state = dataclasses.replace(state, certificate=certificate)

    def certify(self, z):
        solver = self.solver
        return certify(
            self.problem,
            z,
            self.error,
            solver.rtol,
            solver.atol,
            solver.scan,
            solver.chunk,
        )

    def sweep(self, z, state, factor):
        return advance(self.solver, self.problem, z, state, self.error, factor)
