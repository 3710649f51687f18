import dataclasses

from ._causal import AbstractCausalSweep
from ._sweep import AbstractSweep


@dataclasses.dataclass(frozen=True)
class Jacobi(AbstractSweep, AbstractCausalSweep):
    """Jacobi: `A_t = 0`, so `z' = f(z)`. No Jacobian and no scan.

    A sweep is as cheap as it can be; the number of sweeps is the memory length of the
    chain, whatever `T`. Of a causal problem it is the length of the longest path of
    dependences, and one more that confirms.

    **Arguments:**

    As those of [`parafix.core.torch.AbstractSweep`][].
    """

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
