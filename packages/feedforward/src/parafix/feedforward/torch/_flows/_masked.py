"""Autoregressive transforms made of a masked network and an elementwise transform.

nflows and normflows have them in the same form: `autoregressive_net(z, context)` gives
the parameters of all entries at once, and `_elementwise_inverse(y, parameters)` the
entries and the logarithm of the determinant.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn, Tensor

from .._adapter import class_of
from ._pass import refuse_noise, solved
from ._stand_in import exchanged, shallow


def with_solves(
    transform: nn.Module, module: str, name: str, solve: Callable[..., Tensor]
) -> Any:
    """`transform` with the inverses of its autoregressive parts solved by `solve`.

    `module` and `name` are those of the library's class of such parts.
    """

    def stand_in(part):
        base: Any = class_of(part, module, name)
        # A subclass may have an inverse of its own, which is no loop then.
        if base is None or type(part).inverse is not base.inverse:
            return None
        return shallow(part, inverse=functools.partial(_inverse, part, solve))

    return exchanged(transform, stand_in)


def _inverse(part, solve, inputs, context=None):
    network = part.autoregressive_net
    refuse_noise(network)

    def of(z, y):
        return part._elementwise_inverse(y, network(z, context))

    count = math.prod(inputs.shape[1:])
    x = solved(lambda z, y: of(z, y)[0], inputs, count, solve, _order(network, count))
    return x, of(x, inputs)[1]


def _order(network, count):
    """The entries in the order of the masks, or `None` if it is the natural one.

    An output reads the units of the last hidden layer below its degree, so it reads
    more of them than every output that it depends on (Germain et al., "MADE", ICML
    2015, equations 13 and 14). Two that read equally many depend not on each other.
    """
    mask = getattr(getattr(network, "final_layer", None), "mask", None)
    if not isinstance(mask, Tensor) or mask.shape[0] % count:
        return None
    read = mask.reshape(count, -1, mask.shape[1])[:, 0].sum(1)
    if bool((read.diff() >= 0).all()):
        return None
    return torch.argsort(read, stable=True)
