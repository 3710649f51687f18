import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._adjoint import AbstractAdjoint
from ._calculus import (
    forward_mode,
    is_recorded,
    jvp,
    LinearisedOperator,
    product,
    pull_back,
    saved,
    under_transforms,
    vjp,
)
from ._certificate import Report
from ._chain import Chain, chunk_size, chunks
from ._chain_gradient import gradient, graph, recurrence
from ._chain_map import AbstractChainMap, captured_map, plain_map
from ._chain_problem import AbstractChainProblem
from ._check import checked_count, checked_tolerance
from ._iterated import MOST_PRODUCTS, solve_iterated
from ._linear import reached, rows
from ._over_time import parted
from ._scan import AbstractScan


@dataclasses.dataclass(frozen=True)
class ChainAdjoint(AbstractAdjoint):
    """Differentiates a chain at its solution, whatever the solver did.

    The tangent of `z_t = step(z_{t-1}, x_t)` is the affine recurrence

    `dz_t = A_t dz_{t-1} + (∂step/∂x dx_t + ∂step/∂θ dθ)`, `dz_0 = d init`,

    with the whole Jacobian `A_t` at the solution, and its transpose is backpropagation
    through time. Right in forward and reverse mode and to every order; the gradient
    with respect to the guess is zero.

    It is solved in one of two ways. Either Jacobian blocks are formed, a chunk at a
    time and again in every pass, so that none is kept, and one scan solves it. Or it is
    iterated until its own residual is rounding, each sweep one product of all `A_t`
    with states: no block is formed, and the memory is `O(T B n)`. Where a chain
    forgets, a few dozen sweeps do, whatever `n` is; where it does not, up to `T`.

    **Arguments:**

    - `scan`: an [`parafix.core.torch.AbstractScan`][] or a registered name, for the
        tangent recurrence and its transpose; `"auto"` goes by size and device.
    - `chunk`: solve for this many times at once, and hold their Jacobian blocks; `None`
        decides.
    - `iterate`: whether to iterate, and form no Jacobian. By default where one takes
        more than 64 products, as that of a step without a structure or a formula and
        with more than 64 entries.
    - `rtol`: how small a residual must be to end the iteration, relative to the largest
        number on the way there; by default 8 times what the step rounds by.
    - `max_steps`: at most this many sweeps (of each chunk); by default two more than
        there are times, which always is enough. If they do not suffice, derivatives are
        an error where the verb throws, and NaN where it does not; those of its sample.
    """

    scan: str | AbstractScan = "auto"
    chunk: int | None = None
    iterate: bool | None = None
    rtol: float | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        checked_count("chunk", self.chunk)
        checked_tolerance("rtol", self.rtol, None)
        checked_count("max_steps", self.max_steps)

    def iterates(self, problem: Chain) -> bool:
        """Whether no Jacobian of `problem` is formed."""
        if self.iterate is not None:
            return self.iterate
        return problem.num_linear > MOST_PRODUCTS

    def apply(self, problem, z):
        if not isinstance(problem, AbstractChainProblem):
            raise TypeError(
                "ChainAdjoint is for chains; dense problems are differentiated by "
                'adjoint="implicit", for example.'
            )
        chain = problem.chain
        inputs = parted(chain.xs)[0]
        if not is_recorded():
            map_ = plain_map(chain, problem.autocast, problem.eps)
            return problem.solve(map_, z, chain.init, inputs)
        map_ = captured_map(chain, problem.autocast, problem.eps)
        task = _Task(problem, self, map_)
        z, *rest = _Solve.apply(  # pyright: ignore[reportGeneralTypeIssues]
            task, z, chain.init, *inputs, *map_.params
        )
        return z, Report(*rest[:-1]), rest[-1]


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """What is solved in one call of a `Function` below."""

    problem: AbstractChainProblem
    adjoint: ChainAdjoint
    map: AbstractChainMap

    @property
    def iterates(self) -> bool:
        return self.adjoint.iterates(self.problem.chain)

    def iterated(self, operator: LinearisedOperator, b: Tensor, init: Tensor) -> Tensor:
        """The recurrence at some times by the iteration."""
        adjoint = self.adjoint
        rtol = 8 * operator.eps if adjoint.rtol is None else adjoint.rtol
        x, ok = solve_iterated(operator, b, init, adjoint.scan, rtol, adjoint.max_steps)
        return reached(x, ok, "raise" if self.problem.throw else "nan")

    def parts(self, z: Tensor) -> list[tuple[int, int]]:
        """Where chunks begin and end; a window bounds the memory of gradients, too."""
        chunk = self.adjoint.chunk
        if chunk is None:
            entries = self.map.structure.num_entries(z.shape[-1])
            entries = 0 if self.iterates else entries
            chunk = min(self.problem.window, chunk_size(None, z, entries))
        return list(chunks(len(z), chunk))

    def vmapped(self, info, in_dims, tensors):
        """The same for all members of a `vmap`, and the tensors as it takes them."""
        inputs = self.map.inputs
        moved = [
            x if dim is None else x.movedim(dim, 1)
            for x, dim in zip(tensors[:inputs], in_dims[:inputs], strict=True)
        ]
        dims = [None if dim is None else 1 for dim in in_dims[:inputs]]
        map_ = self.map.vmapped(
            info.batch_size, [*dims, *in_dims[inputs:]], info.randomness
        )
        return dataclasses.replace(self, map=map_), [*moved, *tensors[inputs:]]


class _Solve(Function):
    """The states as a function of the initial ones, inputs and parameters.

    Recursive: a derivative is taken at the saved output, which is the output of this
    function again, so that its own derivatives are there.
    """

    @staticmethod
    def forward(task: _Task, guess: Any, init: Tensor, *tensors: Tensor) -> Any:
        with torch.no_grad():
            z, report, error = task.problem.solve(task.map, guess, init, tensors)
        return z, *report, error

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.task, guess, *tensors = inputs
        z, *rest = output
        ctx.mark_non_differentiable(*rest)
        ctx.guess = None if guess is None else guess.shape
        ctx.save_for_backward(z, *tensors)
        ctx.save_for_forward(z, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        z, init, *tensors = saved(ctx)
        of_guess = None if ctx.guess is None else z.new_zeros(ctx.guess)
        # What is not a number has no tangent.
        v = torch.where(z == z, cotangents[0], 0)
        lag = torch.cat([init.unsqueeze(0), z[:-1]])
        needed = ctx.needs_input_grad[3:]
        if under_transforms() or torch.is_grad_enabled():
            if not under_transforms():
                here = ctx.task.map.during(tensors, 0, 1)
                graph(ctx.task.map, lag[:1], here, not ctx.task.iterates)
            v = torch.cat([torch.zeros_like(init).unsqueeze(0), v])
            u: Any = _Linear.apply(ctx.task, True, v, lag, *tensors)
            found: Sequence[Tensor | None] = [None] * len(tensors)
            if any(needed):
                map_ = ctx.task.map
                found = vjp(lambda *tensors: map_(lag, tensors), tensors, u[1:])
            return None, of_guess, u[0], *found
        of_init, found = gradient(ctx.task, v, lag, tensors, needed)
        return None, of_guess, of_init, *found

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        _, _, t_init, *t_tensors = tangents
        with forward_mode(ctx) as (z, init, *tensors):
            task = ctx.task
            lag = torch.cat([init.unsqueeze(0), z[:-1]])
            b = jvp(lambda *tensors: task.map(lag, tensors), tensors, t_tensors)
            t_init = torch.zeros_like(init) if t_init is None else t_init
            b = torch.cat([t_init.unsqueeze(0), b])
            t: Any = _Linear.apply(task, False, b, lag, *tensors)
            t_z = torch.where(z == z, t[1:], torch.nan)
            return t_z, *(None,) * (len(Report._fields) + 1)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        task, guess, init, *tensors = inputs
        size = info.batch_size
        task, tensors = task.vmapped(info, in_dims[3:], tensors)
        if guess is not None:
            guess = rows(guess, in_dims[1], size, 1)
        init = rows(init, in_dims[2], size, 0)
        z, *rest = _Solve.apply(  # pyright: ignore[reportGeneralTypeIssues]
            task, guess, init, *tensors
        )
        z = z.reshape(len(z), size, -1, z.shape[-1])
        rest = [x.reshape(size, -1) for x in rest]
        return (z, *rest), (1, *(0,) * len(rest))


class _Linear(Function):
    """The tangent recurrence, or with `transposed` its transpose.

    For `x` and `b` of `T + 1` times, `x_0 = b_0` and `x_t = A_t x_{t-1} + b_t`, with
    the Jacobian blocks of `f` at `lag`. The transpose is `x_T = b_T` and
    `x_{t-1} = A_t^T x_t + b_{t-1}`. A function of `b`, of `lag`, and of what `f`
    depends on, whose derivatives are recurrences of the same kind.
    """

    @staticmethod
    def forward(
        task: _Task, transposed: bool, b: Tensor, lag: Tensor, *tensors: Tensor
    ) -> Any:
        with torch.no_grad():
            return recurrence(task, transposed, b, lag, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.task, ctx.transposed, _, *tensors = inputs
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        task = ctx.task
        x, lag, *tensors = saved(ctx)
        b: Any = _Linear.apply(task, not ctx.transposed, cotangents[0], lag, *tensors)
        found: Sequence[Tensor | None] = [None] * (1 + len(tensors))
        if any(ctx.needs_input_grad[3:]):
            # `x = N x + b`: `<u, dN x>` is the same as `<dJ^T u, x>`, where `N` takes
            # the time before, and `J` has the blocks alone.
            left, right = (x, b) if ctx.transposed else (b, x)
            found = vjp(
                lambda lag, *tensors: pull_back(task.map, lag, tensors, left[1:]),
                (lag, *tensors),
                right[:-1],
            )
        return None, None, b, *found

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        _, _, b, *rest = tangents
        with forward_mode(ctx) as (x, lag, *tensors):
            side = torch.zeros_like(x) if b is None else b
            if any(t is not None for t in rest):
                taken = x[1:] if ctx.transposed else x[:-1]
                more = jvp(
                    lambda lag, *tensors: product(
                        ctx.task.map, lag, tensors, taken, ctx.transposed
                    ),
                    (lag, *tensors),
                    rest,
                )
                none = torch.zeros_like(x[:1])
                pair = [more, none] if ctx.transposed else [none, more]
                side = side + torch.cat(pair)
            return _Linear.apply(ctx.task, ctx.transposed, side, lag, *tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        task, transposed, b, lag, *tensors = inputs
        size = info.batch_size
        task, tensors = task.vmapped(info, in_dims[4:], tensors)
        b = rows(b, in_dims[2], size, 1)
        lag = rows(lag, in_dims[3], size, 1)
        x: Any = _Linear.apply(task, transposed, b, lag, *tensors)
        return x.reshape(len(x), size, -1, x.shape[-1]), 1
