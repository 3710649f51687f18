import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, Function

from ._adjoint import AbstractAdjoint
from ._calculus import (
    alias,
    check_leaves,
    forward_mode,
    grads,
    is_inexact,
    jvp,
    product,
    pull_back,
    saved,
    under_transforms,
    vjp,
)
from ._certificate import Report
from ._chain import chunk_size, chunks, jacobian
from ._chain_map import AbstractChainMap, captured_map, plain_map
from ._chain_problem import AbstractChainProblem
from ._check import checked_count
from ._linear import rows
from ._over_time import parted
from ._scan import AbstractScan


@dataclasses.dataclass(frozen=True)
class ChainAdjoint(AbstractAdjoint):
    """Differentiates a chain at its solution, whatever the solver did.

    The tangent of `z_t = step(z_{t-1}, x_t)` is the affine recurrence

    `dz_t = A_t dz_{t-1} + (∂step/∂x dx_t + ∂step/∂θ dθ)`, `dz_0 = d init`,

    with the whole Jacobian `A_t` at the solution, and its transpose is backpropagation
    through time. Right in forward and reverse mode and to every order; the gradient
    with respect to the guess is zero. Jacobian blocks are not kept between the passes:
    they are formed again, a chunk at a time, where they are needed.

    **Arguments:**

    - `scan`: an [`parafix.core.torch.AbstractScan`][] or a registered name, for the
        tangent recurrence and its transpose; `"auto"` goes by size and device.
    - `chunk`: hold Jacobian blocks for this many times at once; `None` decides.
    """

    scan: str | AbstractScan = "auto"
    chunk: int | None = None

    def __post_init__(self) -> None:
        checked_count("chunk", self.chunk)

    def apply(self, problem, z):
        if not isinstance(problem, AbstractChainProblem):
            raise TypeError(
                "ChainAdjoint is for chains; dense problems are differentiated by "
                'adjoint="implicit", for example.'
            )
        chain = problem.chain
        inputs = parted(chain.xs)[0]
        wanted = torch.is_grad_enabled() or forward_ad._current_level >= 0
        if not (wanted or under_transforms()):
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

    def parts(self, z: Tensor) -> list[tuple[int, int]]:
        """Where chunks begin and end; a window bounds the memory of gradients, too."""
        chunk = self.adjoint.chunk
        if chunk is None:
            entries = self.map.structure.num_entries(z.shape[-1])
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
                _graph(ctx.task.map, lag[:1], ctx.task.map.during(tensors, 0, 1))
            v = torch.cat([torch.zeros_like(init).unsqueeze(0), v])
            u: Any = _Linear.apply(ctx.task, True, v, lag, *tensors)
            found: Sequence[Tensor | None] = [None] * len(tensors)
            if any(needed):
                map_ = ctx.task.map
                found = vjp(lambda *tensors: map_(lag, tensors), tensors, u[1:])
            return None, of_guess, u[0], *found
        of_init, found = _gradient(ctx.task, v, lag, tensors, needed)
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
            return _recurrence(task, transposed, b, lag, tensors)

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


def _recurrence(task, transposed, b, lag, tensors):
    """See `_Linear`; a chunk of Jacobians at a time."""
    scan, map_ = task.adjoint.scan, task.map
    structure = map_.structure

    def matrices(begin, end):
        xs = map_.during(tensors, begin, end)[: map_.inputs]
        return jacobian(map_.bound(tensors), lag[begin:end], xs)[1]

    parts = task.parts(lag)
    x = torch.empty_like(b, memory_format=torch.contiguous_format)
    if transposed:
        x[-1] = b[-1]
        for begin, end in reversed(parts):
            a = matrices(begin, end)
            last = x[end]
            x[begin:end] = structure.solve(a, b[begin:end], last, scan, transposed=True)
        return x
    x[0] = b[0]
    for begin, end in parts:
        a = matrices(begin, end)
        right = b[begin + 1 : end + 1]
        x[begin + 1 : end + 1] = structure.solve(a, right, x[begin], scan)
    return x


def _gradient(task, v, lag, tensors, needed):
    """The pull of `v` through the solution, if no derivative of it is taken.

    One evaluation in each chunk does for the Jacobian and for the pull that follows.
    """
    map_, inputs = task.map, task.map.inputs
    places = [i for i, x in enumerate(tensors) if needed[i] and is_inexact(x)]
    of_inputs = {
        i: torch.empty_like(tensors[i], memory_format=torch.contiguous_format)
        for i in places
        if i < inputs
    }
    of_params: dict[int, Tensor] = {}
    u = v[-1]
    for begin, end in reversed(task.parts(lag)):
        f, a, here = _graph(map_, lag[begin:end], map_.during(tensors, begin, end))
        # `u_{t-1} = A_t^T u_t + v_{t-1}`, from the last: see `_Linear`.
        b = v[begin - 1 : end - 1] if begin else torch.cat([0 * v[:1], v[: end - 1]])
        before = map_.structure.solve(a, b, u, task.adjoint.scan, transposed=True)
        after = torch.cat([before[1:], u.unsqueeze(0)])
        u = before[0]
        found = grads(f, [here[i] for i in places], after, False)
        for i, g in zip(places, found, strict=True):
            if i < inputs:
                of_inputs[i][begin:end] = g
            else:
                of_params[i] = of_params[i] + g if i in of_params else g
    gradients = {**of_inputs, **of_params}
    return u, [gradients.get(i) for i in range(len(tensors))]


def _graph(map_, lag, tensors):
    """`f` with its graph, the Jacobians without, and the variables of the graph.

    That there are no others is checked.
    """
    with torch.enable_grad():
        lag = alias(lag, False)
        here = [alias(x, False) if is_inexact(x) else x for x in tensors]
        if map_.has_formula:
            f, a = map_.linearised(lag.detach(), here)
            a = a.detach()
        else:
            f = map_(lag, here)
            a = map_.structure.pulled(f, lag, False)
    check_leaves(f, [lag, *here])
    return f, a, here
