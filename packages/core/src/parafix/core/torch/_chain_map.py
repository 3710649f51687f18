"""The step of a chain with everything that it depends on made explicit."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._calculus import AbstractClosed
from ._capture import Autocast, capture, Captured
from ._chain import AllTimes, Chain, slices
from ._over_time import parted
from ._structure import AbstractStructure


class AbstractChainMap(AbstractClosed):
    """`f(lag; tensors)` at some of the times of a batch of chains.

    `lag` is `(T, B, n)`, the states before each of the times. The first `inputs` of the
    tensors are inputs at these times, and the others are what the step depends on
    besides.
    """

    inputs: int

    @property
    @abc.abstractmethod
    def has_formula(self) -> bool:
        """Whether the Jacobian is there by formula."""

    @property
    @abc.abstractmethod
    def structure(self) -> AbstractStructure:
        """The form of the Jacobian."""

    @abc.abstractmethod
    def linearised(
        self, lag: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """`f` and its Jacobian in the form of the structure, by the formula."""

    def during(self, tensors: Sequence[Tensor], begin: int, end: int) -> list[Tensor]:
        """The tensors for the times from `begin` to before `end`."""
        head = [x[begin:end] for x in tensors[: self.inputs]]
        return [*head, *tensors[self.inputs :]]

    def bound(self, tensors: Sequence[Tensor]) -> AllTimes:
        """The step with inputs as arguments and the rest put in."""
        rest = list(tensors[self.inputs :])
        formula = None
        if self.has_formula:
            formula = lambda lag, xs: self.linearised(lag, [*xs, *rest])
        step = lambda lag, xs: self(lag, [*xs, *rest])
        return AllTimes(step, True, formula, self.structure)


class ChainMap(AbstractChainMap):
    """The step of a chain; what it closes over is exchanged for the tensors given.

    **Attributes:**

    - `params`: the values here of the tensors that are no inputs.
    """

    def __init__(
        self,
        step: AllTimes,
        joined: Callable[[Any], Any],
        inputs: int,
        captured: Captured,
        by_formula: Captured | None,
        params: tuple[Tensor, ...] = (),
    ):
        self.step, self.joined, self.inputs = step, joined, inputs
        self.captured, self.by_formula = captured, by_formula
        self.params, self.eps = params, captured.eps

    @property
    def has_formula(self):
        return self.by_formula is not None

    @property
    def structure(self):
        return self.step.structure

    def __call__(self, z, params):
        return self._run(self.captured, self.step, z, params)

    def linearised(self, lag, tensors):
        assert self.by_formula is not None
        return self._run(self.by_formula, self.step.linearised, lag, tensors)

    def _run(self, captured: Captured, fn: Any, lag, tensors) -> Any:
        xs = self.joined(tensors[: self.inputs])
        params = tensors[self.inputs :]
        return captured.run(lambda lag, exchange: fn(lag, xs), lag, params)

    def vmapped(self, size, in_dims, randomness):
        return VmappedChain(self, size, in_dims, randomness)


class VmappedChain(AbstractChainMap):
    """All members of a `vmap` as samples of one batch.

    Inputs have the axis of the members, if they have one, just after time.
    """

    def __init__(
        self,
        map: AbstractChainMap,
        size: int,
        in_dims: Sequence[int | None],
        randomness: str,
    ):
        self.map, self.size, self.eps, self.inputs = map, size, map.eps, map.inputs
        self.in_dims, self.randomness = tuple(in_dims), randomness

    @property
    def has_formula(self):
        return self.map.has_formula

    @property
    def structure(self):
        return self.map.structure

    def __call__(self, z, params):
        out = self._run(lambda lag, *tensors: self.map(lag, tensors), z, params)
        return out.reshape(z.shape)

    def linearised(self, lag, tensors):
        f, a = self._run(
            lambda lag, *tensors: self.map.linearised(lag, tensors), lag, tensors
        )
        shape = self.structure.shape(lag.shape[-1])
        return f.reshape(lag.shape), a.reshape(*lag.shape[:-1], *shape)

    def _run(self, fn, lag, tensors) -> Any:
        length, samples, state = lag.shape
        apart = lag.reshape(length, self.size, samples // self.size, state)
        dims = (1, *self.in_dims)
        mapped = torch.func.vmap(fn, dims, 1, randomness=self.randomness)
        return mapped(apart, *tensors)

    def vmapped(self, size, in_dims, randomness):
        return VmappedChain(self, size, in_dims, randomness)


def plain_map(problem: Chain, autocast: Autocast, eps: float) -> ChainMap:
    """The map of a chain of which no derivatives are taken."""
    step = problem.at_all_times
    tensors, joined = parted(problem.xs)
    nothing = Captured(_nothing, autocast, eps)
    formula = None if step.formula is None else nothing
    return ChainMap(step, joined, len(tensors), nothing, formula)


def captured_map(problem: Chain, autocast: Autocast, eps: float) -> ChainMap:
    """The map of a chain, whose step is run at the first time to see what it uses."""
    step = problem.at_all_times
    tensors, joined = parted(problem.xs)
    xs = joined([x.detach() for x in slices(tensors, 0, 1)])
    inside = parted(xs)[0]
    runs = [step] if step.formula is None else [step, step.linearised]
    lag = problem.init.unsqueeze(0)
    found = [
        capture(
            lambda z, exchange, run=run: run(z, xs),
            lag,
            None,
            autocast,
            eps,
            False,
            inside,
        )
        for run in runs
    ]
    union = {
        id(x): (x, value)
        for item in found
        for x, value in zip(item.map.originals, item.params, strict=True)
    }
    originals = [x for x, _ in union.values()]
    params = tuple(value for _, value in union.values())
    captured, *formula = [
        Captured(_nothing, autocast, eps, originals, item.map.uses) for item in found
    ]
    return ChainMap(
        step, joined, len(tensors), captured, formula[0] if formula else None, params
    )


def _nothing(z, exchange):
    del exchange
    return z
