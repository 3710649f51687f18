"""Whether a declared structure of the Jacobian is true."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._calculus import jvp
from ._certificate import unstable_above
from ._chain import AllTimes, Chain, differentiable, jacobian
from ._structure import Dense


# Random states of the size of one, their negatives, small and large ones.
_SCALES = (1.0, -1.0, 0.1, -10.0, 10.0)


def check_structure(problem: Chain) -> None:
    """Compare the declared Jacobian of a chain with the whole one, at several points.

    The points are the initial states, and around them random states, some with their
    signs flipped, small ones and large ones, each with the input of another time. What
    a step does at no such point is not seen. Entries that are not finite say nothing,
    nor do those that are within the rounding errors of a step that saturates.

    **Arguments:**

    - `problem`: a [`parafix.core.torch.Chain`][].

    **Raises:**

    `ValueError` if the declaration is false: with the entry that is worst, and what
    stands there.
    """
    size = problem.size
    if problem.length == 0 or problem.init.numel() == 0:
        return
    with differentiable(problem) as problem, torch.no_grad():
        z, xs = _points(problem)
        step = problem.at_all_times
        structure = step.structure
        declared = structure.dense(jacobian(step, z, xs)[1], size)
        whole = AllTimes(step.step, step.broadcasts, None, Dense())
        f, true = jacobian(whole, z, xs)
        scale = torch.maximum(declared.abs(), true.abs())
        scale = torch.where(torch.isfinite(scale), scale, 0).amax((-2, -1), True)
        rounding = _rounding(problem, z, f)[..., None]
        error = ((declared - true).abs() - rounding).clamp(min=0)
        relative = torch.where(torch.isfinite(error), error, 0) / scale
        relative = torch.where(scale > 0, relative, 0)
        # What stands where nothing should is told first: it falsifies the others, too.
        entire = structure.dense(z.new_ones(structure.shape(size)), size)
        beyond = torch.where(entire == 0, relative, 0)
        if bool(beyond.max() > unstable_above(problem)):
            relative = beyond
        if bool(relative.max() <= unstable_above(problem)):
            return
        place = torch.unravel_index(relative.argmax(), relative.shape)
        point, sample, row, column = map(int, place)
    raise ValueError(
        f"{_FALSE} Entry ({row}, {column}) is "
        f"{float(true[point, sample, row, column]):.6g} where the structure has "
        f"{float(declared[point, sample, row, column]):.6g}, at the state "
        f"{z[point, sample].tolist()}."
    )


def verify(problem: Chain) -> None:
    """Raises `ValueError` if some product shows the structure to be false.

    One product with a random vector at every point: of two matrices that differ, those
    agree with probability zero. Costs as much as some steps, whatever the length.
    Looks at values: on a GPU, the host waits for them.
    """
    with torch.no_grad():
        z, xs = _points(problem)
        step = problem.at_all_times
        v = _random(0, z[0])
        v = (v + torch.sign(v)).expand_as(z)
        f, a = jacobian(step, z, xs)
        true = jvp(lambda z: step(z, xs), (z,), (v,))
        declared = step.structure.apply(a, v)
        scale = step.structure.apply(a.abs(), v.abs()) + true.abs()
        scale = torch.where(torch.isfinite(scale), scale, 0).amax(-1, True)
        rounding = _rounding(problem, z, f) * v.abs().amax(-1, True)
        allowed = unstable_above(problem) * scale + rounding
        # False for what is not finite.
        false = (declared - true).abs() > allowed
        if bool(false.any()):
            raise ValueError(f"{_FALSE} {_REMEDY}")


_FALSE = "The declared structure of the Jacobian is false."
_REMEDY = (
    "The step couples entries of the state which the structure keeps apart, or a "
    "supplied Jacobian is not that of the step; `check_structure` names the entry."
)


def _rounding(problem: Chain, z: Tensor, f: Tensor) -> Tensor:
    """How far rows of the Jacobian of a step may be from the truth where it saturates.

    Its derivative is lost in rounding then: in some hundred `eps` of the slope by which
    `f = step(z, x)` has come about over the distance `z`.
    """
    size = torch.where(torch.isfinite(f), f.abs(), 0)
    distance = z.abs().mean(-1, True).clamp(min=0.1)
    return 256 * unstable_above(problem) ** 2 * size / distance


def _points(problem: Chain) -> tuple[Tensor, Any]:
    """Some states `(P, B, n)`, and the inputs of as many times."""
    init = problem.init.detach()
    others = [
        scale * _random(1 + i, init) + (init if scale > 0 else -init)
        for i, scale in enumerate(_SCALES)
    ]
    z = torch.stack([init, *others])
    # The same for every length: from the first time to the last.
    parts = torch.arange(len(z), device=init.device)
    index, apart = (problem.length - 1) * parts // (len(z) - 1), problem.apart
    if apart is None or apart.shape[1] != len(init):
        take = lambda x: x.detach()[index]
    else:
        # Steps that stand apart show nothing: times of each sample between the others.
        rank = (~apart).cumsum(0)
        wanted = 1 + (rank[-1] - 1).clamp(min=0) * parts[:, None] // (len(z) - 1)
        times = (rank < wanted[:, None]).sum(1).clamp(max=problem.length - 1)
        samples = torch.arange(len(init), device=init.device)
        take = lambda x: x.detach()[times, samples]
    return z, pytree.tree_map_only(Tensor, take, problem.xs)


def _random(seed: int, like: Tensor) -> Tensor:
    """The same numbers in every run, on every device."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return numbers.to(like)
