from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ._check import checked_count, checked_tolerance
from ._custom_types import BoolScalar, FloatScalar, IntScalar, State


class GMRES(eqx.Module):
    """GMRES with restarts: the least residual over a Krylov space, without a matrix.

    Stops inside a cycle, as soon as `|b - A x| <= rtol |b|` in the two-norm. Its
    products are counted, and it never raises: where it fails, it says so.

    ??? cite "Reference"

        Saad and Schultz, "GMRES: a generalized minimal residual algorithm for solving
        nonsymmetric linear systems", SIAM J. Sci. Stat. Comput. 7, 1986.
    """

    rtol: float | FloatScalar | None = None
    restart: int | None = None
    max_steps: int | None = None

    def __check_init__(self):
        checked_tolerance("rtol", self.rtol, None)
        checked_count("restart", self.restart)
        checked_count("max_steps", self.max_steps)


GMRES.__init__.__doc__ = """**Arguments:**

- `rtol`: relative tolerance; `eps^(3/4)` of the dtype by default.
- `restart`: the dimension of the Krylov space, and how many vectors are held; by
    default all unknowns up to 256, which always is enough, and 50 beyond.
- `max_steps`: at most this many products; ten for each unknown by default.
"""


def linear_solve(
    matvec: Callable[[State], State],
    b: State,
    solver: GMRES | lx.AbstractLinearSolver,
    checked: Callable[[State, BoolScalar], State] = lambda x, ok: x,
) -> tuple[State, tuple[IntScalar, BoolScalar]]:
    """Solves `matvec(x) = b`; returns `x`, the products it took, and if it succeeded.

    Derivatives are those of the linear system, of any order and in both modes, whatever
    the solver did. Where a solve failed, `x` is as good as it got; what becomes of it,
    here and in every derivative, is the business of `checked(x, ok)`.
    """

    def solve(matvec, b):
        x, (count, ok) = attempt(matvec, b)
        return checked(x, ok), (count, ok)

    def attempt(matvec, b):
        if isinstance(solver, GMRES):
            return _gmres(matvec, b, solver)
        operator = lx.FunctionLinearOperator(matvec, jax.eval_shape(lambda: b))
        solution = lx.linear_solve(operator, b, solver, throw=False)
        ok = (solution.result == lx.RESULTS.successful) & jnp.isfinite(
            solution.value
        ).all()
        return solution.value, (jnp.array(b.size), ok)

    return lax.custom_linear_solve(
        matvec, b, solve, transpose_solve=solve, has_aux=True
    )


class _Cycle(eqx.Module):
    """Arnoldi's process: `A basis^T = basis^T H`, and `rotation H = triangle`.

    The dimension is `m`, and `k = m + 1`.
    """

    step: IntScalar
    basis: Float[Array, "k n"]
    rotation: Float[Array, "k k"]
    triangle: Float[Array, "k m"]
    residual: FloatScalar


class _Restarts(eqx.Module):
    x: State
    r: State
    norm: FloatScalar
    count: Int[Array, ""]
    going: Bool[Array, ""]


def _gmres(matvec, b, solver):
    size = b.size
    restart = (256 if size <= 256 else 50) if solver.restart is None else solver.restart
    m = min(restart, size)
    budget = 10 * size if solver.max_steps is None else solver.max_steps
    eps = jnp.finfo(b.dtype).eps
    rtol = float(eps) ** 0.75 if solver.rtol is None else solver.rtol
    scale = _norm(b)
    target = rtol * scale

    def cycle(state):
        first = jnp.zeros((m + 1, size), b.dtype)
        first = first.at[0].set(state.r / _nonzero(state.norm))

        def going(c):
            enough = state.count + c.step >= budget
            return (c.step < m) & (c.residual > target) & ~enough

        start = _Cycle(
            jnp.array(0),
            first,
            jnp.eye(m + 1, dtype=b.dtype),
            jnp.zeros((m + 1, m), b.dtype),
            state.norm,
        )
        c = lax.while_loop(going, lambda c: _arnoldi(matvec, c, state.norm), start)
        # Columns that were not reached have a one on the diagonal and no right side.
        used = jnp.arange(m) < c.step
        diagonal = jnp.diagonal(c.triangle)
        triangle = c.triangle[:m] + jnp.diag(jnp.where(used & (diagonal != 0), 0, 1.0))
        side = jnp.where(used & (diagonal != 0), state.norm * c.rotation[:m, 0], 0)
        y = jax.scipy.linalg.solve_triangular(triangle, side)
        x = state.x + y @ c.basis[:m]
        r = b - matvec(x)
        norm = _norm(r)
        count = state.count + c.step + 1
        # A cycle that gains nothing will not gain more if repeated.
        better = norm < 0.999 * state.norm
        x = jnp.where(norm < state.norm, x, state.x)
        r = jnp.where(norm < state.norm, r, state.r)
        norm = jnp.where(norm < state.norm, norm, state.norm)
        return _Restarts(x, r, norm, count, better & (norm > target) & (count < budget))

    start = _Restarts(jnp.zeros_like(b), b, scale, jnp.array(0), scale > target)
    state = lax.while_loop(lambda s: s.going, cycle, start)
    # No solver does better than rounding does: backward stability.
    floor = 100 * eps * (_norm(state.x) + _norm(b - state.x))
    ok = jnp.isfinite(state.norm) & (state.norm <= jnp.maximum(target, floor))
    return state.x, (state.count, ok)


def _arnoldi(matvec, c, norm):
    j = c.step
    w = matvec(c.basis[j])
    # Twice is enough. Rows of the basis that are not there yet are zero.
    h = c.basis @ w
    w = w - h @ c.basis
    again = c.basis @ w
    w = w - again @ c.basis
    length = _norm(w)
    h = (h + again).at[j + 1].set(length)
    column = c.rotation @ h
    above, below = column[j], column[j + 1]
    radius = jnp.hypot(above, below)
    cos = jnp.where(radius == 0, 1, above / _nonzero(radius))
    sin = jnp.where(radius == 0, 0, below / _nonzero(radius))
    upper, lower = c.rotation[j], c.rotation[j + 1]
    rotation = c.rotation.at[j].set(cos * upper + sin * lower)
    rotation = rotation.at[j + 1].set(cos * lower - sin * upper)
    column = column.at[j].set(radius).at[j + 1].set(0)
    # Where the space is invariant, what is left of `w` is rounding.
    left = length > jnp.finfo(w.dtype).eps * _norm(h)
    new = jnp.where(left, w / _nonzero(length), 0)
    return _Cycle(
        j + 1,
        c.basis.at[j + 1].set(new),
        rotation,
        c.triangle.at[:, j].set(column),
        jnp.where(left, norm * jnp.abs(rotation[j + 1, 0]), 0),
    )


def _norm(x: Any) -> Array:
    return jnp.sqrt(jnp.sum(x * x))


def _nonzero(x):
    return jnp.where(x == 0, 1, x)
