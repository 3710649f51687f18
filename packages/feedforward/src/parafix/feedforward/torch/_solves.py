"""The causal solves inside of one inverse, and what is known of all of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parafix.core.torch import RESULTS, Solution, solve_causal


class CausalSolves:
    """Solves one causal problem after the other, and keeps what is known of each."""

    def __init__(self, *, mode: str, throw: bool, **options: Any):
        self.options = {"mode": mode, **options}
        self.may_end = mode == "budget"
        self.throw = throw
        self.solutions: list[Solution[Tensor]] = []

    def __call__(
        self,
        f: Callable[[Tensor], Tensor],
        z0: Tensor,
        *,
        order: Tensor | None = None,
        check: bool = False,
        further: int = 1,
    ) -> Tensor:
        """The solution of `z = f(z)`; see `AbstractFlowAdapter.inverse`."""
        fn, start = f, z0
        places = None if order is None else torch.argsort(order)
        if order is not None:
            fn, start = lambda z: f(z[:, places])[:, order], z0[:, order]
        # A failure speaks of the entries as they are numbered in `f`.
        solution = solve_causal(fn, start, check=check, throw=False, **self.options)
        stats = dict(solution.stats)
        stats["num_evals"] = stats["num_evals"] + further
        position: Any = solution.position
        if position is None:  # Of no samples or no entries.
            position = torch.zeros_like(solution.result)
        elif order is not None:
            position = order[position]
        solution = dataclasses.replace(solution, stats=stats, position=position)
        self.solutions.append(solution)
        if self.throw:
            self._raise_if_failed(solution)
        value = solution.value
        return value if places is None else value[:, places]

    def _raise_if_failed(self, solution):
        failed = solution.result != RESULTS.successful
        if self.may_end:
            failed = failed & (solution.result != RESULTS.max_steps_reached)
        if bool(failed.any()):
            sample = int(failed.nonzero()[0])
            raise RuntimeError(
                f"Transform {len(self.solutions)} of those inverted by a causal solve, "
                f"in the order of inversion: {int(failed.sum())} of {len(failed)} "
                f"samples failed; sample {sample}: {solution.message(sample)}"
            )

    def summary(self, x: Tensor, shape: torch.Size) -> Solution[Tensor]:
        """What is known of all solves together, for each of the samples."""
        none = torch.zeros(shape.numel(), dtype=torch.int64, device=x.device)
        parts = self.solutions
        if any(part.result.shape != none.shape for part in parts):
            sizes = [len(part.result) for part in parts]
            raise ValueError(
                f"An adapter returned `log_abs_det` of shape {list(shape)} after "
                f"solves of {sizes} samples: one number for each sample is needed."
            )
        if not parts:
            return self._nothing(x, none, shape)
        result, position = none, none
        for part in reversed(parts):
            failed = part.result != RESULTS.successful
            place: Any = part.position
            result = torch.where(failed, part.result, result)
            position = torch.where(failed, place, position)
        each = {name: torch.stack([p.stats[name] for p in parts]) for name in _STATS}
        stats = {name: getattr(x, _STATS[name])(0) for name, x in each.items()}
        stats = {name: x.reshape(shape) for name, x in stats.items()}
        stats["num_steps_each"] = each["num_steps"].reshape(len(parts), *shape)
        return Solution(x, result.reshape(shape), stats, position.reshape(shape))

    def _nothing(self, x: Tensor, none: Tensor, shape: torch.Size):
        none = none.reshape(shape)
        stats = dict.fromkeys(_STATS, none)
        entries = x.numel() // max(1, none.numel())
        stats["converged_prefix"] = stats["exact_prefix"] = none + entries
        stats["residual"] = none * 0.0
        stats["num_steps_each"] = none[None][:0]
        return Solution(x, torch.full_like(none, RESULTS.successful), stats, none)


# How the numbers of several solves become one.
_STATS = {
    "num_steps": "sum",
    "num_evals": "sum",
    "num_linear": "sum",
    "residual": "amax",
    "converged_prefix": "amin",
    "exact_prefix": "amin",
}
