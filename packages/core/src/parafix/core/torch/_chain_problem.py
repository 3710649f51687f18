import abc
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ._capture import Autocast
from ._certificate import ErrorEstimate, Report
from ._chain import Chain, chunks
from ._chain_map import AbstractChainMap
from ._check_structure import verify
from ._finish import finish
from ._growth import lyapunov_exponent
from ._measure import at
from ._result import leaf_of, raise_if, RESULTS
from ._structure import Dense
from ._sweep import AbstractSweep, solve_by_sweeps


@dataclasses.dataclass(frozen=True, eq=False)
class AbstractChainProblem(abc.ABC):
    """A chain whose states an adjoint is to differentiate."""

    chain: Chain
    autocast: Autocast
    eps: float
    window: int
    throw: bool

    @abc.abstractmethod
    def solve(
        self,
        map: AbstractChainMap,
        guess: Tensor | None,
        init: Tensor,
        tensors: Sequence[Tensor],
    ) -> tuple[Tensor, Report, Tensor]:
        """The states `(T, B, n)`, what is known of them, and the error estimate."""

    def verified(
        self, map: AbstractChainMap, init: Tensor, tensors: Sequence[Tensor]
    ) -> Chain:
        """The whole chain; `ValueError` if its structure is found to be false."""
        whole = self.part(map, init, tensors, 0, self.chain.length)
        if not isinstance(self.chain.structure, Dense):
            verify(whole)
        return whole

    def part(
        self,
        map: AbstractChainMap,
        init: Tensor,
        tensors: Sequence[Tensor],
        begin: int,
        end: int,
    ) -> Chain:
        """The chain of some times, from `init`."""
        chain, step = self.chain, map.bound(tensors)
        return Chain(
            step,
            init,
            list(map.during(tensors, begin, end)[: map.inputs]),
            end - begin,
            chain.offset + chain.stride * begin,
            chain.stride,
            chain.leaves,
            True,
            None if step.formula is None else step.linearised,
            None if chain.apart is None else chain.apart[begin:end],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Found(AbstractChainProblem):
    """A chain whose states are there: the guess is what a solve returns."""

    def solve(self, map, guess, init, tensors):
        assert guess is not None
        self.verified(map, init, tensors)
        none = torch.zeros_like(init[:, 0], dtype=torch.int64)
        unknown = torch.full_like(init[:, 0], torch.nan)
        report = Report(none, none, none, none, unknown, none, unknown, none, none)
        # An output of an autograd.Function is to have memory of its own.
        return guess.clone(), report, unknown


@dataclasses.dataclass(frozen=True, eq=False)
class ChainProblem(AbstractChainProblem):
    """A chain, and who is to solve it, how far at a time; whether to measure growth."""

    solver: AbstractSweep
    max_steps: int
    growth: bool
    fallback: bool = False
    patience: int | None = None

    def solve(
        self,
        map: AbstractChainMap,
        guess: Tensor | None,
        init: Tensor,
        tensors: Sequence[Tensor],
    ) -> tuple[Tensor, Report, Tensor]:
        """The states `(T, B, n)`, what is known of them, and the error estimate.

        One window after the other, each a solve of its own.

        **Raises:**

        `ValueError` if a declared structure is found to be false, and with `throw`
        `RuntimeError` where a sample failed.
        """
        length, error = self.chain.length, ErrorEstimate.zero(init)
        whole = self.verified(map, init, tensors)
        parts, reports = [], []
        exact = torch.ones_like(init[:, 0], dtype=torch.bool)
        for begin, end in chunks(length, self.window):
            part = self.part(map, init, tensors, begin, end)
            start = init.expand(end - begin, *init.shape)
            start = start if guess is None else guess[begin:end]
            if guess is not None or begin:
                start = torch.where(torch.isfinite(start), start, 0)
            steps = min(self.max_steps, end - begin)
            before = error
            z, report, error = solve_by_sweeps(
                self.solver, part, start, error, steps, self.patience
            )
            if self.fallback:
                z, report, error = finish(
                    self.solver, part, z, report, before, error, exact
                )
                exact = exact & (report.start == 0)
            if self.throw and bool((report.result != RESULTS.successful).any()):
                self._fail(part, z, report)
            parts.append(z)
            at_all = report.start < part.length
            first = torch.where(at_all, begin + report.start, length)
            reports.append(report._replace(prefix=begin + report.prefix, start=first))
            init = z[-1]
        z = parts[0] if len(parts) == 1 else torch.cat(parts)
        report = _summary(reports)
        if self.growth:
            growth = lyapunov_exponent(whole, z, report.prefix, self._chunk)
            report = report._replace(
                growth=growth,
                num_evals=report.num_evals + 1,
                num_linear=report.num_linear + whole.num_linear,
            )
        return z, report, error.value

    @property
    def _chunk(self):
        """A window bounds the memory of what is measured, too."""
        chunk = self.solver.chunk
        if chunk is None and self.window < self.chain.length:
            return self.window
        return chunk

    def _fail(self, part, z, report):
        """Raises the sentence of the first sample that failed."""
        raise_if(
            report.result,
            part.offset + part.stride * report.prefix,
            leaf_of(report.entry, part.leaves),
            tuple(leaf.name for leaf in part.leaves),
            lyapunov_exponent(part, z, report.prefix, self._chunk).exp(),
        )


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
        growth=at(each.growth, one),
        start=each.start.amin(0),
        num_linear=each.num_linear.sum(0),
    )
