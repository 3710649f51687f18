from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from parafix.core.jax import AbstractDamping, checked_tolerance, compose


_Matrices = Float[Array, "T ..."]


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

    ??? cite "Reference"

        Gonzalez, Warrington, Smith and Linderman, "Towards scalable and stable
        parallelization of nonlinear RNNs", NeurIPS 2024, section 4, here in update
        form. In parallel: Särkkä and García-Fernández, "Temporal parallelization of
        Bayesian smoothers", IEEE Transactions on Automatic Control, 2021, lemmas 7
        and 8.
    """

    radius: ArrayLike

    def __check_init__(self):
        check_radius(self.radius)

    def init(self, z):
        del z

    def start(self, a):
        return jnp.zeros(a.shape, a.dtype)

    def damp(self, a, times, memory, carry):
        del times, memory
        radius = jnp.asarray(self.radius, a.dtype)
        # With a radius of zero, gains of one but for rounding.
        noise = jnp.minimum(radius**-2, 1 / jnp.finfo(a.dtype).eps)
        # What is no number ends at the next reset, and so must what it leads to.
        gains = kalman_gains(jnp.where(jnp.isfinite(a), a, 0), carry, noise)
        before = jnp.concatenate([carry[None], gains[:-1]])
        if a.ndim == 2:
            return a * (1 - before), gains[-1]
        return compose(a, _unit(before) - before, True), gains[-1]

    def update(self, memory, residual):
        del memory, residual


TrustRegion.__init__.__doc__ = """**Arguments:**

- `radius`: how far a state may move in a sweep before it is held back; in the units of
    the state. Zero to infinity.
"""


def check_radius(radius: Any) -> None:
    """Raises an error if `radius` is not one number, of at least zero."""
    if radius is None or jnp.ndim(radius):
        raise TypeError(f"`radius` must be a single number, got {radius!r}.")
    checked_tolerance("radius", radius, None)


def kalman_gains(
    a: _Matrices, before: Float[Array, "..."], noise: ArrayLike
) -> _Matrices:
    """`K_t = M_t (I + M_t)^{-1}` with `M_t = a_t K_{t-1} a_t^T + noise I`, from `K_0`.

    **Arguments:**

    - `a`: diagonal `(T, n)`, or matrices `(T, *batch, n, n)`.
    - `before`: `K_0`, of the shape of one `a`.
    - `noise`: a number, at least zero.

    One time after the other on a CPU, a parallel prefix elsewhere.
    """
    algebra = _Diagonal(noise) if a.ndim == 2 else _Dense(noise)
    return lax.platform_dependent(
        a,
        before,
        cpu=lambda a, before: gains_in_order(a, before, algebra),
        default=lambda a, before: gains_by_prefix(a, before, algebra),
    )


def gains_in_order(a, before, algebra):
    """One time after the other."""

    def body(k, a):
        m = algebra.congruence(a, k) + algebra.noise_of(a)
        k = algebra.divide(m, m)
        return k, k

    return lax.scan(body, before, a)[1]


def gains_by_prefix(a, before, algebra):
    """By the prefix of an associative product, in `O(log T)` stages.

    An element stands for some consecutive times: `(A, C, J)`, by which the covariance
    after them follows from the one before. In units of `radius^2`, that of one time is

    `A = a / (1 + noise)`, `C = noise / (1 + noise) I`, `J = a^T a / (1 + noise)`,

    and of two, `i` before `j`, with `D = (I + C_i J_j)^{-1}`,

    `A = A_j D A_i`, `C = A_j D C_i A_j^T + C_j`, `J = A_i^T D^T J_j A_i + J_i`.
    """
    whole = 1 + algebra.noise

    def combine(i, j):
        (a_i, c_i, j_i), (a_j, c_j, j_j) = i, j
        cj = algebra.product(c_i, j_j)
        da, dc = algebra.divide_both(cj, a_i, c_i)
        forward = algebra.product(a_j, da)
        covariance = algebra.product(algebra.product(a_j, dc), algebra.transpose(a_j))
        # `D^T J_j A_i = J_j D A_i`, since `J (I + C J)^{-1}` is symmetric.
        information = algebra.product(algebra.transpose(a_i), algebra.product(j_j, da))
        return forward, covariance + c_j, information + j_i

    one = algebra.noise_of(a) / whole
    first = (jnp.zeros_like(before), before, jnp.zeros_like(before))
    rest = (
        a / whole,
        jnp.broadcast_to(one, a.shape),
        algebra.product(algebra.transpose(a), a) / whole,
    )
    elements = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, rest)
    return lax.associative_scan(combine, elements)[1][1:]


class _Diagonal(eqx.Module):
    noise: ArrayLike

    def noise_of(self, a):
        del a
        return self.noise

    def congruence(self, a, k):
        return a * a * k

    def product(self, x, y):
        return x * y

    def transpose(self, x):
        return x

    def divide(self, m, x):
        return x / (1 + m)

    def divide_both(self, m, x, y):
        return x / (1 + m), y / (1 + m)


class _Dense(eqx.Module):
    noise: ArrayLike

    def noise_of(self, a):
        return self.noise * _unit(a)

    def congruence(self, a, k):
        return self.product(self.product(a, k), self.transpose(a))

    def product(self, x, y):
        return compose(x, y, True)

    def transpose(self, x):
        return jnp.swapaxes(x, -1, -2)

    def divide(self, m, x):
        """`(I + m)^{-1} x` for `x = m`: symmetric, but for rounding."""
        k = _solve(m, x)
        return (k + self.transpose(k)) / 2

    def divide_both(self, m, x, y):
        """`(I + m)^{-1}` times `x` and `y`."""
        size = m.shape[-1]
        both = _solve(m, jnp.concatenate([x, y], -1))
        return both[..., :size], both[..., size:]


def _solve(m, x):
    """`(I + m)^{-1} x`, of numbers of half precision in single precision."""
    wide = m.dtype if jnp.finfo(m.dtype).bits >= 32 else jnp.float32
    y = jnp.linalg.solve((_unit(m) + m).astype(wide), x.astype(wide))
    return y.astype(x.dtype)


def _unit(x):
    """The identity, as often as there are matrices in `x`."""
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)
