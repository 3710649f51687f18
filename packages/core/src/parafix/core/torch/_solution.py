import dataclasses
import math
from typing import Any, Generic, TypeVar

from torch import Tensor

from .._sentences import sentence
from ._custom_types import Codes


_Value = TypeVar("_Value")


@dataclasses.dataclass(frozen=True, eq=False)
class Solution(Generic[_Value]):
    """What a solve returns.

    **Attributes:**

    - `value`: the solution; of a sample that failed, the last iterate of a chain, and
        the iterate of lowest residual of a dense problem.
    - `result`: the code of a [`parafix.core.torch.RESULTS`][] member for each sample,
        an integer tensor `(B,)`; of one problem without a batch, `()`.
    - `stats`: a dictionary of tensors of the same shape:
        `num_steps` (sweeps, or steps of the solver; summed over windows),
        `num_evals` (calls of `f`, each of all times at once),
        `num_linear` (Jacobian-vector products, or pulls, likewise),
        `residual` (`max |f(z) - z| / (atol + rtol |z|)` at `value`),
        for chains `converged_prefix` (how many entries from the start are right to
        within tolerance), `error_estimate` (how far rounding may have carried
        `value` from what another order of the same operations gives, relative to the
        largest entry), `sequential_from` (the first time, in the order of running,
        whose state a loop has computed; `T` if none), and if it was asked for
        `lyapunov_exponent` (an error grows by about `exp` of it in every step of that
        prefix; negative for a chain that forgets; it takes one of the calls of `f`,
        with its Jacobian).
    - `position`, `leaf`, `leaves`: of a chain, the first bad position and the number of
        its leaf for each sample, and the names of the leaves.
    """

    value: _Value
    result: Codes
    stats: dict[str, Tensor]
    position: Tensor | int | None = None
    leaf: Tensor | int = 0
    leaves: tuple[str, ...] = ()

    def message(self, sample: int | None = None) -> str:
        """The sentence of one sample; for chains with the first bad position and leaf.

        Empty if that sample was successful. `sample` is its number, and may be left out
        where there is only one.
        """
        code = _item(self.result, sample)
        if code == 0:
            return ""
        leaf = self.leaves[_item(self.leaf, sample)] if self.leaves else ""
        position = None if self.position is None else _item(self.position, sample)
        growth = None
        if "lyapunov_exponent" in self.stats:
            exponent = _item(self.stats["lyapunov_exponent"], sample)
            growth = math.exp(min(exponent, 700.0))
        return sentence(code, position, leaf, growth)


def _item(x: Any, sample: int | None) -> Any:
    if not isinstance(x, Tensor):
        return x
    x = x.reshape(-1)
    if sample is None and x.numel() != 1:
        raise ValueError(
            "`message()` is about one sample; take one with `message(i)`, where "
            f"0 <= i < {x.numel()}."
        )
    return x[0 if sample is None else sample].item()
