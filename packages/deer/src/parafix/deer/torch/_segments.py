"""What of each sequence is run: where it starts over, and how long it is."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from parafix.core.torch import (
    AbstractStructure,
    Custom,
    over_time,
    RESULTS,
    Solution,
)

from ._carry import Layout


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """Flags `(T, B)` in the order of running; `None` where they were not asked for.

    **Attributes:**

    - `resets`: true where a step starts from the initial carry.
    - `valid`: true for the times that belong to a sample.
    - `dead`: true for the times of a segment from its first true state that is not
        finite. There the step is left out, so that the segments after can be solved.
    """

    resets: Tensor | None = None
    valid: Tensor | None = None
    dead: Tensor | None = None

    @property
    def trivial(self) -> bool:
        return self.resets is None and self.valid is None

    def flip(self) -> "Segments":
        """In the other order of time."""
        flags = (self.resets, self.valid, self.dead)
        return Segments(*(None if x is None else x.flip(0) for x in flags))

    def filled(self, xs: Any) -> Any:
        """`xs` with the first input in place of those whose step is thrown away.

        Were that step NaN, or had it no derivative, then so would be what zero times
        its derivative gives. From the initial carry a sample takes the first of its
        inputs, and perhaps no other; zero, where that one is thrown away, too.
        """
        kept = self.valid
        if self.dead is not None:
            kept = ~self.dead if kept is None else kept & ~self.dead
        if kept is None or not kept.numel():
            return xs
        # Of a reversed run it is the first times that do not belong to a sample.
        begin = torch.zeros_like(kept[0], dtype=torch.int64)
        begin = begin if self.valid is None else self.valid.long().argmax(0)
        samples = torch.arange(len(begin), device=kept.device)

        def fill(x):
            wanted = _beside(kept, x)
            first = x[begin, samples]
            if x.is_floating_point() or x.is_complex():
                first = torch.where(_beside(kept[begin, samples], first), first, 0)
            return torch.where(wanted, x, first)

        return pytree.tree_map_only(Tensor, fill, xs)

    def inputs(self, xs: Any) -> Any:
        """What `Looped` takes for inputs."""
        return self.filled(xs), self.resets, self.valid, self.dead

    def number(self) -> Tensor:
        """Of each time the number of its segment; nothing is reset in the padding."""
        assert self.resets is not None
        resets = self.resets if self.valid is None else self.resets & self.valid
        return resets.long().cumsum(0)

    def tainted(self) -> Tensor:
        """The times that are run in segments of which some time is dead."""
        assert self.dead is not None
        number = self.number()
        count = number.new_zeros(len(number) + 1, number.shape[1])
        count = count.scatter_add(0, number, self.dead.long())
        tainted = count.gather(0, number) > 0
        return tainted if self.valid is None else tainted & self.valid

    def dying(self, solution: Solution) -> Tensor | None:
        """The times from where samples are not finite up to their next resets.

        `None` if no sample with resets has such a time.
        """
        if self.resets is None:
            return None
        prefix = solution.stats["converged_prefix"]
        bad = solution.result == RESULTS.nonfinite
        number = self.number()
        length, samples = number.shape
        place = prefix.clamp(max=length - 1)
        here = number[place, torch.arange(samples, device=number.device)]
        # Before the first reset and after the last, too: nothing that is not finite may
        # be in a solve whose cotangents are to get past a reset.
        try:
            some = bool((bad & (number[-1] > 0)).any())
        except RuntimeError:
            # Members of a `vmap` cannot be told apart here.
            return None
        if not some:
            return None
        times = torch.arange(length, device=number.device)[:, None]
        return bad & (times >= prefix) & (number == here)


@dataclasses.dataclass(frozen=True, eq=False)
class Looped:
    """`f` for steps that start over and end, at one time or at all times at once."""

    f: Any
    init: Any
    declared: AbstractStructure

    @property
    def structure(self) -> AbstractStructure:
        """That of `f`: starting over and standing still are diagonal."""
        if isinstance(self.declared, Custom):
            return Custom(self.jacobian, self.declared.form)
        return self.declared

    def __call__(self, carry: Any, inputs: Any) -> Any:
        new, y = self.f(self._before(carry, inputs), inputs[0])
        if inputs[2] is not None:
            zeros = pytree.tree_map_only(Tensor, torch.zeros_like, y)
            y = select(inputs[2], y, zeros)
        return self._after(carry, new, inputs), y

    def linearised(self, carry: Any, inputs: Any) -> Any:
        """The next carry along with the Jacobian, by the formula of `f`."""
        new, a = self.f.linearised(self._before(carry, inputs), inputs[0])
        return self._after(carry, new, inputs), self._remembered(a, inputs)

    def jacobian(self, carry: Any, inputs: Any) -> Tensor:
        """The Jacobian that the user supplies."""
        assert isinstance(self.declared, Custom)
        a = self.declared.function(self._before(carry, inputs), inputs[0])
        return self._remembered(a, inputs)

    def apart(self, inputs: Any) -> Tensor | None:
        """True for the times at which nothing is remembered, or nothing happens."""
        _, reset, valid, _ = inputs
        if reset is None or valid is None:
            return reset if valid is None else ~valid
        return reset | ~valid

    def _before(self, carry, inputs):
        _, reset, valid, dead = inputs
        before = carry if reset is None else select(reset, self.init, carry)
        # Where its result is not used, `f` sees what it sees at first.
        before = before if valid is None else select(valid, before, self.init)
        return before if dead is None else _floats(dead, self.init, before)

    def _after(self, carry, new, inputs):
        _, _, valid, dead = inputs
        # Counters go on, whatever floats do.
        new = new if dead is None else _floats(dead, self.init, new)
        return new if valid is None else select(valid, new, carry)

    def _remembered(self, a, inputs):
        """Zero where nothing of the carry is, the identity where it stays."""
        _, reset, valid, dead = inputs
        for flags in (reset, dead):
            a = a if flags is None else torch.where(_beside(flags, a), 0, a)
        if valid is None:
            return a
        unit = a.new_ones(a.shape[-1])
        unit = unit if self.declared.num_axes == 1 else unit.diag()
        return torch.where(_beside(valid, a), a, unit)


def solve_segments(
    segments: Segments, solve: Callable[[Segments, Any], Any], guess: Any
) -> Any:
    """`solve(segments, guess)`, as often as it takes to get past what is not finite.

    Once more for each segment in which some sample turns bad, from the last iterate.
    Returns what `solve` does, and the times that are dead, if any are.
    """
    out, solution = solve(segments, guess)
    first, dead, rounds = solution, None, solution.stats["num_steps"]
    evals, linear = (solution.stats[name] for name in ("num_evals", "num_linear"))
    found = torch.zeros_like(solution.result, dtype=torch.bool)
    while (new := segments.dying(solution)) is not None:
        bad = new.any(0)
        # The first trouble of a sample is what its result is about.
        first = _mixed(bad & ~found, solution, first)
        found = found | bad
        dead = new if dead is None else dead | new
        segments = dataclasses.replace(segments, dead=dead)
        guess = pytree.tree_map_only(Tensor, torch.Tensor.detach, solution.value)
        out, solution = solve(segments, guess)
        rounds = rounds + solution.stats["num_steps"]
        evals = evals + solution.stats["num_evals"]
        linear = linear + solution.stats["num_linear"]
    if dead is None:
        return out, solution, None
    solution = _mixed(found, first, solution)
    stats = {**solution.stats, "num_steps": rounds}
    stats.update(num_evals=evals, num_linear=linear)
    return out, dataclasses.replace(solution, stats=stats), dead


def poisoned(
    f: Callable,
    layout: Layout,
    init: Any,
    xs: Any,
    segments: Segments,
    carries: Any,
    ys: Any,
) -> tuple[Any, Any]:
    """Carries and outputs that are NaN at the times `dead`, as are their cotangents.

    What stands there is what steps from NaN make of the inputs of the whole segment and
    of `init`, so that the gradient with respect to these, and to all that `f` depends
    on, is NaN too, as that of the loop.
    """
    dead = segments.dead
    assert dead is not None

    def step(tainted, x):
        before = pytree.tree_map_only(Tensor, lambda y: _nan_where(tainted, y), init)
        new, _ = layout.split(f(before, x)[0])
        # NaN comes back from these times and zero from the others, whatever cotangents
        # are.
        factor = torch.where(tainted, torch.nan, 0.0).to(new.dtype)
        return torch.where(tainted, factor * new.sum(-1), 0)

    nan = over_time(step, segments.tainted(), xs).sum(0)

    def poison(dead, tree):
        def one(x):
            if not (x.is_floating_point() or x.is_complex()):
                return x
            there = nan.reshape(-1, *(1,) * (x.ndim - 2)).to(x.dtype)
            return torch.where(_beside(dead, x), there, x)

        return pytree.tree_map_only(Tensor, one, tree)

    seen = dead if segments.valid is None else dead & segments.valid
    return poison(dead, carries), poison(seen, ys)


def checked_segments(
    resets: Any, lengths: Any, length: int, layout: Layout
) -> Segments:
    """The segments of sequences of `length` steps; an error names what is wrong."""
    samples, device = layout.samples, layout.device
    if resets is not None:
        resets = torch.as_tensor(resets, device=device)
        if resets.dtype != torch.bool:
            raise TypeError(f"`resets` must be booleans, got {resets.dtype}.")
        if tuple(resets.shape) not in ((length,), (length, samples)):
            raise ValueError(
                f"`resets` must have shape {(length,)} or {(length, samples)}; got "
                f"{tuple(resets.shape)}."
            )
        if resets.ndim == 1:
            resets = resets[:, None].expand(length, samples)
    if lengths is None:
        return Segments(resets)
    lengths = torch.as_tensor(lengths, device=device)
    if (
        lengths.dtype == torch.bool
        or lengths.is_floating_point()
        or lengths.is_complex()
    ):
        raise TypeError(f"`lengths` must be integers, got {lengths.dtype}.")
    if tuple(lengths.shape) != (samples,):
        raise ValueError(
            f"`lengths` must have shape {(samples,)}, one for every sample; got "
            f"{tuple(lengths.shape)}."
        )
    if bool(((lengths < 0) | (lengths > length)).any()):
        raise ValueError(
            f"`lengths` must be between 0 and {length}, the length of `xs`; got "
            f"{lengths.tolist()}."
        )
    return Segments(resets, torch.arange(length, device=device)[:, None] < lengths)


def select(flags: Tensor, x: Any, y: Any) -> Any:
    """`x` for the samples where true, `y` for the others, leaf by leaf."""

    def one(x, y):
        if not isinstance(x, Tensor):
            return x
        # The initial carry has no axis of times.
        return torch.where(_beside(flags, x if x.ndim > y.ndim else y), x, y)

    return pytree.tree_map(one, x, y)


def _floats(flags, x, y):
    """`select` for floats; other leaves are those of `y`."""

    def one(x, y):
        real = isinstance(y, Tensor) and (y.is_floating_point() or y.is_complex())
        return select(flags, x, y) if real else y

    return pytree.tree_map(one, x, y)


def _beside(flags, x):
    """`flags` with as many axes as `x`, which it shares the first of."""
    if tuple(x.shape[: flags.ndim][-1:]) != tuple(flags.shape[-1:]):
        raise ValueError(
            "With `resets` or `lengths`, every leaf must have the samples on an axis: "
            f"got shape {tuple(x.shape)} for {flags.shape[-1]} samples."
        )
    return flags.reshape(*flags.shape, *(1,) * (x.ndim - flags.ndim))


def _nan_where(dead, x):
    if not (x.is_floating_point() or x.is_complex()):
        return x
    # The sum of both, so that what comes back is NaN, too.
    return x + torch.where(_beside(dead, x), torch.nan, 0).to(x.dtype)


def _mixed(flags, x, y):
    """The solution `x` for some samples, `y` for others; the value is that of `y`."""
    choose = lambda a, b: torch.where(flags, torch.as_tensor(a), torch.as_tensor(b))
    stats = {name: choose(x.stats[name], y.stats[name]) for name in y.stats}
    return dataclasses.replace(
        y,
        result=choose(x.result, y.result),
        stats=stats,
        position=choose(x.position, y.position),
        leaf=choose(x.leaf, y.leaf),
    )
