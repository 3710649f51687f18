import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ._affine_scan import affine_scan
from ._calculus import alias, grads, under_transforms
from ._scan import AbstractScan
from ._scan.algebra import apply


Vectors = Float[Tensor, "*batch n"]
Matrices = Float[Tensor, "..."]


class AbstractStructure(abc.ABC):
    """Which entries of the Jacobian of a step may be other than zero.

    A declared structure is what the blocks of a chain cost: to form them, to hold them,
    to solve with them, in the sweeps of DEER, in certificates and in gradients. Where a
    state is `(..., n)`, a Jacobian `a` is one tensor in the form of its structure:
    `(..., n, n)` if dense, `(..., n)` if diagonal, `(..., n / d, d, d)` if it consists
    of blocks.

    A false declaration makes gradients false. So every solve compares a few products
    with the Jacobian, and [`parafix.core.torch.check_structure`][] compares it whole.
    """

    @property
    @abc.abstractmethod
    def num_axes(self) -> int:
        """How many axes a Jacobian has at one time, of one sample."""

    @abc.abstractmethod
    def shape(self, size: int) -> tuple[int, ...]:
        """The shape of a Jacobian for `size` entries; `ValueError` if it cannot be."""

    @abc.abstractmethod
    def vectors(self, v: Vectors) -> Matrices:
        """`v` in the form in which Jacobians act on it."""

    @abc.abstractmethod
    def entries(self, v: Matrices) -> Vectors:
        """The inverse of `vectors`."""

    @abc.abstractmethod
    def probes(self, z: Vectors) -> Float[Tensor, "p n"]:
        """Cotangents of a state like `z` whose pulls hold the Jacobian, row by row."""

    @abc.abstractmethod
    def num_linear(self, size: int) -> int:
        """How many pulls a Jacobian takes for `size` entries."""

    @abc.abstractmethod
    def jacobian(
        self, step: Callable[[Any, Any], Any], z: Vectors, x: Any
    ) -> tuple[Vectors, Matrices]:
        """`step(z, x)` and its Jacobian in `z`, both of which can be differentiated."""

    def num_entries(self, size: int) -> int:
        """How many numbers a Jacobian holds for `size` entries."""
        return math.prod(self.shape(size))

    def assembled(self, pulls: Sequence[Vectors]) -> Matrices:
        """The Jacobian of the pulls of all probes."""
        one = pulls[0]
        rows = torch.stack([self.vectors(pull) for pull in pulls], -2)
        return rows.reshape(*one.shape[:-1], *self.shape(one.shape[-1]))

    def pulled(self, f: Vectors, z: Vectors, differentiable: bool) -> Matrices:
        """The Jacobian of `f` in `z` from its graph."""
        probes = [probe.expand(z.shape) for probe in self.probes(z)]
        return self.assembled([grads(f, [z], v, differentiable)[0] for v in probes])

    def apply(self, a: Matrices, v: Vectors) -> Vectors:
        """`a v`."""
        return self.entries(apply(a, self.vectors(v)))

    def diagonal(self, a: Matrices) -> Vectors:
        """The diagonal of `a`."""
        if self.num_axes == 1:
            return a
        return self.entries(a.diagonal(dim1=-2, dim2=-1))

    def dense(self, a: Matrices, size: int) -> Float[Tensor, "*batch n n"]:
        """`a` as matrices."""
        batch = a.shape[: a.ndim - self.num_axes]
        unit = torch.eye(size, dtype=a.dtype, device=a.device)
        return torch.stack([self.apply(a, v.expand(*batch, size)) for v in unit], -1)

    def solve(
        self,
        a: Matrices,
        b: Float[Tensor, "T *batch n"],
        init: Vectors | None,
        scan: str | AbstractScan,
        *,
        transposed: bool = False,
    ) -> Float[Tensor, "T *batch n"]:
        """`x_t = a_t x_{t-1} + b_t`; `a` may be diagonal whatever the structure.

        With `transposed` it is `x_t = a_t^T x_{t+1} + b_t`.
        """
        if transposed and a.ndim > b.ndim:
            a = a.mT
        if a.ndim <= b.ndim + 1:
            return affine_scan(a, b, init, reverse=transposed, scan=scan)
        init = None if init is None else self.vectors(init)
        x = affine_scan(a, self.vectors(b), init, reverse=transposed, scan=scan)
        return self.entries(x)


@dataclasses.dataclass(frozen=True)
class Dense(AbstractStructure):
    """Every entry of the state may depend on every other: `n` pulls, `n^2` numbers.

    What is assumed where nothing is declared.
    """

    @property
    def num_axes(self):
        return 2

    def shape(self, size):
        return (size, size)

    def vectors(self, v):
        return v

    def entries(self, v):
        return v

    def probes(self, z):
        return torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)

    def num_linear(self, size):
        return size

    def jacobian(self, step, z, x):
        return _by_pulls(self, step, z, x)


@dataclasses.dataclass(frozen=True)
class Diagonal(AbstractStructure):
    """Every entry of the state depends on itself alone: one pull, `n` numbers."""

    @property
    def num_axes(self):
        return 1

    def shape(self, size):
        return (size,)

    def vectors(self, v):
        return v

    def entries(self, v):
        return v

    def probes(self, z):
        # All rows at once: each column has one entry.
        return z.new_ones(1, z.shape[-1])

    def num_linear(self, size):
        del size
        return 1

    def jacobian(self, step, z, x):
        return _by_pulls(self, step, z, x)


@dataclasses.dataclass(frozen=True)
class Blocks(AbstractStructure):
    """Blocks of `size` entries that depend on each other alone: `size` pulls.

    Of a carry of one leaf, block `k` is entries `k size, ..., (k + 1) size - 1`: the
    heads of a layer. If each block has its share in several leaves of one shape, as the
    `(h, c)` of an LSTM whose units do not mix, `leaves` says in how many: block `k` is
    then entries `k w, ..., (k + 1) w - 1` of each leaf, `w = size / leaves`. A complex
    leaf counts as two, its real part and its imaginary part.

    **Arguments:**

    - `size`: the number of entries of a block, `d`.
    - `leaves`: over how many leaves of the carry the entries of a block are spread.
    """

    size: int
    leaves: int = 1

    def __post_init__(self) -> None:
        if self.size < 1 or self.leaves < 1 or self.size % self.leaves:
            raise ValueError(
                "`Blocks(size, leaves)` needs positive numbers, and a size that is a "
                f"multiple of leaves; got {self.size} and {self.leaves}."
            )

    @property
    def num_axes(self):
        return 3

    def shape(self, size):
        if size % self.size:
            raise ValueError(
                f"A state of {size} entries has no blocks of {self.size} entries."
            )
        return (size // self.size, self.size, self.size)

    def vectors(self, v):
        count, width = v.shape[-1] // self.size, self.size // self.leaves
        v = v.unflatten(-1, (self.leaves, count, width))
        return v.transpose(-3, -2).flatten(-2)

    def entries(self, v):
        v = v.unflatten(-1, (self.leaves, self.size // self.leaves))
        return v.transpose(-3, -2).flatten(-3)

    def probes(self, z):
        # The same row of all blocks at once.
        count, _, width = self.shape(z.shape[-1])
        unit = torch.eye(width, dtype=z.dtype, device=z.device)
        return self.entries(unit[:, None].expand(width, count, width))

    def num_linear(self, size):
        del size
        return self.size

    def jacobian(self, step, z, x):
        return _by_pulls(self, step, z, x)


@dataclasses.dataclass(frozen=True)
class Custom(AbstractStructure):
    """A Jacobian that the user supplies: nothing is pulled through the step for it.

    Gradients use it, so it must be the Jacobian itself and no approximation.

    **Arguments:**

    - `function`: maps what the step takes to the Jacobian of the step there, in the
        shape that `form` says, after the axis of samples. In
        [`parafix.core.torch.Chain`][] it takes states `(B, n)` and an input; a verb
        whose carry is a pytree hands it the carry.
    - `form`: the structure whose shape it has.
    """

    function: Callable[[Any, Any], Any]
    form: AbstractStructure = Dense()

    @property
    def num_axes(self):
        return self.form.num_axes

    def shape(self, size):
        return self.form.shape(size)

    def vectors(self, v):
        return self.form.vectors(v)

    def entries(self, v):
        return self.form.entries(v)

    def probes(self, z):
        return self.form.probes(z)

    def num_linear(self, size):
        del size
        return 0

    def jacobian(self, step, z, x):
        return step(z, x), self.supplied(z, x)

    def supplied(self, z: Vectors, x: Any) -> Matrices:
        """What `function` returns, if it has the shape of the form."""
        a = self.function(z, x)
        shape = self.form.shape(z.shape[-1])
        expected = (*z.shape[:-1], *shape)
        if tuple(a.shape) != expected:
            raise ValueError(
                f"The Jacobian of a structure {type(self.form).__name__} of "
                f"{z.shape[-1]} entries must have shape {shape}, here {expected}; the "
                f"function that was supplied returned {tuple(a.shape)}."
            )
        return a.to(z.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Structured:
    """A step, and what is known of its Jacobian.

    A step is any callable; one that has an attribute `structure` declares it.

    **Arguments:**

    - `step`: maps states `(B, n)` and an input to the next states `(B, n)`.
    - `structure`: an [`parafix.core.torch.AbstractStructure`][].
    """

    step: Callable[[Any, Any], Any]
    structure: AbstractStructure

    def __post_init__(self) -> None:
        if not isinstance(self.structure, AbstractStructure):
            raise TypeError(
                "`structure` must be an AbstractStructure such as `Diagonal()` or "
                f"`Blocks(4)`, got {self.structure!r}."
            )

    def __call__(self, z: Any, x: Any) -> Any:
        return self.step(z, x)


def structure_of(step: Any) -> AbstractStructure:
    """What `step` declares as its attribute `structure`; dense, if nothing."""
    structure = getattr(step, "structure", None)
    return structure if isinstance(structure, AbstractStructure) else Dense()


def _by_pulls(structure, step, z, x):
    """One evaluation, and the pulls of the probes through it."""
    if under_transforms():
        f, pull, *_ = torch.func.vjp(lambda z: step(z, x), z)
        probes = [probe.expand(z.shape) for probe in structure.probes(z)]
        return f, structure.assembled([pull(v)[0] for v in probes])
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        state = alias(z, differentiable)
        f = step(state, x)
    a = structure.pulled(f, state, differentiable)
    return (f if differentiable else f.detach()), a
