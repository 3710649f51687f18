import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils import _pytree as pytree, checkpoint

from ._calculus import (
    AbstractClosed,
    AbstractOperator,
    alias,
    forward_mode,
    grads,
    is_inexact,
    is_recorded,
    jvp,
    LinearisedOperator,
    saved,
    TracedOperator,
    under_transforms,
    vjp,
)
from ._capture import Autocast, Capture, capture, Captured, Exchange, with_params
from ._check import checked_count
from ._iteration import AbstractIteration, bare, iterate, Outcome
from ._linear import GMRES, linear_solve, LinearSolver, rows, unrows
from ._result import raise_if


@dataclasses.dataclass(frozen=True)
class AbstractDenseProblem(abc.ABC):
    """A dense problem `z = f(z)` on flat states, and who is to solve it.

    **Attributes:**

    - `fn`: maps a state `(B, n)` and an exchange of tensors to `(B, n)`.
    - `args`: a tree in which tensors are that `fn` may depend on.
    - `autocast`: the state in which `fn` is to run.
    - `eps`: the relative precision to which it computes.
    - `rounded`: a state as its leaves can hold it.
    """

    fn: Callable[[Tensor, Exchange], Tensor]
    args: Any
    autocast: Autocast
    eps: float
    solver: AbstractIteration
    rounded: Callable[[Tensor], Tensor]
    max_steps: int
    throw: bool

    def capture(self, z: Tensor) -> Capture:
        """Finds what `fn` depends on, by running it."""
        linearised = self.solver.linearises
        return capture(self.fn, z, self.args, self.autocast, self.eps, linearised)

    @abc.abstractmethod
    def iterate(self, fn: Any, linearise: Any, z: Tensor, **options: Any) -> Outcome:
        """The solution from `z`, and what is known of it."""


@dataclasses.dataclass(frozen=True)
class DenseProblem(AbstractDenseProblem):
    """One that a rootfinder solves, which raises if it failed and that is asked for."""

    def iterate(self, fn: Any, linearise: Any, z: Tensor, **options: Any) -> Outcome:
        outcome = iterate(
            self.solver,
            fn,
            linearise,
            z,
            rounded=self.rounded,
            max_steps=self.max_steps,
            **options,
        )
        if self.throw:
            raise_if(bare(outcome.result))
        return outcome


class AbstractAdjoint(abc.ABC):
    """Solves a problem so that the solution can be differentiated."""

    @abc.abstractmethod
    def apply(self, problem: Any, z: Any) -> Any:
        """The solution from the guess `z`, and what is known of it.

        An `AbstractDenseProblem` with a guess `(B, n)` has an `Outcome`. Chains have an
        adjoint of their own.
        """


@dataclasses.dataclass(frozen=True)
class AbstractDenseTangent(AbstractAdjoint):
    """Differentiates a solve at its solution, whatever the solver did.

    For `z = f(z, θ)` the tangent of the solution is `t = J t + ∂f/∂θ dθ`. Subclasses
    solve this equation, or do something cheaper that is linear in the right-hand side;
    everything else follows: forward and reverse mode, to every order, also under
    `torch.func`. The gradient with respect to the guess is zero.

    A subclass that sets `uses_inverse: ClassVar[bool] = True` gets what the solver has
    learnt of the inverse Jacobian, which then is held until the derivatives are there.
    """

    uses_inverse: ClassVar[bool] = False

    @abc.abstractmethod
    def solve(
        self,
        operator: AbstractOperator,
        b: Tensor,
        throw: bool,
        inverse: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """`t` with `t - operator(t) = b`, or what stands for it.

        Called for tangents with the Jacobian `J` of `f` at the solution and for
        gradients with its transpose; what it does must be the same matrix function of
        both.

        **Arguments:**

        - `operator`: the product with `J`, or with its transpose.
        - `b`: shape `(B, n)`.
        - `throw`: whether a solve that fails is to raise.
        - `inverse`: `v -> H v` with `H` near the inverse of `J - I`, or of its
            transpose, if `uses_inverse` and the solver has learnt one.
        """

    def apply(self, problem, z):
        if not is_recorded():
            return _primal(_Task(problem, self, _plain(problem), None, 0), z, ())
        captured = problem.capture(z)
        spent = 0 if captured.start is not None else 1
        task = _Task(problem, self, captured.map, captured.start, spent)
        z, *rest = _Solve.apply(task, z, *captured.params)  # pyright: ignore
        result, steps, evals, linear, residual, *_ = rest
        return Outcome(z, result, steps, evals, linear, residual, None)


def _plain(problem):
    return Captured(problem.fn, problem.autocast, problem.eps)


@dataclasses.dataclass
class _Task:
    """What is solved in one call of `_Solve`."""

    problem: AbstractDenseProblem
    adjoint: AbstractDenseTangent
    map: AbstractClosed
    # The evaluation at the guess, if it has been made; given up when it has been used,
    # as the task lives until the backward pass.
    start: tuple[Tensor, AbstractOperator | None] | None
    # Evaluations that were made for another reason.
    spent: int
    # The memory of the solver, with `None` for the tensors, which become outputs.
    learnt: list[Any] = dataclasses.field(default_factory=list)

    def learn(self, memory: Any) -> list[Tensor]:
        """The tensors of what the solver remembers, if they are of use."""
        useful = hasattr(self.problem.solver, "inverse_jacobian")
        if not (self.adjoint.uses_inverse and useful):
            return []
        leaves, spec = pytree.tree_flatten(memory)
        fixed = [None if isinstance(x, Tensor) else x for x in leaves]
        self.learnt[:] = [fixed, spec]
        return [x for x in leaves if isinstance(x, Tensor)]

    def inverse(self, tensors: Sequence[Tensor], transposed: bool) -> Any:
        """`v -> H v`, or with `H^T`, if there is a memory."""
        if not tensors:
            return None
        solver: Any = self.problem.solver
        fixed, spec = self.learnt
        rest = iter(tensors)
        leaves = [next(rest) if x is None else x for x in fixed]
        return solver.inverse_jacobian(pytree.tree_unflatten(leaves, spec), transposed)


def _primal(task: _Task, z: Tensor, params: Sequence[Tensor]) -> Outcome:
    def linearise(z):
        operator = LinearisedOperator(task.map, z, params)
        return operator.value, operator

    start, task.start = task.start, None
    with torch.no_grad():
        fn = with_params(task.map, params)
        return task.problem.iterate(fn, linearise, z, start=start, spent=task.spent)


class _Solve(Function):
    """The solution as a function of the guess and of the parameters of `f`.

    Recursive: a derivative is taken at the saved output, which is the output of this
    function again, so that its own derivatives are there.
    """

    @staticmethod
    def forward(task: _Task, z: Tensor, *params: Tensor) -> Any:
        outcome = _primal(task, z, params)
        # The guess may be the best there was, and an input is no output.
        return outcome.z.view_as(z), *outcome[1:-1], *task.learn(outcome.memory)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.task, _, *params = inputs
        z, *rest = output
        ctx.mark_non_differentiable(*rest)
        ctx.count = len(params)
        ctx.save_for_backward(z, *params, *rest[5:])
        ctx.save_for_forward(z, *params, *rest[5:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        task = ctx.task
        z, *tensors = saved(ctx)
        params, memory = tensors[: ctx.count], tensors[ctx.count :]
        # What is not a number has no tangent.
        v = torch.where(z == z, cotangents[0], 0)
        found: Sequence[Tensor | None] = ()
        if any(ctx.needs_input_grad[2:]):
            inverse = task.inverse(memory, True)
            found = _pulled(task, z, params, v, inverse)
        return None, torch.zeros_like(z), *found, *(None,) * (ctx.count - len(found))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        task = ctx.task
        with forward_mode(ctx) as (z, *tensors):
            params, memory = tensors[: ctx.count], tensors[ctx.count :]
            b = jvp(lambda *params: task.map(z, params), params, tangents[2:])
            operator = TracedOperator(task.map, z, params, False)
            inverse = task.inverse(memory, False)
            t = task.adjoint.solve(operator, b, task.problem.throw, inverse)
            return torch.where(z == z, t, torch.nan), *(None,) * (5 + len(memory))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        task, z, *params = inputs
        size = info.batch_size
        map_ = task.map.vmapped(size, in_dims[2:], info.randomness)
        task = dataclasses.replace(task, map=map_, start=None)
        outputs = _Solve.apply(task, rows(z, in_dims[1], size), *params)
        return unrows(outputs, size)


def _pulled(task, z, params, v, inverse):
    """The pull of `v` through the solution to its parameters."""
    throw = task.problem.throw
    if under_transforms() or torch.is_grad_enabled():
        operator = TracedOperator(task.map, z, params, True)
        u = task.adjoint.solve(operator, v, throw, inverse)
        return vjp(lambda *params: task.map(z, params), params, u)
    # Only the gradient: one evaluation does for the linear solve and for what follows.
    with torch.enable_grad():
        state = alias(z, False)
        inputs = [alias(x, False) if is_inexact(x) else x for x in params]
        out = task.map(state, inputs)
    operator = LinearisedOperator.of(out, state, True, task.map.eps)
    operator.check(inputs)
    u = task.adjoint.solve(operator, v, throw, inverse)
    found = iter(grads(out, [x for x in inputs if is_inexact(x)], u, False))
    return [next(found) if is_inexact(x) else None for x in inputs]


@dataclasses.dataclass(frozen=True)
class ImplicitAdjoint(AbstractDenseTangent):
    """The implicit function theorem: `(I - J) t = b`, solved without a matrix.

    The gradient of the solution, whatever the solver did; the memory of one
    evaluation, however many steps it took.

    A linear solve that fails raises if `throw=True` in the verb, and makes the
    derivatives of its sample NaN otherwise, and no other's.

    **Arguments:**

    - `linear_solver`: a [`parafix.core.torch.GMRES`][], which has a tolerance of its
        own, or a [`parafix.core.torch.LU`][], which forms the matrix of every sample.
    """

    linear_solver: LinearSolver = GMRES()

    def solve(self, operator, b, throw, inverse):
        del inverse
        on_failure = "raise" if throw else "nan"
        return linear_solve(operator, b, self.linear_solver, on_failure)[0]


@dataclasses.dataclass(frozen=True)
class OneStepAdjoint(AbstractDenseTangent):
    """One application of `f` is differentiated: `t = b`. No linear solve.

    Not the gradient, but a direction of descent where `f` contracts and `∂f/∂args` is
    well conditioned.

    ??? cite "Reference"

        Fung, Heaton, Li, McKenzie, Osher and Yin, "JFB: Jacobian-free backpropagation
        for implicit networks", AAAI 2022.
    """

    def solve(self, operator, b, throw, inverse):
        del operator, throw, inverse
        return b


@dataclasses.dataclass(frozen=True)
class PhantomAdjoint(AbstractDenseTangent):
    """Some damped steps are differentiated: `t' = damping t + (1 - damping)(J t + b)`.

    From zero, with everything evaluated at the solution; the more steps, the closer to
    the gradient, where the iteration converges.

    ??? cite "Reference"

        Geng, Zhang, Bai, Wang and Lin, "On training implicit models", NeurIPS 2021,
        the Neumann form.

    **Arguments:**

    - `steps`: how many steps are differentiated.
    - `damping`: how much of the old iterate each keeps.
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        checked_count("steps", self.steps)

    def solve(self, operator, b, throw, inverse):
        del throw, inverse
        # The first step, from zero.
        t = (1 - self.damping) * b
        for _ in range(self.steps - 1):
            t = self.damping * t + (1 - self.damping) * (operator(t) + b)
        return t


@dataclasses.dataclass(frozen=True)
class UnrolledAdjoint(AbstractAdjoint):
    """Differentiates what the solver did, step by step, guess included.

    Forward and reverse mode, to every order. The memory grows with the steps.

    **Arguments:**

    - `checkpoint`: evaluate `fn` again in the backward pass instead of keeping what it
        has computed; a state for every step is kept all the same. Not under
        `torch.func`.
    """

    checkpoint: bool = False

    def apply(self, problem, z):
        # Solvers with derivatives need to know what those are taken of.
        captured = problem.capture(z) if problem.solver.linearises else None
        map_, params = _plain(problem), ()
        if captured is not None:
            map_, params = captured.map, captured.params

        def fn(z):
            if self.checkpoint and not under_transforms():
                return checkpoint.checkpoint(
                    lambda z: map_(z, params), z, use_reentrant=False
                )
            return map_(z, params)

        def linearise(z):
            return fn(z), TracedOperator(map_, z, params, False)

        spent = 0 if captured is None else 1
        return problem.iterate(fn, linearise, z, spent=spent)
