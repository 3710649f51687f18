import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from ._inference import out_of_inference
from ._over_time import over_time
from ._structure import AbstractStructure, Custom, structure_of, Structured


# One time: (B, n). All times, or some: (T, B, n).
State = Float[Tensor, "B n"]
States = Float[Tensor, "T B n"]
# In the form of the structure of a step.
Matrices = Float[Tensor, "T B ..."]


class Leaf(NamedTuple):
    """A part of a state: what messages call it, its size, and its rounding error."""

    name: str
    size: int
    eps: float


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Chains: `z_t = step(z_{t-1}, x_t)` for `t = 1, ..., T`, from `z_0 = init`.

    A batch of `B` of them, whose samples `step` must not mix. As one equation it is
    `z = f(z)` with `f(z)_t = step(z_{t-1}, x_t)`, whose Jacobian has its blocks just
    below the diagonal.

    **Arguments:**

    - `step`: maps states `(B, n)` and one slice of `xs` to the next states `(B, n)`.
        It must be deterministic. For all times at once it is run under
        `torch.func.vmap`, so that it sees the shapes of a sequential loop. What is
        known of its Jacobian it may declare as an attribute `structure`:
        [`parafix.core.torch.Structured`][] gives it one.
    - `init`: shape `(B, n)`, real floats: the states before the first step.
    - `xs`: a pytree of tensors with `length` as their first axis, `(T, B, ...)`; `None`
        if `step` takes no input.
    - `length`: the number of steps `T >= 0`.
    - `offset`, `stride`: entry `i` is called position `offset + stride * i` in
        messages.
    - `leaves`: the [`parafix.core.torch.Leaf`][]s that a state consists of, in order;
        one of the dtype of `init` by default.
    - `broadcasts`: whether `step` takes all times in one call, too: `(T, B, n)` and
        `xs` to `(T, B, n)`. Then there is no `vmap`.
    - `linearised`: the same with the Jacobian by formula, if there is one: maps states
        `(T, B, n)` and inputs to the next states and the Jacobians in the form of the
        structure (`(T, B, n, n)` where none is declared), by operations that PyTorch
        differentiates. By default they come from pulls, `n` of them where they are
        dense.
    - `apart`: booleans `(T, B)`: steps that keep nothing of the state before, or leave
        it as it is, and that the Lyapunov exponent leaves out.
    """

    step: Callable[[Any, Any], Any]
    init: Tensor
    xs: Any
    length: int
    offset: int = 0
    stride: int = 1
    leaves: tuple[Leaf, ...] = ()
    broadcasts: bool = False
    linearised: Callable[[Any, Any], tuple[Any, Any]] | None = None
    apart: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.init, Tensor) or self.init.ndim != 2:
            raise TypeError(
                "`init` must be a tensor of shape (B, n), got "
                f"{tuple(getattr(self.init, 'shape', ()))}."
            )
        for x in pytree.tree_leaves(self.xs):
            if x is None:
                continue
            if not isinstance(x, Tensor):
                raise TypeError(f"Every leaf of `xs` must be a tensor, got {x!r}.")
            if x.shape[:1] != (self.length,):
                raise ValueError(
                    f"Every leaf of `xs` must have `length` = {self.length} as its "
                    f"first axis, got shape {tuple(x.shape)}."
                )

    @property
    def structure(self) -> AbstractStructure:
        """What is known of the Jacobian of the step: its attribute `structure`."""
        return structure_of(self.step)

    @property
    def num_entries(self) -> int:
        """How many numbers its Jacobian holds, at every time."""
        return self.structure.num_entries(self.size)

    @property
    def num_linear(self) -> int:
        """How many pulls its Jacobian takes, at all times at once."""
        return 0 if self.linearised else self.structure.num_linear(self.size)

    @property
    def size(self) -> int:
        """`n`, the number of entries of a state."""
        return self.init.shape[1]

    @property
    def eps(self) -> float | Tensor:
        """The relative rounding error of a step; `(n,)` where entries differ."""
        if not self.leaves:
            return torch.finfo(self.init.dtype).eps
        each = {leaf.eps for leaf in self.leaves if leaf.size} or {0.0}
        if len(each) == 1:
            return each.pop()
        return torch.tensor(
            [leaf.eps for leaf in self.leaves for _ in range(leaf.size)],
            dtype=self.init.dtype,
            device=self.init.device,
        )

    @property
    def has_tangent(self) -> bool:
        """Whether `step` can be run for all times at once and differentiated."""
        with differentiable(self) as problem, torch.no_grad():
            first = problem.init.detach()[None]
            xs = pytree.tree_map_only(
                Tensor, torch.Tensor.detach, slices(problem.xs, 0, 1)
            )
            try:
                jacobian(problem.at_all_times, first, xs)
            except Exception:
                # Whatever keeps a function from it: control flow by values, an
                # operation without a rule.
                return False
        return True

    @property
    def at_all_times(self) -> "AllTimes":
        """The step for many times at once."""
        structure, formula = self.structure, self.linearised
        if isinstance(structure, Custom):
            formula = formula or _supplied(self, structure)
            structure = structure.form
        return AllTimes(self.step, self.broadcasts, formula, structure)

    def lag(self, z: Tensor) -> Tensor:
        """`z_{t-1}` for all `t`: `z` one step later, `init` in front."""
        return torch.cat([self.init.unsqueeze(0), z[:-1]])

    def __call__(self, z: Tensor) -> Tensor:
        """`f(z)`: all steps at once."""
        return self.at_all_times(self.lag(z), self.xs)


@dataclasses.dataclass(frozen=True, eq=False)
class AllTimes:
    """A step for many times at once: states `(T, B, n)` and inputs to `(T, B, n)`.

    `structure` is the form of its Jacobian, which `formula` returns if there is one.
    """

    step: Callable[[Any, Any], Any]
    broadcasts: bool
    formula: Callable[[Any, Any], tuple[Any, Any]] | None
    structure: AbstractStructure

    def __call__(self, z: Tensor, xs: Any) -> Tensor:
        if self.broadcasts:
            return _checked(self.step(z, xs), z)
        return over_time(lambda z, x: _checked(self.step(z, x), z), z, xs)

    def linearised(self, z: Tensor, xs: Any) -> tuple[Tensor, Tensor]:
        """The next states and their Jacobians, by the formula."""
        assert self.formula is not None
        f, a = self.formula(z, xs)
        expected = (*z.shape[:-1], *self.structure.shape(z.shape[-1]))
        if a.shape != expected:
            raise TypeError(
                "`linearised` must return the next states and their Jacobian blocks of "
                f"shape {expected}, got {tuple(a.shape)}."
            )
        return _checked(f, z, "linearised"), a.to(z.dtype)


@contextlib.contextmanager
def differentiable(problem: Chain) -> Iterator[Chain]:
    """Where derivatives of `problem` are taken: it, or its like in inference mode."""
    with out_of_inference() as copies:
        if copies is None:
            yield problem
            return
        formula = problem.linearised
        yield dataclasses.replace(
            problem,
            step=Structured(copies.inside(problem.step), problem.structure),
            init=copies.of(problem.init),
            xs=pytree.tree_map_only(Tensor, copies.of, problem.xs),
            linearised=None if formula is None else copies.inside(formula),
        )


def _checked(out, z, name="step"):
    check_states(out, z, name)
    # Under autocast, operations choose their dtypes by themselves.
    return out.to(z.dtype)


def check_states(out: Any, z: Tensor, name: str = "step") -> None:
    """Raises `TypeError` if `out` is not of the shape of the states `z`."""
    if not isinstance(out, Tensor) or out.shape != z.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise TypeError(
            f"`{name}` must return states of the shape that it takes, {tuple(z.shape)}"
            f"; got {got}."
        )


def _supplied(chain, structure):
    """The step and its Jacobian, which the user supplies, at many times at once."""
    plain = AllTimes(chain.step, chain.broadcasts, None, structure.form)

    def formula(z, xs):
        if chain.broadcasts:
            return plain(z, xs), structure.supplied(z, xs)
        return plain(z, xs), over_time(structure.supplied, z, xs)

    return formula


def jacobian(
    step: Callable[[Any, Any], Any], z: States, x: Any
) -> tuple[States, Matrices]:
    """`step(z, x)` at many times at once, and its Jacobian in `z`.

    In the form of the structure of `step`: `(T, B, n, n)` where it declares none, with
    the derivative of entry `i` of the next state by entry `j` of `z` as its entry
    `[..., i, j]`. By the formula, if `step` belongs to a chain that has one, and
    otherwise by pulls at all times, `n` of them where it is dense. Both can be
    differentiated.

    **Arguments:**

    - `step`: maps `(T, B, n)` and inputs to `(T, B, n)`, without mixing times or
        samples.
    - `z`: shape `(T, B, n)`, the states before each step.
    - `x`: the inputs.
    """
    if isinstance(step, AllTimes) and step.formula is not None:
        return step.linearised(z, x)
    return structure_of(step).jacobian(step, z, x)


def slices(tree: Any, begin: int, end: int) -> Any:
    """Every tensor of a pytree from time `begin` to before `end`."""
    return pytree.tree_map_only(Tensor, lambda x: x[begin:end], tree)


def chunks(length: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Where parts of at most `chunk` times begin and end."""
    for begin in range(0, length, chunk):
        yield begin, min(begin + chunk, length)


def chunk_size(chunk: int | None, z: Tensor, entries: int) -> int:
    """For how many of the times of `z`, `(T, B, n)`, to hold Jacobians at once.

    `entries` are the numbers in a Jacobian. `None` decides: on a CPU, blocks that leave
    the cache cost more than forming them, and every chunk costs the calls of a scan.
    """
    length, samples, _ = z.shape
    if chunk is not None:
        return max(1, min(chunk, length))
    if z.device.type != "cpu":
        return max(1, length)
    return max(1, min(length, max(1000, 2**20 // max(1, samples * entries))))
