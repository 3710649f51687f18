import functools
from typing import Any

import torch
from torch import nn, Tensor
from torch.distributions.transforms import _InverseTransform, Transform

from .._adapter import AbstractFlowAdapter, is_a
from ._pass import refuse_noise, solved
from ._stand_in import shallow


class ZukoAdapter(AbstractFlowAdapter):
    """Transforms and flows of zuko: lazy, or built for a context."""

    def knows(self, transform):
        if isinstance(transform, Transform):
            # Compositions and inverses may be those of PyTorch.
            return any(_is_of_zuko(part) for part in _parts(transform))
        return any(is_a(transform, *kind) for kind in (_LAZY, _LAZY_FLOW, _FLOW))

    def inverse(self, transform, y, context, solve):
        if is_a(transform, *_LAZY_FLOW):
            transform = transform.transform
        if is_a(transform, *_LAZY):
            transform = transform(context)
        elif context is not None:
            raise TypeError(
                f"This {type(transform).__name__} is built for a context already: pass "
                "none, or the lazy transform that it came from."
            )
        if is_a(transform, *_FLOW):
            transform = transform.transform
        return _exchanged(transform, solve).inv.call_and_ladj(y)


_LAZY = "zuko.lazy", "LazyTransform"
_LAZY_FLOW = "zuko.lazy", "Flow"
_FLOW = "zuko.distributions", "NormalizingFlow"
_AUTOREGRESSIVE = "zuko.transforms", "AutoregressiveTransform"


def _is_of_zuko(transform):
    return any(
        cls.__module__.split(".")[0] == "zuko" for cls in type(transform).__mro__
    )


def _fields(transform):
    """The transforms that one is made of: `{attribute: a list of them}`."""
    found = {}
    for name, value in vars(transform).items():
        # Of any other transform it is the inverse that was asked for last.
        if name == "_inv" and not isinstance(transform, _InverseTransform):
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        if values and all(isinstance(part, Transform) for part in values):
            found[name] = values
    return found


def _parts(transform):
    yield transform
    for values in _fields(transform).values():
        for part in values:
            yield from _parts(part)


def _exchanged(transform: Any, solve: Any) -> Any:
    """`transform` with the inverses of its autoregressive parts solved by `solve`."""
    if is_a(transform, *_AUTOREGRESSIVE):
        inverse = functools.partial(_inverse, transform, solve)
        return shallow(transform, _inverse=inverse, _inv=None)
    new = {}
    for name, values in _fields(transform).items():
        parts = [_exchanged(part, solve) for part in values]
        if any(a is not b for a, b in zip(parts, values, strict=True)):
            alone = isinstance(getattr(transform, name), Transform)
            new[name] = parts[0] if alone else type(values)(parts)
    if not new:
        return transform
    if not isinstance(transform, _InverseTransform):
        new["_inv"] = None
    return shallow(transform, **new)


def _inverse(transform, solve, y):
    # `meta` of a lazy transform is its method, with the context.
    lazy = getattr(getattr(transform.meta, "func", None), "__self__", None)
    if isinstance(lazy, nn.Module):
        refuse_noise(lazy)

    # A context may have more batch axes than `y`; the first pass has all of them.
    one_pass = lambda z, y: transform.meta(z).inv(y)
    known, order = _order(lazy, y.shape[-1])
    return solved(one_pass, y, y.shape[-1], solve, order, check=not known)


def _order(lazy, count):
    """Whether an order of the entries is known, and it; `None` for the natural one."""
    level = getattr(lazy, "order", None)
    if level is None:
        masks = [part for part in getattr(lazy, "hyper", ()) if _has_mask(part)]
        if not masks:
            return False, None
        level = _depth(_dependences(masks, count))
    if bool((level.diff() >= 0).all()):
        return True, None
    return True, torch.argsort(level, stable=True)


def _has_mask(part):
    return any(isinstance(getattr(m, "mask", None), Tensor) for m in part.modules())


def _dependences(layers, count):
    """Which entry depends on which, `(N, N)`: where a path leads through all masks."""
    paths = None
    for layer in layers:
        masks = [m.mask.double() for m in layer.modules() if hasattr(m, "mask")]
        if paths is None:
            paths = torch.eye(masks[0].shape[1], dtype=torch.float64)
            paths = paths.to(masks[0].device)
        through = functools.reduce(lambda path, mask: mask @ path, masks, paths)
        # A residual block also passes on what it is given.
        paths = through if hasattr(layer, "mask") else through + paths
        paths = (paths > 0).double()
    assert paths is not None
    # Several parameters belong to an entry, and contexts come last.
    return paths.reshape(count, -1, paths.shape[1]).amax(1)[:, :count] > 0


def _depth(dependences):
    """The longest path of dependences that ends in each entry."""
    depth = torch.zeros(len(dependences), device=dependences.device)
    for _ in range(len(dependences)):
        new = torch.where(dependences, depth + 1, 0).amax(1)
        if torch.equal(new, depth):
            break
        depth = new
    return depth


ADAPTER = ZukoAdapter()
