"""The algebra of affine maps `x -> a x + b`, for diagonal and dense `a`."""

import torch
from torch import Tensor

from .._custom_types import Inexact


def is_dense(a: Inexact, b: Inexact) -> bool:
    return a.ndim == b.ndim + 1


def combine(a: Inexact, x: Inexact, b: Inexact, out: Tensor | None = None) -> Inexact:
    """`a x + b`, in one pass over the memory if `a` is diagonal."""
    if a.ndim == x.ndim:
        return torch.addcmul(b, a, x, out=out)
    return torch.add(apply(a, x), b, out=out)


def apply(a: Inexact, x: Inexact) -> Inexact:
    """`a x`, with `a` diagonal (as many axes as `x`) or dense (one more).

    Axes of size 1 in `a` broadcast and are not materialised.
    """
    if a.ndim == x.ndim:
        return a * x
    shared = _shared_axes(a, x)
    if not shared:
        # Measured on a CPU: matrix products of a batch win between these sizes.
        if 1 < a.shape[-1] <= 16 and products_are_exact(a):
            return torch.matmul(a, x.unsqueeze(-1)).squeeze(-1)
        return (a * x.unsqueeze(-2)).sum(-1)
    if not products_are_exact(a):
        return _by_columns(a, x)
    # One product for each matrix, with all the vectors that share it as its rows.
    kept = [axis for axis in range(x.ndim - 1) if axis not in shared]
    order = [*kept, *shared, x.ndim - 1]
    moved = x.permute(order)
    matrices = a.reshape(*(a.shape[axis] for axis in kept), *a.shape[-2:])
    rows = moved.reshape(*moved.shape[: len(kept)], -1, x.shape[-1])
    product = torch.matmul(rows, matrices.mT).reshape(moved.shape)
    return product.permute([order.index(axis) for axis in range(x.ndim)])


def compose(second: Inexact, first: Inexact, dense: bool) -> Inexact:
    """The linear part of the affine map `second` after `first`, in full precision.

    Diagonals, or with `dense` matrices on the last two axes; other axes broadcast.
    """
    if not dense or second.shape[-1] == 1:
        return second * first
    if products_are_exact(second):
        return torch.matmul(second, first)
    out = second[..., :, :1] * first[..., :1, :]
    for k in range(1, second.shape[-1]):
        out = torch.addcmul(out, second[..., :, k : k + 1], first[..., k : k + 1, :])
    return out


def outer(y: Inexact, x: Inexact, shape: torch.Size) -> Inexact:
    """`y x^H` summed over the axes in which `shape` has size 1: the cotangent of `a`.

    `shape` is that of a diagonal or of a dense `a`, and `y` and `x` are states.
    """
    if len(shape) == y.ndim:
        return (y * x.conj()).sum_to_size(shape)
    shared = [i for i in range(y.ndim - 1) if shape[i] == 1 and y.shape[i] != 1]
    if not shared:
        return y.unsqueeze(-1) * x.conj().unsqueeze(-2)
    kept = [axis for axis in range(y.ndim - 1) if axis not in shared]
    order = [*kept, *shared, y.ndim - 1]
    y, x = (
        z.permute(order).reshape(*(z.shape[axis] for axis in kept), -1, z.shape[-1])
        for z in (y, x)
    )
    if products_are_exact(y):
        return torch.matmul(y.mT, x.conj()).reshape(shape)
    columns = [(y * x[..., k : k + 1].conj()).sum(-2) for k in range(x.shape[-1])]
    return torch.stack(columns, -1).reshape(shape)


def products_are_exact(x: Tensor) -> bool:
    """Whether matrix products like this are rounded to its dtype and no further.

    Whoever allows TF32 or bfloat16 inside products means layers of a network. A
    recurrence multiplies up what is lost, so ours then takes sums of products.
    """
    if x.dtype not in (torch.float32, torch.complex64):
        return True
    if x.device.type == "cuda":
        precision = torch.backends.cuda.matmul.fp32_precision
    else:
        precision = torch.backends.mkldnn.matmul.fp32_precision  # pyright: ignore
    return precision in ("none", "ieee")


def _shared_axes(a, x):
    return [i for i in range(x.ndim - 1) if a.shape[i] == 1 and x.shape[i] != 1]


def _by_columns(a, x):
    out = a[..., :, 0] * x[..., :1]
    for k in range(1, a.shape[-1]):
        out = torch.addcmul(out, a[..., :, k], x[..., k : k + 1])
    return out
