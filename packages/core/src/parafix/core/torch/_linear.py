"""Linear solves for batches of systems, each of which stops by itself."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from ._calculus import (
    AbstractClosed,
    AbstractOperator,
    forward_mode,
    jvp,
    LinearisedOperator,
    product,
    pull_back,
    saved,
    TracedOperator,
    vjp,
)
from ._check import checked_count, checked_tolerance
from ._result import raise_if, RESULTS


@dataclasses.dataclass(frozen=True)
class GMRES:
    """GMRES with restarts: the least residual over a Krylov space, without a matrix.

    Every sample has a Krylov space of its own and stops inside a cycle, as soon as
    `|b - A x| <= rtol |b|` in the two-norm. Its products are counted, and it never
    raises: where it fails, it says so.

    ??? cite "Reference"

        Saad and Schultz, "GMRES: a generalized minimal residual algorithm for solving
        nonsymmetric linear systems", SIAM J. Sci. Stat. Comput. 7, 1986.

    **Arguments:**

    - `rtol`: relative tolerance; by default `eps^(3/4)` of the dtype in which the
        products are computed.
    - `restart`: the dimension of the Krylov space, and how many vectors are held; by
        default all unknowns up to 256, which always is enough, and 50 beyond.
    - `max_steps`: at most this many products; ten for each unknown by default.
    """

    rtol: float | None = None
    restart: int | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        checked_tolerance("rtol", self.rtol, None)
        checked_count("restart", self.restart)
        checked_count("max_steps", self.max_steps)


@dataclasses.dataclass(frozen=True)
class LU:
    """Forms the matrix of every sample, by `n` products, and factorises it.

    Takes `B n^2` numbers. A matrix that is singular to rounding is a failure of its
    sample and of no other.
    """


LinearSolver: TypeAlias = GMRES | LU
# What becomes of a sample whose solve has failed: the last approximation, NaN, or an
# error.
OnFailure: TypeAlias = Literal["keep", "nan", "raise"]


def linear_solve(
    operator: AbstractOperator,
    b: Tensor,
    solver: LinearSolver,
    on_failure: OnFailure = "keep",
    rtol: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solves `x - J x = b`, where `operator` is `v -> J v`, for every sample.

    Derivatives are those of the linear system, of any order and in both modes, whatever
    the solver did.

    **Arguments:**

    - `operator`: maps `(B, n)` to `(B, n)`, sample by sample.
    - `b`: shape `(B, n)`, float32 or float64.
    - `rtol`: shape `(B,)`, instead of that of a GMRES; but derivatives are as exact as
        `solver` says.

    **Returns:**

    `x`, of the shape of `b`; the products it took, `(B,)`; and whether it succeeded,
    `(B,)`.
    """
    if isinstance(operator, TracedOperator):
        return _LinearSolve.apply(
            operator.map,
            operator.transposed,
            solver,
            on_failure,
            rtol,
            b,
            operator.z,
            *operator.params,
        )  # pyright: ignore[reportReturnType]
    with torch.no_grad():
        if isinstance(solver, LU):
            x, count, ok = _lu(operator, b)
        else:
            x, count, ok = gmres(
                lambda v: v - operator(v), b, solver, rtol, operator.eps
            )
        return reached(x, ok, on_failure), count, ok


def reached(x: Tensor, ok: Tensor, on_failure: OnFailure) -> Tensor:
    """`x`, `(..., B, n)`, and what becomes of the samples that are not `ok`, `(B,)`."""
    if on_failure == "raise":
        code = torch.where(ok, RESULTS.successful, RESULTS.linear_solve_failed)
        raise_if(code)
    return torch.where(ok[:, None], x, torch.nan) if on_failure == "nan" else x


class _LinearSolve(Function):
    """`(I - J) x = b`, or with `J^T`, as a function of `b`, `z` and the parameters.

    Its derivatives are linear solves of the same kind, so all orders follow.
    """

    @staticmethod
    def forward(
        map: AbstractClosed,
        transposed: bool,
        solver: LinearSolver,
        on_failure: OnFailure,
        rtol: Tensor | None,
        b: Tensor,
        z: Tensor,
        *params: Tensor,
    ) -> Any:
        operator = LinearisedOperator(map, z, params, transposed)
        operator.check(params)
        return linear_solve(operator, b, solver, on_failure, rtol)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.map, ctx.transposed, ctx.solver, ctx.on_failure, *tensors = inputs
        x, count, ok = output
        tensors = tensors[2:]
        ctx.mark_non_differentiable(count, ok)
        ctx.save_for_backward(x, *tensors)
        ctx.save_for_forward(x, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        x, z, *params = saved(ctx)
        transpose = TracedOperator(ctx.map, z, params, not ctx.transposed)
        b, _, _ = linear_solve(transpose, cotangents[0], ctx.solver, ctx.on_failure)
        rest: list[Tensor | None] = [None] * (1 + len(params))
        if any(ctx.needs_input_grad[6:]):
            # `(I - J) dx = db + dJ x`, and `<b, dJ x>` is the same as `<dJ^T b, x>`.
            left, right = (x, b) if ctx.transposed else (b, x)
            rest = vjp(
                lambda z, *params: pull_back(ctx.map, z, params, left),
                (z, *params),
                right,
            )
        return None, None, None, None, None, b, *rest

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_mode(ctx) as (x, z, *params):
            b, *rest = tangents[5:]
            side = torch.zeros_like(x) if b is None else b
            if any(t is not None for t in rest):
                side = side + jvp(
                    lambda z, *params: product(ctx.map, z, params, x, ctx.transposed),
                    (z, *params),
                    rest,
                )
            operator = TracedOperator(ctx.map, z, params, ctx.transposed)
            t, _, _ = linear_solve(operator, side, ctx.solver, ctx.on_failure)
            return t, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        map, transposed, solver, on_failure, *tensors = inputs
        size = info.batch_size
        tensors[:3] = (
            None if x is None else rows(x, dim, size)
            for x, dim in zip(tensors[:3], in_dims[4:7], strict=True)
        )
        map = map.vmapped(size, in_dims[7:], info.randomness)
        outputs = _LinearSolve.apply(map, transposed, solver, on_failure, *tensors)
        return unrows(outputs, size)


def rows(x: Tensor, dim: int | None, size: int, axis: int = 0) -> Tensor:
    """The samples of all members of a `vmap` on the axis where those of one are."""
    x = (
        x.expand(size, *x.shape).movedim(0, axis)
        if dim is None
        else x.movedim(dim, axis)
    )
    return x.reshape(*x.shape[:axis], size * x.shape[axis + 1], *x.shape[axis + 2 :])


def unrows(outputs: Any, size: int) -> Any:
    """What `rows` has joined, apart again, with the axes for PyTorch's rule."""
    parted = [x.reshape(size, x.shape[0] // size, *x.shape[1:]) for x in outputs]
    return tuple(parted), (0,) * len(parted)


def _lu(operator, b):
    size = b.shape[1]
    matrix = torch.eye(size, dtype=b.dtype, device=b.device) - operator.matrix()
    x, info = torch.linalg.solve_ex(matrix, b)
    count = torch.full((b.shape[0],), size, dtype=torch.int64, device=b.device)
    ok = (info == 0) & torch.isfinite(x).all(1)
    return torch.where((info == 0)[:, None], x, torch.nan), count, ok


def looks(step: int, device: torch.device) -> bool:
    """Whether the host looks, after step `step`, if there is anything left to do.

    Looking costs nothing on a CPU. An accelerator would have to be waited for.
    """
    return device.type == "cpu" or step % 8 == 7


def gmres(
    matvec: Callable[[Tensor], Tensor],
    b: Tensor,
    solver: GMRES,
    rtol: Tensor | float | None = None,
    noise: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """GMRES for every row of `b`: `x`, the products it took, if it succeeded.

    `noise` is the relative precision of the products, if it is not that of the dtype.
    """
    size = b.shape[1]
    restart = (256 if size <= 256 else 50) if solver.restart is None else solver.restart
    m = min(restart, size)
    budget = 10 * size if solver.max_steps is None else solver.max_steps
    eps = torch.finfo(b.dtype).eps
    relative: float | Tensor = max(eps, noise) ** 0.75
    if rtol is not None:
        relative = rtol
    elif solver.rtol is not None:
        relative = solver.rtol
    scale = norm(b)
    target = relative * scale
    x, r, length = torch.zeros_like(b), b, scale
    count = torch.zeros_like(scale, dtype=torch.int64)
    going = scale > target
    while bool(going.any()):
        change, steps = _cycle(matvec, r, length, target, going, budget - count, m)
        new = x + change
        new_r = b - matvec(new)
        new_length = norm(new_r)
        count = count + torch.where(going, steps + 1, 0)
        closer = going & (new_length < length)
        # A cycle that gains nothing will not gain more if repeated.
        better = new_length < 0.999 * length
        x, r = (torch.where(closer[:, None], *pair) for pair in ((new, x), (new_r, r)))
        length = torch.where(closer, new_length, length)
        going = going & better & (length > target) & (count < budget)
    # No solver does better than rounding does: backward stability.
    floor = max(100 * eps, 4 * noise) * (norm(x) + norm(b - x))
    ok = torch.isfinite(length) & (length <= torch.maximum(target, floor))
    return x, count, ok


def _cycle(matvec, r, length, target, going, budget, m):
    """Arnoldi's process: `A basis^T = basis^T H`, and `rotation H = triangle`.

    Returns what to add to `x`, and the steps that each sample took.
    """
    capacity = min(m, 16)
    samples, size = r.shape
    basis = r.new_zeros(samples, capacity + 1, size)
    rotation = torch.eye(capacity + 1, dtype=r.dtype, device=r.device)
    rotation = rotation.repeat(samples, 1, 1)
    triangle = r.new_zeros(samples, capacity, capacity)
    basis[:, 0] = torch.where(going[:, None], r / _nonzero(length)[:, None], 0)
    steps = torch.zeros_like(length, dtype=torch.int64)
    live = going
    eps = torch.finfo(r.dtype).eps
    done = 0
    for j in range(m):
        if j == capacity:
            more = min(2 * capacity, m) - capacity
            capacity += more
            basis = torch.nn.functional.pad(basis, (0, 0, 0, more))
            rotation = torch.nn.functional.pad(rotation, (0, more, 0, more))
            rotation.diagonal(dim1=1, dim2=2)[:, -more:] = 1
            triangle = torch.nn.functional.pad(triangle, (0, more, 0, more))
        w = matvec(basis[:, j].clone())
        before = basis[:, : j + 1]
        h = torch.linalg.vecdot(before, w[:, None])
        whole, w = norm(w), w - torch.linalg.vecdot(h[..., None], before, dim=1)
        w_length = norm(w)
        # What is left is orthogonal to about `eps` times its share. Twice is enough.
        small = ~(w_length > 0.1 * whole)
        if not looks(0, r.device) or bool(small.any()):
            again = torch.linalg.vecdot(before, w[:, None])
            again = torch.where(small[:, None], again, 0)
            left = w - torch.linalg.vecdot(again[..., None], before, dim=1)
            w, h = torch.where(small[:, None], left, w), h + again
            w_length = norm(w)
        h = torch.cat([h, w_length[:, None]], 1)
        here = rotation[:, : j + 2, : j + 2]
        column = (here * h[:, None]).sum(-1)
        above, below = column[:, j], column[:, j + 1]
        radius = torch.hypot(above, below)
        cos = torch.where(radius == 0, 1, above / _nonzero(radius))[:, None]
        sin = torch.where(radius == 0, 0, below / _nonzero(radius))[:, None]
        upper, lower = here[:, j].clone(), here[:, j + 1].clone()
        here[:, j] = cos * upper + sin * lower
        here[:, j + 1] = cos * lower - sin * upper
        triangle[:, :j, j] = column[:, :j]
        triangle[:, j, j] = radius
        # Where the space is invariant, what is left of `w` is rounding.
        left = w_length > eps * norm(h)
        new = torch.where((left & live)[:, None], w / _nonzero(w_length)[:, None], 0)
        basis[:, j + 1] = new
        residual = torch.where(left, length * here[:, j + 1, 0].abs(), 0)
        steps = steps + live
        done = j + 1
        # Later steps change neither the columns nor the rows of those that are done.
        live = live & (residual > target) & (steps < budget)
        if looks(j, r.device) and not bool(live.any()):
            break
    used = torch.arange(done, device=r.device) < steps[:, None]
    triangle = torch.where(used[:, None], triangle[:, :done, :done], 0)
    diagonal = triangle.diagonal(dim1=1, dim2=2)
    used = used & (diagonal != 0)
    # A column without a pivot has a one on the diagonal and no right side.
    triangle = triangle + torch.diag_embed(torch.where(used, 0, 1.0).to(r.dtype))
    side = torch.where(used, length[:, None] * rotation[:, :done, 0], 0)
    y = torch.linalg.solve_triangular(triangle, side[..., None], upper=True)
    return (y * basis[:, :done]).sum(1), steps


def norm(x: Tensor) -> Tensor:
    """The two-norm of every row."""
    return (x * x).sum(-1).sqrt()


def _nonzero(x):
    return torch.where(x == 0, 1, x)
