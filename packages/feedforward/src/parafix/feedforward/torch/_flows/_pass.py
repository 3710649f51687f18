"""One pass of a library's loop, as a causal problem."""

from collections.abc import Callable

import torch
from torch import nn, Tensor


def solved(
    one_pass: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    count: int,
    solve: Callable[..., Tensor],
    order: Tensor | None = None,
    *,
    check: bool = False,
) -> Tensor:
    """`x` with `x = one_pass(x, y)`, where the library starts from zeros like `y`.

    The last axes of `x`, `count` entries together, are those that a pass goes through.
    """
    with torch.no_grad():
        first = one_pass(torch.zeros_like(y), y)
    # The bits of a matrix product, or of a sum, are those of a layout in memory: what
    # the loop hands from pass to pass is laid out as its first result is.
    axes = sorted(range(first.ndim), key=lambda axis: -first.stride(axis))
    back = sorted(range(first.ndim), key=axes.__getitem__)
    plain = axes == sorted(axes)

    def laid_out(z):
        z = z.reshape(first.shape)
        return z if plain else z.permute(axes).contiguous().permute(back)

    def f(z):
        # An operation on `y` itself: inverses by bisection hand it to an
        # `autograd.Function`, whose arguments a solve would not find.
        return one_pass(laid_out(z), y.view_as(y)).reshape(z.shape)

    # Called besides: for the first pass, and for the determinant.
    z0 = first.reshape(-1, count)
    return laid_out(solve(f, z0, order=order, check=check, further=2))


def refuse_noise(network: nn.Module) -> None:
    """Raises `ValueError` for what is no function of one sample while training."""
    for part in network.modules():
        drops = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
        mixes = isinstance(part, nn.modules.batchnorm._BatchNorm)
        if part.training and (drops or mixes):
            does = "draws random numbers" if drops else "mixes the samples of a batch"
            raise ValueError(
                f"The network of the flow holds a {type(part).__name__} in training "
                f"mode, which {does}: there is no inverse to find. Call `.eval()` on "
                "the flow first."
            )
