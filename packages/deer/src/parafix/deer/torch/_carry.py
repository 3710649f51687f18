import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from parafix.core.torch import Leaf


@dataclasses.dataclass(frozen=True)
class Struct:
    """The shape of a leaf, samples included, and its dtype; `None` is nothing."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None

    @classmethod
    def of(cls, x: Any) -> "Struct":
        return cls((), None) if x is None else cls(tuple(x.shape), x.dtype)

    @property
    def is_float(self) -> bool:
        dtype = self.dtype
        return dtype is not None and (dtype.is_floating_point or dtype.is_complex)

    @property
    def is_complex(self) -> bool:
        return self.dtype is not None and self.dtype.is_complex

    @property
    def size(self) -> int:
        """How many real numbers it holds for one sample."""
        return (2 if self.is_complex else 1) * math.prod(self.shape[1:])

    def __str__(self) -> str:
        if self.dtype is None:
            return "None"
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the leaves of a carry become a flat state `(B, n)`, and back.

    Real and complex floats are iterated on: flat, in one dtype (at least float32, so
    that the algebra on half-precision states is done in float32). All other leaves
    (counters, flags) drive the iteration and must not depend on it.
    """

    treedef: Any
    structs: tuple[Struct, ...]
    names: tuple[str, ...]
    device: torch.device

    @classmethod
    def of(cls, carry: Any) -> "Layout":
        """The layout of a carry.

        **Raises:**

        `TypeError` if a leaf is no tensor with the samples on axis 0, or lies on
        another device than the first.
        """
        paths, treedef = pytree.tree_flatten_with_path(carry)
        names = tuple("init" + pytree.keystr(path) for path, _ in paths)
        leaves = [x for _, x in paths]
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        for name, x in zip(names, leaves, strict=True):
            if x is None:
                continue
            if not isinstance(x, Tensor):
                raise TypeError(f"`{name}` must be a tensor (B, ...), got {x!r}.")
            if x.ndim == 0:
                raise TypeError(
                    f"`{name}` must have the samples on axis 0, got a tensor without "
                    "axes."
                )
            one = tensors[0]
            if x.shape[0] != one.shape[0] or x.device != one.device:
                raise TypeError(
                    "All leaves of `init` must have as many samples on axis 0 and be "
                    f"on one device: the first has {one.shape[0]} on {one.device}, "
                    f"`{name}` has {x.shape[0]} on {x.device}."
                )
        device = tensors[0].device if tensors else torch.device("cpu")
        called = tuple("carry" + name.removeprefix("init") for name in names)
        return cls(treedef, tuple(map(Struct.of, leaves)), called, device)

    @property
    def samples(self) -> int:
        return next((s.shape[0] for s in self.structs if s.dtype is not None), 0)

    @property
    def floats(self) -> tuple[int, ...]:
        return tuple(i for i, x in enumerate(self.structs) if x.is_float)

    @property
    def drivers(self) -> tuple[int, ...]:
        return tuple(
            i
            for i, x in enumerate(self.structs)
            if not x.is_float and x.dtype is not None
        )

    @property
    def dtype(self) -> torch.dtype:
        dtype = torch.float32
        for i in self.floats:
            dtype = torch.promote_types(dtype, _real(self.structs[i].dtype))
        return dtype

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Name, number of state entries and rounding error of every float leaf."""
        return tuple(
            Leaf(
                self.names[i],
                self.structs[i].size,
                torch.finfo(_real(self.structs[i].dtype)).eps,
            )
            for i in self.floats
        )

    @property
    def size(self) -> int:
        return sum(leaf.size for leaf in self.leaves)

    def split(self, carry: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The state `(..., B, n)` and the drivers of a carry with any leading axes."""
        leaves = pytree.tree_leaves(carry)
        parts = []
        for i in self.floats:
            x = leaves[i]
            lead = x.shape[: x.ndim - len(self.structs[i].shape) + 1]
            size = self.structs[i].size
            if self.structs[i].is_complex:
                halves = x.real, x.imag
                parts += [half.reshape(*lead, size // 2) for half in halves]
            else:
                parts.append(x.reshape(*lead, size))
        drivers = tuple(leaves[i] for i in self.drivers)
        if not parts:
            none = torch.zeros(self.samples, 0, dtype=self.dtype, device=self.device)
            return none, drivers
        parts = [x.to(self.dtype) for x in parts]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, -1)), drivers

    def join(self, state: Tensor, drivers: Sequence[Tensor]) -> Any:
        """The carry of a state and its drivers, with any leading axes."""
        leaves: list[Any] = [None] * len(self.structs)
        sizes = [self.structs[i].size for i in self.floats]
        parts = state.split(sizes, -1) if len(sizes) != 1 else (state,)
        for i, x in zip(self.floats, parts, strict=True):
            struct = self.structs[i]
            if struct.is_complex:
                x = torch.complex(*x.tensor_split(2, -1))
            x = x.reshape(*state.shape[:-1], *struct.shape[1:])
            leaves[i] = x.to(struct.dtype)
        for i, x in zip(self.drivers, drivers, strict=True):
            leaves[i] = x
        return pytree.tree_unflatten(leaves, self.treedef)

    def check(self, carry: Any, autocast: bool) -> Any:
        """`carry`, which `f` has returned, if it fits `init`.

        **Raises:**

        `TypeError` that names the leaf which does not.
        """
        leaves, treedef = pytree.tree_flatten(carry)
        if treedef != self.treedef:
            raise TypeError(
                "`f` must return a carry of the structure of `init`: expected "
                f"{self.treedef}, got {treedef}."
            )
        for name, struct, x in zip(self.names, self.structs, leaves, strict=True):
            if x is not None and not isinstance(x, Tensor):
                raise TypeError(f"`f` returned {x!r} for `{name}`, where {struct} was.")
            found = Struct.of(x)
            # Under autocast, operations choose their dtypes by themselves.
            same = found == struct or (
                autocast and found.shape == struct.shape and found.is_float
            )
            if not same:
                raise TypeError(
                    "`f` must return a carry with the shapes and dtypes of `init`: "
                    f"`{name}` is {struct}, and `f` returned {found}."
                )
        return carry


def _real(dtype: Any) -> torch.dtype:
    return torch.empty(0, dtype=dtype).real.dtype if dtype.is_complex else dtype
