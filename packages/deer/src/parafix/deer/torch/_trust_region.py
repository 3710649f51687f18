import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from parafix.core.torch import AbstractDamping, checked_tolerance, compose


_Matrices = Float[Tensor, "T ..."]


@dataclasses.dataclass(frozen=True)
class TrustRegion(AbstractDamping):
    """Holds updates back as a Kalman filter would that sees them to be zero.

    The update `d` of a sweep is taken for a Gaussian process,

    `d_t = A_t d_{t-1} + r_t + w_t`, `w_t ~ N(0, I)`,

    of which every `d_t` is observed to be zero up to noise `N(0, radius^2 I)`: the step
    of Levenberg and Marquardt, `min sum |d_t - A_t d_{t-1} - r_t|^2 + |d_t|^2 /
    radius^2`, seen from the past. What a sweep takes at time `t` is the mean of `d_t`
    given the observations before `t`. It follows the recurrence of the sweep with

    `A_t (I - K_{t-1})` in place of `A_t`,
    `K_t = M_t (I + M_t)^{-1}`, `M_t = A_t K_{t-1} A_t^T + I / radius^2`, `K_0 = 0`,

    where `K_t` is the Kalman gain, and `radius^2 K_t` the covariance. An infinite
    radius gives `K = 0`, the sweep as it is; a radius of zero `K = I`, that of Jacobi.
    Where products of `A_t` stay far below `radius`, it is not felt.

    A prediction is taken rather than the mean given the observation at `t` itself: that
    one would hold back a state whose predecessor is right already, and then `k` states
    would not be final after `k` sweeps.

    **Arguments:**

    - `radius`: how far a state may move in a sweep before it is held back; in the units
        of the state. Zero to infinity.

    ??? cite "Reference"

        Gonzalez, Warrington, Smith and Linderman, "Towards scalable and stable
        parallelization of nonlinear RNNs", NeurIPS 2024, section 4, here in update
        form. In parallel: Särkkä and García-Fernández, "Temporal parallelization of
        Bayesian smoothers", IEEE Transactions on Automatic Control, 2021, lemmas 7
        and 8.
    """

    radius: float

    def __post_init__(self) -> None:
        check_radius(self.radius)

    def init(self, z):
        del z

    def start(self, a):
        return torch.zeros_like(a)

    def damp(self, a, begin, memory, carry):
        del begin, memory
        if math.isinf(self.radius):
            # All gains are zero.
            return a, carry
        # With a radius of zero, gains of one but for rounding.
        most = 1 / torch.finfo(a.dtype).eps
        noise = most if self.radius == 0 else min(self.radius**-2, most)
        # What is no number ends at the next reset, and so must what it leads to.
        gains = kalman_gains(torch.where(torch.isfinite(a), a, 0), carry, noise)
        before = torch.cat([carry.unsqueeze(0), gains[:-1]])
        algebra = _algebra(a)
        return algebra.product(a, algebra.unit(a) - before), gains[-1]

    def update(self, memory, residual):
        del memory, residual


def check_radius(radius: Any) -> None:
    """Raises an error if `radius` is not one number, of at least zero."""
    try:
        number = float(radius)
    except (TypeError, ValueError, RuntimeError) as e:
        message = f"`radius` must be a single number, got {radius!r}."
        raise TypeError(message) from e
    checked_tolerance("radius", number, None)


def kalman_gains(a: _Matrices, before: Float[Tensor, "..."], noise: float) -> _Matrices:
    """`K_t = M_t (I + M_t)^{-1}` with `M_t = a_t K_{t-1} a_t^T + noise I`, from `K_0`.

    By the prefix of an associative product, in `O(log T)` stages: a loop over time
    would be made of calls. An element stands for some consecutive times: `(A, C, J)`,
    by which the covariance after them follows from the one before. In units of
    `radius^2`, that of one time is

    `A = a / (1 + noise)`, `C = noise / (1 + noise) I`, `J = a^T a / (1 + noise)`,

    and of two, `i` before `j`, with `D = (I + C_i J_j)^{-1}`,

    `A = A_j D A_i`, `C = A_j D C_i A_j^T + C_j`, `J = A_i^T D^T J_j A_i + J_i`.

    **Arguments:**

    - `a`: diagonal `(T, B, n)`, or matrices `(T, *batch, n, n)`.
    - `before`: `K_0`, of the shape of one `a`.
    - `noise`: a number, at least zero.
    """
    algebra, whole = _algebra(a), 1 + noise

    def combine(i, j):
        (a_i, c_i, j_i), (a_j, c_j, j_j) = i, j
        cj = algebra.product(c_i, j_j)
        da, dc = algebra.divide(cj, a_i, c_i)
        forward = algebra.product(a_j, da)
        covariance = algebra.product(algebra.product(a_j, dc), algebra.transpose(a_j))
        # `D^T J_j A_i = J_j D A_i`, since `J (I + C J)^{-1}` is symmetric.
        information = algebra.product(algebra.transpose(a_i), algebra.product(j_j, da))
        return forward, covariance + c_j, information + j_i

    none = torch.zeros_like(before)
    first = (none, before, none)
    rest = (
        a / whole,
        (noise / whole * algebra.unit(a)).expand(a.shape),
        algebra.product(algebra.transpose(a), a) / whole,
    )
    elements = tuple(
        torch.cat([x.unsqueeze(0), y]) for x, y in zip(first, rest, strict=True)
    )
    return _prefix(combine, elements)[1][1:]


def _prefix(combine: Any, elements: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """All products of the first elements, the last of them on the right."""
    length = len(elements[0])
    if length == 1:
        return elements
    # Those of pairs give every second one; the others lack one element.
    pairs = combine(
        tuple(x[: length - 1 : 2] for x in elements),
        tuple(x[1::2] for x in elements),
    )
    second = _prefix(combine, pairs)
    out = tuple(torch.empty_like(x) for x in elements)
    for x, y, z in zip(out, elements, second, strict=True):
        x[0] = y[0]
        x[1::2] = z
    if length > 2:
        others = combine(
            tuple(z[: (length - 1) // 2] for z in second),
            tuple(x[2::2] for x in elements),
        )
        for x, y in zip(out, others, strict=True):
            x[2::2] = y
    return out


def _algebra(a):
    return _Diagonal() if a.ndim == 3 else _Dense()


class _Diagonal:
    def unit(self, a):
        return a.new_ones(())

    def product(self, x, y):
        return x * y

    def transpose(self, x):
        return x

    def divide(self, m, x, y):
        """`(I + m)^{-1}` times `x` and `y`."""
        return x / (1 + m), y / (1 + m)


class _Dense:
    def unit(self, a):
        return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)

    def product(self, x, y):
        return compose(x, y, True)

    def transpose(self, x):
        return x.mT

    def divide(self, m, x, y):
        size = m.shape[-1]
        both = torch.cat([x, y], -1)
        # Without a look at whether there are singular ones, where NaN would be.
        both = torch.linalg.solve_ex(self.unit(m) + m, both, check_errors=False)[0]
        return both[..., :size], both[..., size:]
