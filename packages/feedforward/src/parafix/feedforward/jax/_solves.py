"""The causal solves inside of one inverse, and what is known of all of them."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from parafix.core.jax import RESULTS, Solution, solve_causal


_Out = TypeVar("_Out")


class CausalSolves:
    """Solves one causal problem after the other, and keeps what is known of each."""

    def __init__(self, **options: Any):
        self.options = options
        self.found: list[PyTree] = []

    def __call__(
        self, f: Callable[[Array], Array], z0: Array, *, further: int = 1
    ) -> Array:
        """The solution of `z = f(z)`; see `AbstractFlowAdapter.inverse`."""
        solution = solve_causal(f, z0, check=False, **self.options)
        stats = dict(solution.stats)
        stats["num_evals"] = stats["num_evals"] + further
        position = jnp.asarray(solution.position)
        self.found.append((solution.result, stats, position))
        return solution.value

    def nested(
        self, function: Callable[["CausalSolves"], _Out]
    ) -> tuple[_Out, list[PyTree]]:
        """`function(solve)`, and what it found: arrays that may leave a trace."""
        inner = CausalSolves(**self.options)
        return function(inner), inner.found

    def add(self, found: list[PyTree], count: int, *, reverse: bool = False) -> None:
        """Takes what was found `count` times in a trace, in the order of running."""
        for i in reversed(range(count)) if reverse else range(count):
            self.found.extend(jax.tree.map(lambda x, i=i: x[i], found))

    def summary(self, x: Array) -> Solution[Array]:
        """What is known of all solves together."""
        none = jnp.array(0)
        result, position = RESULTS.successful, none
        for part, _, place in reversed(self.found):
            failed = part != RESULTS.successful
            result = RESULTS.where(failed, part, result)
            position = jnp.where(failed, place, position)
        if not self.found:
            stats = dict.fromkeys(_STATS, none)
            stats["converged_prefix"] = stats["exact_prefix"] = jnp.array(x.size)
            stats["residual"] = jnp.array(0.0)
            stats["num_steps_each"] = jnp.zeros(0, none.dtype)
            return Solution(x, result, stats, position)
        parts = [stats for _, stats, _ in self.found]
        each = {name: jnp.stack([p[name] for p in parts]) for name in _STATS}
        stats = {name: getattr(each[name], how)(0) for name, how in _STATS.items()}
        stats["num_steps_each"] = each["num_steps"]
        return Solution(x, result, stats, position)


# How the numbers of several solves become one.
_STATS = {
    "num_steps": "sum",
    "num_evals": "sum",
    "num_linear": "sum",
    "residual": "max",
    "converged_prefix": "min",
    "exact_prefix": "min",
}
