"""The linear recurrence of a chain's derivatives, without its matrices."""

import torch
from torch import Tensor

from ._affine_scan import affine_scan
from ._calculus import LinearisedOperator
from ._linear import looks
from ._scan import AbstractScan


# A Jacobian of more products than this is not formed, if nobody says: measured, see
# docs/adr/0009-iterated-adjoint.md.
MOST_PRODUCTS = 64

# How many random vectors the diagonal is estimated from, and how many of its standard
# errors are taken off: measured, see the same place.
_PROBES, _DOUBT = 8, 3


def solve_iterated(
    operator: LinearisedOperator,
    b: Tensor,
    init: Tensor,
    scan: str | AbstractScan,
    rtol: float,
    max_steps: int | None,
) -> tuple[Tensor, Tensor]:
    """`x_t = A_t x_{t-1} + b_t` by sweeps, each of one product with all `A_t`.

    With an operator that is transposed, `x_t = A_t^T x_{t+1} + b_t`, and `init` enters
    at the end.

    A sweep takes the residual `r_t = b_t + A_t x_{t-1} - x_t` and adds to `x` the
    solution of `d_t = D_t d_{t-1} + r_t`, whose `D_t` are diagonal. Where `x` is right
    up to `t`, it is so up to `t + 1` afterwards, whatever `D`. So `T` sweeps always are
    enough, but for rounding, and few where the chain forgets or `D` says what it
    remembers.

    It ends when `|r_t|` is at most `rtol` times the largest `|x_s|` and `|b_s|` that
    came before: what rounding leaves of the same recurrence computed step by step.
    Every sample ends by itself. Carries no derivative.

    **Arguments:**

    - `operator`: the product of all `A_t` with `(T, B, n)`.
    - `b`, `init`: shapes `(T, B, n)` and `(B, n)`.
    - `max_steps`: at most so many sweeps; `T + 2` by default.

    **Returns:**

    `x`, and whether it has been reached, `(B,)`.
    """
    length, reverse = len(b), operator.transposed
    d = _diagonal(operator, b)

    def residual(x):
        parts = [x[1:], init[None]] if reverse else [init[None], x[:-1]]
        return b + operator(torch.cat(parts)) - x

    def sofar(x):
        """The largest number up to each time, in the order of the recurrence."""
        x = x.flip(0) if reverse else x
        x = x.cummax(0).values
        return x.flip(0) if reverse else x

    # Iterates are finite, so that what will not last cannot spread.
    start, right = (torch.where(torch.isfinite(x), x, 0) for x in (init, b))
    least = torch.maximum(right.abs().amax(-1), start.abs().amax(-1))
    x = affine_scan(d, right, start, reverse=reverse, scan=scan)
    x = torch.where(torch.isfinite(x), x, 0)
    broken = torch.zeros_like(least, dtype=torch.bool)
    active = torch.ones_like(broken[0])
    # Two more than `T`: what has cancelled in an entry is lost until the next sweep.
    budget = length + 2 if max_steps is None else max_steps
    for step in range(budget):
        r = residual(x)
        finite = torch.isfinite(r)
        here = sofar(~finite.all(-1))
        r = torch.where(finite, r, 0)
        size = sofar(torch.maximum(x.abs().amax(-1), least))
        settled = ((r.abs().amax(-1) <= rtol * size) | here).all(0)
        new = x + affine_scan(d, r, reverse=reverse, scan=scan)
        new = torch.where(torch.isfinite(new), new, x)
        x = torch.where(active[:, None], new, x)
        broken = torch.where(active, here, broken)
        active = active & ~settled
        if looks(step, b.device) and not bool(active.any()):
            break
    # What is not finite, in `b` or in a product, is so from there on.
    x = torch.where(broken[..., None], torch.nan, x)
    return x, torch.ones_like(active) if budget >= length else ~active


def _diagonal(operator, like):
    """The diagonals of the Jacobians, as far as they are known for certain.

    The mean of `v * (A v)` over random signs `v` is the diagonal, and their spread says
    how far the mean of a few can be trusted. An estimate that is too large makes the
    iteration grow before it converges, and one that is too small costs some sweeps: so
    it is taken towards zero by three standard errors, pooled over time. Every time has
    signs of its own, or else a few entries would look certain by chance throughout.

    Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", Applied
    Numerical Mathematics, 2007.
    """
    length, _, size = like.shape
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(2**_PROBES, (length, 1, size), generator=generator)
    found = []
    for bit in range(_PROBES):
        v = (2 * (bits >> bit & 1) - 1).to(like).expand(like.shape)
        found.append(v * operator(v))
    found = torch.stack(found)
    found = torch.where(torch.isfinite(found), found, 0)
    spread, mean = torch.var_mean(found, 0)
    sure = mean.abs() - _DOUBT * (spread.mean(0) / _PROBES).sqrt()
    # No longer than one, so that products of many stay bounded.
    return mean.sign() * sure.clamp(0, 1)
