import math
from typing import Any, Generic, TypeVar

import equinox as eqx
from jaxtyping import Array, PyTree, Shaped

from .._sentences import sentence
from ._result import RESULTS


_Value = TypeVar("_Value")


class Solution(eqx.Module, Generic[_Value]):
    """What a solve returns.

    **Attributes:**

    - `value`: the solution; of a solve that failed, the last iterate of a chain, and
        the iterate of lowest residual of a dense problem.
    - `result`: a [`parafix.core.jax.RESULTS`][] member.
    - `stats`: a dictionary of scalars:
        `num_steps` (sweeps, or steps of the solver; summed over windows),
        `num_evals` (calls of `f`, each of all times at once),
        `num_linear` (Jacobian-vector products, likewise; those of Optimistix's solvers
        are not counted; a compiled program may form a Jacobian again instead of keeping
        it, and leaves out what only a number that nobody looks at needs),
        `residual` (`max |f(z) - z| / (atol + rtol |z|)` at `value`),
        and for chains `converged_prefix` (how many entries from the start are right to
        within tolerance) and `error_estimate` (how far rounding may have carried
        `value` from what another order of the same operations gives, relative to the
        largest entry), `lyapunov_exponent` (an error grows by about `exp` of it in
        every step of that prefix; negative for a chain that forgets; it takes one of
        the calls of `f`, with its Jacobian) and `sequential_from` (the first time, in
        the order of running, whose state a loop has computed; `T` if none).
    """

    value: _Value
    result: RESULTS
    stats: dict[str, PyTree[Shaped[Array, ""]]]
    position: Shaped[Array, ""] | int | None = 0
    leaf: Shaped[Array, ""] | int = 0
    leaves: tuple[str, ...] = eqx.field(static=True, default=())

    def message(self) -> str:
        """The sentence of `result`; for chains with the first bad position and leaf.

        Empty if the solve was successful. Needs concrete values: call it outside `jit`,
        and on one sample of a batch.
        """
        code = int(_item(self.result._value))
        if code == 0:
            return ""
        leaf = self.leaves[int(_item(self.leaf))] if self.leaves else ""
        position = None if self.position is None else int(_item(self.position))
        growth = None
        if "lyapunov_exponent" in self.stats:
            exponent = float(_item(self.stats["lyapunov_exponent"]))
            growth = math.exp(min(exponent, 700.0))
        return sentence(code, position, leaf, growth)


def _item(x: Any) -> Any:
    if getattr(x, "size", 1) != 1:
        raise ValueError(
            "`message()` is about one sample; take one with "
            "`jax.tree.map(lambda x: x[i], solution)`."
        )
    return x
