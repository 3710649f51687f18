import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from ._calculus import AbstractOperator, under_transforms
from ._check import checked_tolerance
from ._linear import looks
from ._result import RESULTS


State = Float[Tensor, "B n"]


@dataclasses.dataclass(frozen=True)
class AbstractIteration(abc.ABC):
    """Solves dense problems `z = f(z)` by one evaluation of `f` for every iterate.

    Subclasses are frozen dataclasses. They say how to move, and nothing else:
    evaluating, measuring, keeping the iterate of lowest residual and deciding is done
    for them. The state is flat, `(B, n)`, whatever the tensors that the user sees, of
    single or double precision.

    Samples must not mix, and the bits of one should not depend on the others: what is
    remembered has the samples on axis 0, and products are sums of products of entries,
    not those of matrices, which round by the size of the batch.

    A subclass that sets `linearises: ClassVar[bool] = True` gets the product with the
    Jacobian of `f`, at no further evaluation. One that learns the inverse Jacobian may
    have a method `inverse_jacobian(memory, transposed)`, which returns `v -> H v`, or
    with `H^T`, with `H` near the inverse of `d(f - z)/dz`; adjoints may ask for it.

    **Arguments:**

    - `rtol`, `atol`: an iterate has converged when `max |f(z) - z| / (atol + rtol |z|)`
        is at most one. One number each, or one for each entry of a state.
    """

    rtol: float | Tensor
    atol: float | Tensor
    # Whether `advance` wants the product with the Jacobian of `f`.
    linearises: ClassVar[bool] = False
    # Whether an iterate that stays where it is means that no other will come.
    rests: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checked_tolerance("rtol", self.rtol, None)
        checked_tolerance("atol", self.atol, None)

    @abc.abstractmethod
    def init_memory(self, z: State) -> Any:
        """What is remembered from step to step: a tree of tensors, or `None`.

        **Arguments:**

        - `z`: shape `(B, n)`, the guess.
        """

    @abc.abstractmethod
    def advance(
        self, z: State, g: State, jvp: AbstractOperator | None, memory: Any
    ) -> tuple[State, Any, Tensor | int]:
        """The next iterate. Memory may be overwritten where `may_overwrite(...)`.

        **Arguments:**

        - `z`: shape `(B, n)`, the iterate.
        - `g`: shape `(B, n)`, the residual `f(z) - z`; zero for samples that have
            ended, whose next iterate nobody looks at.
        - `jvp`: `v -> J v` with the Jacobian of `f` at `z`, if `linearises`.
        - `memory`: as left by the step before.

        **Returns:**

        The next iterate `(B, n)`, the memory, and the number of Jacobian-vector
        products that this step took, one number or `(B,)`.
        """


def may_overwrite() -> bool:
    """Whether a solver may write into its memory: not while its steps are recorded."""
    return not (torch.is_grad_enabled() or under_transforms())


class Outcome(NamedTuple):
    """Where an iteration has led; all but `z` and `memory` are of shape `(B,)`."""

    z: Tensor
    result: Tensor
    num_steps: Tensor
    num_evals: Tensor
    num_linear: Tensor
    residual: Tensor
    memory: Any


def iterate(
    solver: AbstractIteration,
    fn: Callable[[Tensor], Tensor],
    linearise: Callable[[Tensor], tuple[Tensor, AbstractOperator]],
    z: Tensor,
    *,
    rounded: Callable[[Tensor], Tensor],
    max_steps: int,
    start: tuple[Tensor, AbstractOperator | None] | None = None,
    spent: int = 0,
) -> Outcome:
    """Runs `solver` from `z`, measures its iterates, and decides.

    Every sample stops by itself, and is the same bit for bit whatever the others do:

    - An iterate has converged when `max |f(z) - z| / (atol + rtol |z|)` is at most one.
    - `nonfinite`: `f` returned NaN or infinity. `diverged`: residuals grew by
      `eps^(-3/4)`. `stalled`: an iterate equals the one before it, to rounding.
      `linear_solve_failed`: a step was not finite where `f` was.
    - Whatever happens, the iterate of lowest residual comes back.

    **Arguments:**

    - `fn`, `linearise`: `(B, n)` to `(B, n)`; and to the same with the Jacobian.
    - `rounded`: a state as its leaves can hold it.
    - `max_steps`: at most this many steps.
    - `start`: `fn(z)` and its Jacobian, if they have been computed.
    - `spent`: evaluations that were made before, and are not in `start`.
    """
    samples = z.shape[:1]
    eps = torch.finfo(z.dtype).eps
    # A guess that is not finite stops the loop before anything is evaluated.
    active = torch.isfinite(z.detach()).all(1)
    residual = torch.full(samples, torch.inf, dtype=z.dtype, device=z.device)
    result = torch.where(active, RESULTS.max_steps_reached, RESULTS.nonfinite)
    num_steps = torch.zeros(samples, dtype=torch.int64, device=z.device)
    num_linear = num_steps
    first = residual
    best = z
    memory = solver.init_memory(z)
    for step in range(max_steps):
        if step == 0 and start is not None:
            (value, jvp), start = start, None
        else:
            value, jvp = linearise(z) if solver.linearises else (fn(z), None)
        g = value - z
        with torch.no_grad():
            size, measured, finite = _measure(solver, z.detach(), g.detach())
            if step == 0:
                first = size
            num_steps = num_steps + active
            # False for NaN.
            better = active & (measured < residual)
            residual = torch.where(better, measured, residual)
            converged = active & (measured <= 1)
            nonfinite = active & ~finite
            diverged = active & finite & ~converged & (size > first * eps**-0.75)
            for flag, code in (
                (diverged, RESULTS.diverged),
                (nonfinite, RESULTS.nonfinite),
                (converged, RESULTS.successful),
            ):
                result = torch.where(flag, code, result)
            active = active & ~(converged | nonfinite | diverged)
        best = torch.where(better[:, None], z, best)
        if looks(step, z.device) and not anywhere(active):
            break
        g = torch.where(active[:, None], g, 0)
        new, memory, linear = solver.advance(z, g, jvp, memory)
        new = rounded(new)
        with torch.no_grad():
            num_linear = num_linear + torch.where(active, linear, 0)
            good = torch.isfinite(new.detach())
            failed = active & ~good.all(1)
        # A fresh tensor, also where every sample moves.
        new = torch.where(active[:, None] & good, new, z)
        with torch.no_grad():
            still = (new.detach() - z.detach()).abs() <= eps * z.detach().abs()
            stalled = active & ~failed & still.all(1)
            if not solver.rests:
                stalled = torch.zeros_like(stalled)
            result = torch.where(failed, RESULTS.linear_solve_failed, result)
            result = torch.where(stalled, RESULTS.stalled, result)
            active = active & ~(failed | stalled)
        z = new
        if looks(step, z.device) and not anywhere(active):
            break
    num_evals = num_steps + spent
    return Outcome(best, result, num_steps, num_evals, num_linear, residual, memory)


def _measure(solver, z, g):
    """Of each sample `max |g|`, `max |g| / (atol + rtol |z|)`, and if `g` is finite."""
    size = g.abs()
    unit = solver.atol + solver.rtol * z.abs()
    # 0 / 0 is an entry that is met exactly at zero tolerance.
    measured = torch.where(size == 0, 0, size / unit)
    return size.amax(1), measured.amax(1), torch.isfinite(g).all(1)


def anywhere(flags: Tensor) -> bool:
    """Whether a flag is set for any sample, and in any member of a `vmap`."""
    return bool(bare(flags).any())


def bare(x: Tensor) -> Tensor:
    """`x` without the transforms of `torch.func` that it is under."""
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    return x
