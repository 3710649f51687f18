from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor


def loop_affine_scan(
    a: Any, b: Any, init: Any = None, *, reverse: bool = False
) -> np.ndarray:
    """`x_t = a_t x_{t-1} + b_t` in NumPy, one step after the other."""
    a, b = np.asarray(a), np.asarray(b)
    dense = a.ndim == b.ndim + 1
    a = np.broadcast_to(a, (*b.shape, b.shape[-1]) if dense else b.shape)
    dtype = np.result_type(a, b, *(() if init is None else (np.asarray(init),)))
    out = np.zeros(b.shape, dtype)
    x = None if init is None else np.asarray(init)
    for t in range(len(b))[:: -1 if reverse else 1]:
        if x is None:
            x = b[t]
        else:
            product = (a[t] @ x[..., None])[..., 0] if dense else a[t] * x
            x = product + b[t]
        out[t] = x
    return out


def dense_affine_scan(
    a: Tensor, b: Tensor, init: Tensor | None = None, *, reverse: bool = False
) -> Tensor:
    """The same as one linear system `L x = b`, by its Neumann series, which ends.

    `L` is one minus a nilpotent matrix. Only sums and products, which PyTorch
    differentiates to any order. (The derivatives of `torch.linalg.solve` of second
    order are wrong wherever forward mode comes first: PyTorch 2.13, by differences.)
    """
    length, *batch, size = b.shape
    if b.numel() == 0:
        return b.clone()
    if a.ndim == b.ndim:
        a = torch.diag_embed(a)
    a = a.expand(*b.shape, size)
    init = b.new_zeros(b.shape[1:]) if init is None else init
    if reverse:
        a, b = a.flip(0), b.flip(0)
    b = torch.cat(
        [(b[0] + (a[0] @ init.unsqueeze(-1)).squeeze(-1)).unsqueeze(0), b[1:]]
    )
    # Blocks [s, t] of `1 - L`, batch first: `a_s` below the diagonal.
    a = a.movedim(0, -3)
    zero = torch.zeros_like(a[..., 0, :, :])
    rows = [
        torch.cat([a[..., s, :, :] if t == s - 1 else zero for t in range(length)], -1)
        for s in range(length)
    ]
    matrix = torch.cat(rows, -2)
    b = b.movedim(0, -2).reshape(*batch, length * size, 1)
    x = b
    for _ in range(length - 1):
        x = b + matrix @ x
    x = x.reshape(*batch, length, size).movedim(-2, 0)
    return x.flip(0) if reverse else x


def directional_derivative(
    function: Callable[[Any], Any], point: Any, direction: Any, step: float = 1e-2
) -> Any:
    """The derivative of `function` at `point` along `direction`, by differences.

    Six evaluations, error `O(step^6)`: about ten digits in float64.
    """

    def at(shift):
        return function(pytree.tree_map(lambda x, v: x + shift * v, point, direction))

    def combine(*values):
        weights = (-1, 9, -45, 45, -9, 1)
        return sum(w * v for w, v in zip(weights, values, strict=True)) / (60 * step)

    values = [at(step * shift) for shift in (-3, -2, -1, 1, 2, 3)]
    return pytree.tree_map(combine, *values)


def reference_scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any = None,
    length: int | None = None,
    *,
    reverse: bool = False,
) -> tuple[Any, Any, Any]:
    """The last carry, the outputs and all carries of a plain loop over time.

    Both of the latter in the order of the inputs. At least one step.
    """
    if length is None:
        length = len(pytree.tree_leaves(xs)[0])
    carry, ys, carries = init, [None] * length, [None] * length
    for t in range(length)[:: -1 if reverse else 1]:
        x = pytree.tree_map(lambda x, t=t: None if x is None else x[t], xs)
        carry, ys[t] = f(carry, x)
        carries[t] = carry

    def stacked(*steps):
        if steps[0] is None:
            return None
        return torch.stack([torch.as_tensor(x) for x in steps])

    return carry, pytree.tree_map(stacked, *ys), pytree.tree_map(stacked, *carries)
