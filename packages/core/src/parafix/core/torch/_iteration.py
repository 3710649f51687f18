import abc
import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from ._calculus import AbstractOperator, is_recorded
from ._check import checked_tolerance
from ._linear import looks
from ._result import RESULTS
from ._tally import Tally
from ._watch import max_abs, Watch


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
    return not is_recorded()


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
    eps = torch.finfo(z.dtype).eps
    growth = eps**-0.75
    # On a CPU the host sees for nothing whether a sample has ended, and most steps end
    # none. An accelerator would have to be waited for, so there everything is computed.
    watched, recorded = z.device.type == "cpu", not may_overwrite()
    fixed = _constant if recorded else _itself
    quiet = torch.no_grad() if torch.is_grad_enabled() else contextlib.nullcontext()
    watch = Watch(solver, z) if watched and not recorded else None
    # Nothing need be told of samples apart as long as all are seen to go on.
    tally: Any = None
    everyone = watch is not None and watch.sees(z)
    if not everyone:
        # A guess that is not finite stops the loop before anything is evaluated.
        tally = Tally(torch.isfinite(fixed(z)).all(1))
        everyone = watched and not anywhere(~tally.active)
        if watch is not None:
            watch.sees(torch.where(tally.active[:, None], z, 0))
    best, residual = z, z.new_full(z.shape[:1], torch.inf)
    first = residual
    num_linear: Tensor | int = 0
    # What becomes of all samples if none is told apart at the end.
    code, num_steps = RESULTS.max_steps_reached, max_steps
    measure = _measure(solver, z)
    memory = solver.init_memory(z)
    for step in range(max_steps):
        if start is not None:
            (value, jvp), start = start, None
        else:
            value, jvp = linearise(z) if solver.linearises else (fn(z), None)
        g = value - z
        with quiet:
            size, measured = measure(fixed(z), fixed(g))
            if step == 0:
                first = max_abs(fixed(g))
                if watch is not None:
                    watch.limits(growth, first)
            if not everyone:
                # What has ended does not end again.
                measured = torch.where(tally.active, measured, 2)
            calm = watch is not None and watch.all_go_on(measured)
            if everyone and watch is not None and watch.all_converged():
                best, residual, tally = z, measured, None
                code, num_steps = RESULTS.successful, step + 1
                break
            improved = watch.improved() if everyone and watch is not None else None
            # Comparisons with NaN are false.
            better = measured < residual if improved is None else None
            if better is not None and not everyone:
                better = tally.active & better
            if improved:
                residual = measured
            elif better is not None:
                residual = torch.where(better, measured, residual)
            if not calm:
                tally = tally or _all_active(measured)
                going = (measured > 1) & (max_abs(fixed(g)) <= growth * first)
                ended = tally.active & ~going
                if not watched or anywhere(ended):
                    everyone = False
                    finite = torch.isfinite(fixed(value)).all(1)
                    codes = torch.where(finite, RESULTS.diverged, RESULTS.nonfinite)
                    codes = torch.where(measured <= 1, RESULTS.successful, codes)
                    tally.end(ended, codes, step + 1)
        if improved:
            best = z
        elif better is not None:
            best = torch.where(better[:, None], z, best)
        if not everyone:
            if not calm and looks(step, z.device) and not anywhere(tally.active):
                break
            g = torch.where(tally.active[:, None], g, 0)
        new, memory, linear = solver.advance(z, g, jvp, memory)
        new = rounded(new)
        if not everyone:
            new = torch.where(tally.active[:, None], new, z)
        with quiet:
            if solver.linearises:
                counted = linear if everyone else torch.where(tally.active, linear, 0)
                num_linear = num_linear + counted
            change = fixed(new) - fixed(z)
            moves = False
            if watch is not None:
                lengths = max_abs(change)
                if not everyone:
                    lengths = torch.where(tally.active, lengths, watch.moving)
                moves = watch.all_move(lengths)
            if not moves:
                tally = tally or _all_active(measured)
                failed = tally.active & ~torch.isfinite(fixed(new)).all(1)
                still = (change.abs() <= eps * size).all(1)
                stalled = tally.active & still & solver.rests
                if not watched or anywhere(failed | stalled):
                    everyone = False
                    codes = RESULTS.stalled, RESULTS.linear_solve_failed
                    codes = torch.where(stalled, *codes)
                    tally.end(failed | stalled, codes, step + 1)
        if not (moves or everyone):
            new = torch.where(tally.active[:, None], new, z)
            if looks(step, z.device) and not anywhere(tally.active):
                break
        if watch is not None and not moves:
            watch.sees(torch.where(tally.active[:, None], new, 0))
        z = new
    whole = functools.partial(first.new_full, first.shape, dtype=torch.int64)
    if tally is None:
        result, steps, evals = map(whole, (code, num_steps, num_steps + spent))
    else:
        result = tally.result
        steps = torch.where(tally.active, max_steps, tally.num_steps)
        evals = steps + spent
    if not isinstance(num_linear, Tensor):
        num_linear = whole(num_linear)
    return Outcome(best, result, steps, evals, num_linear, residual, memory)


def _all_active(like):
    return Tally(torch.ones_like(like, dtype=torch.bool))


def _constant(x):
    return x.detach()


def _itself(x):
    return x


def _measure(solver, like):
    """`(z, g)` to `|z|`, and of each sample `max |g| / (atol + rtol |z|)`."""
    rtol, atol = (
        like.new_full((), x)
        if isinstance(x, float)
        else torch.as_tensor(x, dtype=like.dtype, device=like.device)
        for x in (solver.rtol, solver.atol)
    )
    tiny = torch.finfo(like.dtype).tiny
    positive = not isinstance(solver.atol, Tensor) and solver.atol >= tiny

    def measure(z, g):
        size = z.abs()
        ratio = g / torch.addcmul(atol, size, rtol)
        if not positive:
            # 0 / 0 is an entry that is met exactly at zero tolerance.
            ratio = torch.where(g == 0, 0, ratio)
        return size, max_abs(ratio)

    return measure


def anywhere(flags: Tensor) -> bool:
    """Whether a flag is set for any sample, and in any member of a `vmap`."""
    return bool(bare(flags).any())


def bare(x: Tensor) -> Tensor:
    """`x` without the transforms of `torch.func` that it is under."""
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    return x
