import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ._capture import Autocast
from ._certificate import ErrorEstimate, Report
from ._chain import Chain, chunks
from ._chain_map import AbstractChainMap
from ._finish import finish
from ._measure import at
from ._result import leaf_of, raise_if, RESULTS
from ._sweep import AbstractSweep, solve_by_sweeps


@dataclasses.dataclass(frozen=True, eq=False)
class ChainProblem:
    """A chain, and who is to solve it, how far at a time."""

    chain: Chain
    autocast: Autocast
    eps: float
    solver: AbstractSweep
    max_steps: int
    window: int
    throw: bool
    fallback: bool = False

    def solve(
        self,
        map: AbstractChainMap,
        guess: Tensor | None,
        init: Tensor,
        tensors: Sequence[Tensor],
    ) -> tuple[Tensor, Report, Tensor]:
        """The states `(T, B, n)`, what is known of them, and the error estimate.

        One window after the other, each a solve of its own.
        """
        chain, length = self.chain, self.chain.length
        step, error = map.bound(tensors), ErrorEstimate.zero(init)
        parts, reports = [], []
        exact = torch.ones_like(init[:, 0], dtype=torch.bool)
        for begin, end in chunks(length, self.window):
            part = Chain(
                step,
                init,
                list(map.during(tensors, begin, end)[: map.inputs]),
                end - begin,
                chain.offset + chain.stride * begin,
                chain.stride,
                chain.leaves,
                True,
                None if step.formula is None else step.linearised,
            )
            start = init.expand(end - begin, *init.shape)
            start = start if guess is None else guess[begin:end]
            if guess is not None or begin:
                start = torch.where(torch.isfinite(start), start, 0)
            steps = min(self.max_steps, end - begin)
            before = error
            z, report, error = solve_by_sweeps(self.solver, part, start, error, steps)
            if self.fallback:
                z, report, error = finish(
                    self.solver, part, z, report, before, error, exact
                )
                exact = exact & (report.start == 0)
            if self.throw:
                position = part.offset + part.stride * report.prefix
                names = tuple(leaf.name for leaf in chain.leaves)
                leaf = leaf_of(report.entry, chain.leaves)
                raise_if(report.result, position, leaf, names)
            parts.append(z)
            at_all = report.start < part.length
            first = torch.where(at_all, begin + report.start, length)
            reports.append(report._replace(prefix=begin + report.prefix, start=first))
            init = z[-1]
        z = parts[0] if len(parts) == 1 else torch.cat(parts)
        return z, _summary(reports), error.value


def _summary(reports):
    if len(reports) == 1:
        return reports[0]
    each = Report(*map(torch.stack, zip(*reports, strict=True)))
    failed = each.result != RESULTS.successful
    # The first window that failed speaks for all, or else the last.
    numbers = torch.arange(len(reports), device=failed.device)[:, None]
    one = torch.where(failed, numbers, len(reports) - 1).amin(0)
    return Report(
        result=at(each.result, one),
        prefix=at(each.prefix, one),
        num_steps=each.num_steps.sum(0),
        num_evals=each.num_evals.sum(0),
        residual=each.residual.amax(0),
        entry=at(each.entry, one),
        start=each.start.amin(0),
    )
