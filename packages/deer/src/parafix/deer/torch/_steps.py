"""The steps of an initial value problem as the function of a scan."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._carry import Layout, Struct
from ._one_step import AbstractOneStep


def mapped(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, fn, tree)


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """`(carry, (t0, h)) -> (carry, carry)`, by a one-step map of flat states.

    **Attributes:**

    - `init`: the initial state, with samples on axis 0; of a single one where the user
        has none.
    - `dtype`: of the times that `func` sees.
    - `flat`: whether flat states are what `func` sees.
    """

    func: Callable[[Any, Any], Any]
    method: AbstractOneStep
    layout: Layout
    init: Any
    batched: bool
    dtype: torch.dtype
    flat: bool

    @classmethod
    def of(cls, func: Any, method: AbstractOneStep, y0: Any, batched: bool) -> "Steps":
        init = y0 if batched else mapped(lambda x: x[None], y0)
        layout = Layout.of(init)
        # That of the leaves, where the one of flat states is single at least.
        first, *others = {x.real.dtype for x in pytree.tree_leaves(y0)}
        for other in others:
            first = torch.promote_types(first, other)
        flat = batched and isinstance(y0, Tensor) and y0.ndim == 2
        flat = flat and y0.dtype == layout.dtype
        return cls(func, method, layout, init, batched, first, flat)

    def __call__(self, carry: Any, x: tuple[Tensor, Tensor]) -> tuple[Any, Any]:
        carry = self.state(carry, x)
        carry = carry if self.flat else self.layout.join(carry, ())
        return carry, carry

    def state(self, carry: Any, x: tuple[Tensor, Tensor]) -> Tensor:
        """The flat state after the step from `carry`."""
        t0, h = x
        state = carry if self.flat else self.layout.split(carry)[0]
        return self.method(self.slope, t0, h, state)

    def slope(self, t: Tensor, state: Tensor) -> Tensor:
        """`func` on flat states `(B, n)`."""
        if self.flat:
            # The usual case, with as few calls as can be.
            slope = self.func(t, state)
            fits = isinstance(slope, Tensor) and slope.shape == state.shape
            if fits and slope.dtype == state.dtype:
                return slope
            return _checked_slope(slope, state)
        y = self.layout.join(state, ())
        if not self.batched:
            y = mapped(lambda x: x[0], y)
        slope = self.func(t.to(self.dtype), y)
        slope = _checked_slope(slope, y)
        if not self.batched:
            slope = mapped(lambda x: x[None], slope)
        return self.layout.split(slope)[0]

    def outward(self, ys: Any) -> Any:
        """The states at all times, from those after the first, as users see them."""
        full = lambda first, rest: torch.cat([first[None], rest])
        ys = pytree.tree_map(full, self.init, ys)
        return ys if self.batched else mapped(lambda x: x[:, 0], ys)


def _checked_slope(slope, y):
    """`slope` in the dtypes of `y`, if it fits."""
    leaves, expected = pytree.tree_flatten(y)
    found, treedef = pytree.tree_flatten(slope)
    fits = treedef == expected and all(
        isinstance(x, Tensor)
        and x.shape == leaf.shape
        and (leaf.is_complex() or not x.is_complex())
        for x, leaf in zip(found, leaves, strict=True)
    )
    if not fits:
        described = lambda tree: mapped(lambda x: str(Struct.of(x)), tree)
        raise TypeError(
            "`func` must return dy/dt with the structure and the shapes of `y`: "
            f"expected {described(y)}, got {described(slope)}."
        )
    found = [x.to(leaf.dtype) for x, leaf in zip(found, leaves, strict=True)]
    return pytree.tree_unflatten(found, treedef)


def checked_state(y0: Any, batched: bool | None) -> bool:
    """Whether axis 0 of `y0` counts samples; by the number of axes if it is `None`.

    **Raises:**

    `TypeError` if `y0` holds anything but tensors of floats, or there are no samples.
    """
    leaves = [
        (f"y0{pytree.keystr(path)}", x)
        for path, x in pytree.tree_flatten_with_path(y0)[0]
    ]
    if not leaves:
        raise TypeError("`y0` must hold a tensor.")
    for name, x in leaves:
        if not isinstance(x, Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {x!r}.")
        if not (x.is_floating_point() or x.is_complex()):
            raise TypeError(f"`{name}` must be of floats, got {Struct.of(x)}.")
        if x.device != leaves[0][1].device:
            raise TypeError(
                f"All leaves of `y0` must be on one device: `{leaves[0][0]}` is on "
                f"{leaves[0][1].device}, `{name}` on {x.device}."
            )
    same = len({x.shape[:1] for _, x in leaves}) == 1
    if batched is None:
        return same and all(x.ndim > 1 for _, x in leaves)
    if batched and not (same and leaves[0][1].ndim):
        shapes = {name: tuple(x.shape) for name, x in leaves}
        raise TypeError(
            "With `batched=True` all leaves of `y0` must have as many samples on "
            f"axis 0, got shapes {shapes}."
        )
    return batched


def checked_times(t: Any, layout: Layout) -> tuple[Tensor, Tensor]:
    """The times before the steps and the lengths of these, each `(T,)`.

    In the precision of flat states; differences are taken in that of `t`.

    **Raises:**

    `TypeError` or `ValueError` if `t` is no tensor `(T + 1,)` of times in order.
    """
    if not isinstance(t, Tensor) or not t.is_floating_point():
        what = f"a tensor {Struct.of(t)}" if isinstance(t, Tensor) else repr(t)
        raise TypeError(f"`t` must be a tensor of real floats, got {what}.")
    if t.ndim != 1 or not len(t):
        raise ValueError(
            "`t` must have one axis with at least one time, the initial one; got shape "
            f"{tuple(t.shape)}."
        )
    if not torch._C._are_functorch_transforms_active():
        _check_order(t.detach())
    to_state = lambda x: x.to(layout.device, layout.dtype)
    return to_state(t[:-1]), to_state(t.diff())


def _check_order(t):
    h = t.diff()
    if bool((h > 0).all() | (h < 0).all()):
        return
    # Comparisons with NaN are false.
    wrong = int((~(h * h[0].sign() > 0)).nonzero()[0])
    raise ValueError(
        "`t` must be strictly increasing or strictly decreasing, but "
        f"t[{wrong}] = {t[wrong].item()} and t[{wrong + 1}] = {t[wrong + 1].item()}."
    )
