"""What a scan is, as a chain."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree, checkpoint

from parafix.core.torch import (
    AbstractStructure,
    Chain,
    Custom,
    over_time,
    Structured,
)

from ._carry import Layout
from ._drivers import Drivers
from ._segments import Looped


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """Everything about a scan but who solves it."""

    f: Callable
    layout: Layout
    init: Any
    # In the order of time.
    xs: Any
    length: int
    reverse: bool
    rtol: Any
    atol: Any
    structure: AbstractStructure
    # Whether `f` brings its Jacobian along, in the form of the structure.
    formula: bool = False

    @property
    def autocast(self) -> bool:
        return torch.is_autocast_enabled(self.layout.device.type)

    def x(self, t: int) -> Any:
        """The input at one time."""
        return pytree.tree_map_only(Tensor, lambda x: x[t], self.xs)

    def steps(self) -> Iterator[Any]:
        """The inputs, one time after the other."""
        if isinstance(self.xs, Tensor):
            yield from self.xs.unbind(0)
            return
        leaves, structure = pytree.tree_flatten(self.xs)
        none = [None] * self.length
        # Cut at once: slices taken one by one cost more.
        cut = [none if x is None else x.unbind(0) for x in leaves]
        for x in zip(*cut, strict=True):
            yield pytree.tree_unflatten(x, structure)

    def example(self) -> Any:
        """The input at the first time, or something like it where there is none."""
        if self.length:
            return self.x(0)
        return pytree.tree_map_only(Tensor, lambda x: x.new_zeros(x.shape[1:]), self.xs)

    def drivers(self) -> Drivers:
        return Drivers.of(self.f, self.layout, self.init, self.example())

    def run_drivers(self) -> Any:
        """The drivers before and after each of the steps, of which there are some.

        **Raises:**

        `TypeError` if one of them may depend on a float leaf.
        """
        found = self.drivers()
        if found.tainted:
            driver, source = found.tainted[0]
            struct = self.layout.structs[self.layout.names.index(driver)]
            why = "may depend on floats (PyTorch cannot trace `f`)"
            if source:
                why = f"depends on `{source}`"
            raise TypeError(
                f"`{driver}` ({struct}) {why}, and only float leaves of the carry can "
                'be iterated on. Make it a float, or use solver="sequential".'
            )
        return found.run(self.init, self.xs, self.length)

    def chain(self, drivers: Any) -> Chain:
        """The chain of the float leaves; `drivers` are those before each step."""
        layout = self.layout

        def step(state, inputs):
            drivers, x = inputs
            carry, _ = self.f(layout.join(state, drivers), x)
            return layout.split(carry)[0]

        def linearised(state, inputs):
            drivers, x = inputs
            of_carry: Any = self.f
            carry, a = of_carry.linearised(layout.join(state, drivers), x)
            return layout.split(carry)[0], a

        structure = self.structure
        if isinstance(structure, Custom):
            # What the user supplies takes a carry.
            supplied = structure.function

            def function(state, inputs):
                drivers, x = inputs
                return supplied(layout.join(state, drivers), x)

            structure = Custom(function, structure.form)
        state, _ = layout.split(self.init)
        return Chain(
            Structured(step, structure),
            state,
            (drivers, self.xs),
            self.length,
            offset=self.length - 1 if self.reverse else 0,
            stride=-1 if self.reverse else 1,
            leaves=layout.leaves,
            broadcasts=self.formula,
            linearised=linearised if self.formula else None,
            apart=self.f.apart(self.xs) if isinstance(self.f, Looped) else None,
        )

    def flip(self, tree: Any) -> Any:
        """From the order of time to that of the user, or back."""
        return flip(tree) if self.reverse else tree


class Outputs:
    """Which outputs of a step are its new carry itself, and how to get the others."""

    def __init__(self, out: Any):
        new, y = out
        carries = enumerate(pytree.tree_leaves(new))
        places = {id(x): i for i, x in carries if x is not None}
        self.leaves, self.structure = pytree.tree_flatten(y)
        self.aliases = [places.get(id(x)) for x in self.leaves]

    def at_states(
        self, job: Job, problem: Chain, z: Tensor, drivers: Any, window: int | None
    ) -> tuple[tuple[Any, Any], Any]:
        """`((carry, ys), carries)` at the states `z`, in the order that users see.

        `drivers` are those before and after each step.
        """
        before, after = drivers
        carries = job.layout.join(z, after)
        carry = pytree.tree_map_only(Tensor, lambda x: x[-1], carries)
        if None in self.aliases and any(x is not None for x in self.leaves):
            ys = _outputs(job, problem.lag(z), before, window)
        else:
            leaves = pytree.tree_leaves(carries)
            ys = [None if i is None else leaves[i] for i in self.aliases]
            ys = pytree.tree_unflatten(ys, self.structure)
        return (carry, job.flip(ys)), job.flip(carries)


def _outputs(job, lag, drivers, window):
    """The outputs of the steps that lead from one carry to the next."""

    def output(state, drivers, x):
        return job.f(job.layout.join(state, drivers), x)[1]

    trees = (lag, drivers, job.xs)
    if window is None:
        return over_time(output, *trees)
    parts = [
        _checkpointed(
            lambda *trees: over_time(output, *trees),
            pytree.tree_map_only(Tensor, lambda x, t=t: x[t : t + window], trees),
        )
        for t in range(0, job.length, window)
    ]
    join = lambda *x: None if x[0] is None else torch.cat(x)
    return pytree.tree_map(join, *parts)


def _checkpointed(fn, trees):
    if torch._C._are_functorch_transforms_active() or not torch.is_grad_enabled():
        return fn(*trees)
    return checkpoint.checkpoint(fn, *trees, use_reentrant=False)


def check_pair(out: Any) -> None:
    # A tensor would be taken apart, too.
    if not isinstance(out, tuple | list) or len(out) != 2:
        what = type(out).__name__
        if isinstance(out, tuple | list):
            what += f" of {len(out)}"
        raise TypeError(
            f"`f` must return a pair, the next carry and an output; got a {what}."
        )


class MixedSamplesError(ValueError):
    """What a sample becomes depends on others."""


def check_samples(job: Job, new: Any) -> None:
    """Whether the first sample steps as it does beside others.

    Its Jacobian says nothing of them, so that what they give to it would be left out
    of gradients.

    **Raises:**

    `MixedSamplesError` if it does not.
    """
    layout, f, x = job.layout, job.f, job.x(0)
    if layout.samples < 2 or torch._C._are_functorch_transforms_active():
        return
    if isinstance(f, Looped):
        # What starts over at once shows nothing of what it would do.
        f, x = f.f, x[0]
        new = f(job.init, x)[0]

    def first(carry):
        leaves = pytree.tree_leaves(carry)
        return [leaves[i][0] for i in layout.floats]

    def step(beside):
        leaves = pytree.tree_leaves(job.init)
        for i in layout.floats:
            leaves[i] = torch.cat([leaves[i][:1], leaves[i][1:] + beside])
        carry = pytree.tree_unflatten(leaves, layout.treedef)
        return first(f(carry, x)[0])

    def same(one, other):
        return all(
            bool(((x == y) | ((x != x) & (y != y))).all())
            for x, y in zip(one, other, strict=True)
        )

    # If it is not itself twice, that was not the others.
    if not same(step(1), first(new)) and same(step(0), first(new)):
        raise MixedSamplesError(
            f"`f` mixes samples: `init` has {layout.samples} of them on its first "
            "axis, and what the first one becomes depends on the others. A single "
            "sequence is a batch of one: `init` (1, ...), `xs` (T, 1, ...)."
        )


def flip(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda x: x.flip(0), tree)


def sweeps_serve(job: Job) -> bool:
    """Whether sweeps can take `f`: drivers run by themselves, `vmap` and pulls do."""
    found = job.drivers()
    if found.tainted:
        return False
    before = tuple(x[None] for x in job.layout.split(job.init)[1])
    first = pytree.tree_map_only(Tensor, lambda x: x[:1], job.xs)
    job = dataclasses.replace(job, xs=first, length=1)
    return job.chain(before).has_tangent
