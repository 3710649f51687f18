from jaxtyping import ArrayLike

from ._causal import AbstractCausalSweep
from ._scan import AbstractScan
from ._sweep import AbstractSweep


class Jacobi(AbstractSweep, AbstractCausalSweep):
    """Jacobi: `A_t = 0`, so `z' = f(z)`. No Jacobian and no scan.

    A sweep is as cheap as it can be; the number of sweeps is the memory length of the
    chain, whatever `T`. Of a causal problem it is the length of the longest path of
    dependences, and one more that confirms.
    """

    rtol: ArrayLike
    atol: ArrayLike
    scan: str | AbstractScan = "auto"
    chunk: int | None = None

    def transition(self, step, z, x):
        return step(z, x), None

    def num_linear(self, size):
        del size
        return 0

    def init_memory(self, z):
        del z

    def propose(self, z, f, prefix, memory):
        del z, prefix
        return f, memory


Jacobi.__init__.__doc__ = """**Arguments:**

- `rtol`, `atol`: relative and absolute tolerance: a state `z` is within tolerance if
    the residual and the last update are at most `atol + rtol |z|`, entry by entry.
- `scan`: an [`parafix.core.jax.AbstractScan`][] or a registered name, for the affine
    recurrence inside a sweep; `"auto"` goes by the platform.
- `chunk`: hold Jacobian blocks for this many times at once; `None` decides. It changes
    memory and speed, and the numbers to rounding.
"""
