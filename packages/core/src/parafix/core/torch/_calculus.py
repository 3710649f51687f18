"""Derivatives of a function whose parameters are explicit, under all transforms.

Outside of `torch.func` everything goes by `torch.autograd.grad`, which is faster and
knows more operations; under it, by `torch.func.vjp`. Products with a Jacobian are pulls
through a pull, so that no operation needs a rule for forward mode.
"""

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

from ._inference import check_recording


class AbstractClosed(abc.ABC):
    """`z = f(z; params)` for a batch of samples, with every parameter explicit.

    **Attributes:**

    - `eps`: the relative precision to which `f` computes.
    """

    eps: float

    @abc.abstractmethod
    def __call__(self, z: Tensor, params: Sequence[Tensor]) -> Tensor:
        """`(B, n)` to `(B, n)`, sample by sample."""

    @abc.abstractmethod
    def vmapped(
        self, size: int, in_dims: Sequence[int | None], randomness: str
    ) -> "AbstractClosed":
        """The same for `size * B` samples, where `params` have batch axes `in_dims`."""


def under_transforms() -> bool:
    """Whether some transform of `torch.func` is under way."""
    return torch._C._are_functorch_transforms_active()


def is_recorded() -> bool:
    """Whether somebody may take derivatives of what is computed now."""
    recorded = torch.is_grad_enabled() or forward_ad._current_level >= 0
    return recorded or under_transforms()


def is_inexact(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def alias(x: Tensor, differentiable: bool) -> Tensor:
    """`x` as a variable of its own, so that no gradient passes by another way."""
    if differentiable and x.requires_grad:
        return x.view_as(x)
    return x.detach().requires_grad_()


def _among(primals, wanted):
    """The places of what has derivatives and is wanted, and how to put others there."""
    pairs = enumerate(zip(primals, wanted, strict=True))
    places = [i for i, (x, asked) in pairs if asked and is_inexact(x)]

    def completed(some):
        full = list(primals)
        for place, x in zip(places, some, strict=True):
            full[place] = x
        return full

    return places, completed


def _is_constant(out: Tensor) -> bool:
    """Whether `out` depends on no variable."""
    if out.requires_grad:
        return False
    check_recording()
    return True


def grads(
    out: Tensor, inputs: Sequence[Tensor], cotangent: Tensor, create_graph: bool
) -> list[Tensor]:
    """`torch.autograd.grad` with zeros where there is no dependence."""
    if _is_constant(out) or not inputs:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(
        out,
        inputs,
        cotangent,
        create_graph=create_graph,
        retain_graph=True,
        allow_unused=True,
    )
    return [
        torch.zeros_like(x) if g is None else g
        for g, x in zip(found, inputs, strict=True)
    ]


def vjp(
    fn: Callable[..., Tensor], primals: Sequence[Tensor], cotangent: Tensor
) -> list[Tensor | None]:
    """The pull of `cotangent` through `fn`, which can itself be differentiated.

    `None` for primals that are integers.
    """
    places, completed = _among(primals, [True] * len(primals))
    some = [primals[i] for i in places]
    if not some:
        return [None] * len(primals)
    if under_transforms():
        pull = torch.func.vjp(lambda *some: fn(*completed(some)), *some)[1]
        found = pull(cotangent)
    else:
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = [alias(x, differentiable) for x in some]
            out = fn(*completed(inputs))
        found = grads(out, inputs, cotangent, differentiable)
    result: list[Tensor | None] = [None] * len(primals)
    for place, g in zip(places, found, strict=True):
        result[place] = g
    return result


def jvp(
    fn: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
) -> Tensor:
    """The push of `tangents` through `fn`, which can itself be differentiated.

    By pulling through the pull, which is linear. `None` is the tangent zero.
    """
    places, completed = _among(primals, [t is not None for t in tangents])
    chosen: list[Any] = [tangents[i] for i in places]
    of_some = lambda *some: fn(*completed(some))
    some = [primals[i] for i in places]
    if not some:
        return torch.zeros_like(fn(*primals))
    if under_transforms():
        out, pull, *_ = torch.func.vjp(of_some, *some)
        push = torch.func.vjp(lambda w: tuple(pull(w)), torch.zeros_like(out))[1]
        return push(tuple(chosen))[0]
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [alias(x, differentiable) for x in some]
        return _double_pull(of_some(*inputs), inputs, chosen, differentiable)


def _double_pull(out, inputs, tangents, differentiable):
    if _is_constant(out):
        return torch.zeros_like(out)
    weights = torch.zeros_like(out, requires_grad=True)
    pulled = grads(out, inputs, weights, True)
    pairs = [(g, t) for g, t in zip(pulled, tangents, strict=True) if g.requires_grad]
    if not pairs:
        return torch.zeros_like(out).detach()
    (tangent,) = torch.autograd.grad(
        [g for g, _ in pairs],
        [weights],
        [t for _, t in pairs],
        create_graph=differentiable,
        retain_graph=True,
        allow_unused=True,
    )
    return torch.zeros_like(out).detach() if tangent is None else tangent


def pull_back(
    map: AbstractClosed, z: Tensor, params: Sequence[Tensor], v: Tensor
) -> Tensor:
    """`J^T v` with `J` the Jacobian in `z`."""
    (pulled,) = vjp(lambda z: map(z, params), (z,), v)
    assert pulled is not None
    return pulled


def product(
    map: AbstractClosed,
    z: Tensor,
    params: Sequence[Tensor],
    v: Tensor,
    transposed: bool,
) -> Tensor:
    """`J v`, or `J^T v`, with `J` the Jacobian in `z`."""
    if transposed:
        return pull_back(map, z, params, v)
    return jvp(lambda z: map(z, params), (z,), (v,))


@contextlib.contextmanager
def forward_mode(ctx: Any) -> Iterator[Sequence[Tensor]]:
    """For the rule of a `Function`: what it saved, so that forward mode can be nested.

    PyTorch switches forward mode off in a rule, for outer levels too, and hands it dual
    numbers: a second derivative would lose its terms in silence (pytorch#197867).
    """
    with forward_ad._set_fwd_grad_enabled(True):
        level = forward_ad._current_level
        saved = ctx.saved_tensors
        if level >= 0:
            saved = [forward_ad.unpack_dual(x, level=0).primal for x in saved]
        yield saved


class AbstractOperator(abc.ABC):
    """The Jacobian of a batch of samples at some point, or its transpose.

    Called with a tensor `(B, n)`, it multiplies every sample's vector by the matrix of
    that sample.

    **Attributes:**

    - `eps`: the relative precision of the products.
    """

    eps: float

    @abc.abstractmethod
    def __call__(self, v: Tensor) -> Tensor:
        """The product, `(B, n)`."""

    @abc.abstractmethod
    def matrix(self) -> Tensor:
        """The matrices, `(B, n, n)`, by `n` products."""


class LinearisedOperator(AbstractOperator):
    """Products by a graph that was made once. They cannot be differentiated.

    **Attributes:**

    - `value`: `f(z)`, from the evaluation that made the graph.
    """

    def __init__(
        self,
        map: AbstractClosed,
        z: Tensor,
        params: Sequence[Tensor],
        transposed: bool = False,
    ):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            self._set(map(z, params), z, transposed, map.eps)

    def _set(self, out, z, transposed, eps):
        self.value = out.detach()
        self.transposed, self.eps = transposed, eps
        self._out, self._z = out, z
        self._weights = self._pulled = None

    @classmethod
    def of(
        cls, out: Tensor, z: Tensor, transposed: bool, eps: float
    ) -> "LinearisedOperator":
        """From an evaluation that has been made."""
        self = object.__new__(cls)
        self._set(out, z, transposed, eps)
        return self

    def check(self, params: Sequence[Tensor]) -> None:
        """Raises `RuntimeError` if the graph leads to other variables than `params`."""
        check_leaves(self._out, [self._z, *params])

    def _pull(self, v):
        return grads(self._out, [self._z], v, False)[0]

    def __call__(self, v):
        if self.transposed:
            return self._pull(v)
        if _is_constant(self._out):
            return torch.zeros_like(v)
        with torch.enable_grad():
            if self._weights is None:
                self._weights = torch.zeros_like(self._out, requires_grad=True)
                self._pulled = grads(self._out, [self._z], self._weights, True)[0]
        assert self._pulled is not None
        return grads(self._pulled, [self._weights], v, False)[0]

    def matrix(self):
        size = self._z.shape[1]
        matrix_rows = []
        for i in range(size):
            unit = torch.zeros_like(self._z.detach())
            unit[:, i] = 1
            matrix_rows.append(self._pull(unit))
        # Row `i` of `J` is column `i` of its transpose.
        return torch.stack(matrix_rows, 2 if self.transposed else 1)


class TracedOperator(AbstractOperator):
    """Products that can be differentiated, with respect to all that they depend on."""

    def __init__(
        self, map: AbstractClosed, z: Tensor, params: Sequence[Tensor], transposed: bool
    ):
        self.map, self.z, self.params = map, z, tuple(params)
        self.transposed, self.eps = transposed, map.eps

    def __call__(self, v):
        return product(self.map, self.z, self.params, v, self.transposed)

    def matrix(self):
        eye = torch.eye(self.z.shape[1], dtype=self.z.dtype, device=self.z.device)
        columns = [self(unit.expand_as(self.z)) for unit in eye]
        return torch.stack(columns, 2)


def saved(ctx: Any) -> Sequence[Tensor]:
    """What a `Function` saved; a pull may come after its transform has ended."""
    return unwrap_dead_wrappers(tuple(ctx.saved_tensors))


def check_leaves(out: Tensor, known: Sequence[Tensor]) -> None:
    """Raises `RuntimeError` if `out` depends on a variable that is not in `known`."""
    nodes = {x.grad_fn for x in known}
    stack, seen = [out.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen or node in nodes:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and not any(variable is x for x in known):
            raise RuntimeError(_LOST.format(shape=list(variable.shape)))
        stack += [parent for parent, _ in node.next_functions]


_LOST = (
    "`fn` depends on a tensor of shape {shape} that requires gradients and was not "
    "seen when it was called. Arguments of scripted modules and of a "
    "`torch.autograd.Function` are not, nor is what differs from call to call. Hand it "
    "over by `args=`, or as an input of a chain, and use it from there."
)
