import jax.numpy as jnp
from jaxtyping import ArrayLike

from parafix.core.jax import AbstractCausalSweep, checked_count

from ._entries import chosen, count_of, even


class JacobiGS(AbstractCausalSweep):
    """Jacobi over blocks, Gauss-Seidel inside: all blocks at once, each in order.

    Evaluation `j` of a round accepts the `j`-th entry of every block. So a round takes
    as many evaluations as a block has entries, and after round `k` the first `k` blocks
    are final. Counted in evaluations it is not ahead of `"jacobi"`, which accepts
    everything every time; it pays where `f` keeps what it has computed of a block, and
    it never sees more than one entry of a block change at once.

    ??? cite "Reference"

        Song, Meng, Liao and Ermon, "Accelerating feedforward computation via parallel
        nonlinear equation solving", ICML 2021: the Jacobi-GS iteration.
    """

    rtol: ArrayLike
    atol: ArrayLike
    blocks: int | None = None

    def __check_init__(self):
        checked_count("blocks", self.blocks)

    def init_memory(self, z):
        del z
        return jnp.array(0)

    def propose(self, z, f, prefix, memory):
        del prefix
        count = count_of(z)
        # Of all blocks but the last one.
        length = -(-count // even(self.blocks, count))
        mine = jnp.arange(count) % length == memory
        return chosen(mine, f, z), (memory + 1) % length


JacobiGS.__init__.__doc__ = """**Arguments:**

- `rtol`, `atol`: entries are within tolerance if two evaluations differ by at most
    `atol + rtol |z|`.
- `blocks`: cut into at most this many blocks of equal length, but for the last;
    `sqrt(N)` by default. With `N` of them it is Jacobi, with one the sequential
    program.
"""
