"""The functions of a matrix that exponential integrators are made of."""

from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


# e^z = (e^(z / 2^8))^(2^8), and Padé's approximant of degrees (3, 4) for e^(z / 2^8).
# It is L-stable: stiff modes go to zero, however long the step is. Each of the 2^8
# factors errs by 7e-7 |z / 2^8|^8: together by rounding up to |z| = 10, and by 1e-7 at
# 100, relative to e^z.
_HALVINGS = 8
_DEGREE = 4


def _fractions(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Poles `p` and residues `c` of the approximants of `phi_1`, `phi_2` and `phi_3`.

    `phi_k(z)` is twice the real part of the sum of `c[k - 1] / (z - p)`; of each pair
    of conjugate poles there is one. As a matrix is shifted and no power of it formed,
    slow modes keep their digits beside stiff ones.
    """
    p, q = degree - 1, degree
    above = np.zeros(q + 1)
    below = np.zeros(q + 1)
    for j in range(q + 1):
        shared = factorial(p + q - j) / (factorial(p + q) * factorial(j))
        below[j] = (-1) ** j * shared * factorial(q) / factorial(q - j)
        if j <= p:
            above[j] = shared * factorial(p) / factorial(p - j)
    poles = np.roots(below[::-1])
    poles = poles[poles.imag > 0]
    slope = np.polyval(np.polyder(below[::-1]), poles)
    residues = []
    for k in range(3):
        # phi_{k+1}(z) = (phi_k(z) - phi_k(0)) / z, with phi_k(0) = 1 / k!.
        above = np.append((above - below / factorial(k))[1:], 0)
        residues.append(np.polyval(above[::-1], poles) / slope)
    return poles, np.stack(residues)


_POLES, _RESIDUES = _fractions(_DEGREE)


def responses(a: Float[Array, "n n"]) -> Float[Array, "3 n n"]:
    """`phi_1(a)`, `phi_2(a)` and `2 phi_3(a)`.

    The solutions at 1 of `u' = a u + b s^k` from `u(0) = 0` are these, times `b`, for
    `k = 0, 1, 2`; `phi_1(z) = (e^z - 1) / z`, `phi_{k+1}(z) = (phi_k(z) - 1 / k!) / z`.
    Finite wherever `e^a` is, for every `a` however large. No loop whose length depends
    on values, so that it has all derivatives.

    ??? cite "Reference"

        Higham, "Functions of matrices", SIAM 2008, chapter 10, for scaling and
        squaring and for these functions. Approximants by partial fractions:
        Gallopoulos and Saad, "Efficient solution of parabolic equations by Krylov
        approximation methods", SIAM J. Sci. Stat. Comput. 13, 1992.
    """
    size = a.shape[0]
    z = a / 2**_HALVINGS
    with jax.numpy_dtype_promotion("standard"):
        complexes = jnp.result_type(a.dtype, jnp.complex64)
    poles = jnp.asarray(_POLES, complexes)[:, None, None]
    residues = jnp.asarray(_RESIDUES, complexes)[:, :, None, None]
    unit = jnp.eye(size, dtype=complexes)
    inverse = _inverse(z.astype(complexes)[None] - poles * unit[None])
    phi = 2 * (residues * inverse[None]).sum(1).real
    # Of a part of the way: `x = e^a - 1`, without its cancellation, and the responses,
    # relative to its length. Of two parts, time in the second is that in it plus one.
    u = phi * jnp.asarray([1.0, 1.0, 2.0], phi.dtype)[:, None, None]

    def double(carry, _):
        x, u = carry
        grown = 2 * u + _product(x[None], u)
        u = jnp.stack(
            [grown[0] / 2, (grown[1] + u[0]) / 4, (grown[2] + 2 * u[1] + u[0]) / 8]
        )
        return (2 * x + _product(x, x), u), None

    start = (_product(z, phi[0]), u)
    (_, u), _ = lax.scan(double, start, None, length=_HALVINGS)
    return u


def _inverse(matrix):
    if matrix.shape[-1] == 1:
        return 1 / matrix
    return jnp.linalg.inv(matrix)


def _product(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
