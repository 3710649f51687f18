"""Finds the tensors that a function depends on, and exchanges them for others.

PyTorch lets a function use what it likes: weights of modules, tensors of the scopes
around it. Derivatives with respect to them need them as arguments.
"""

import contextlib
import dataclasses
import operator
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    is_functorch_wrapped_tensor,
    maybe_current_level,
    maybe_get_level,
)
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ._calculus import (
    AbstractClosed,
    check_leaves,
    LinearisedOperator,
    under_transforms,
)
from ._over_time import told


# From the `id` of a tensor to what stands in its place.
Exchange = Mapping[int, Tensor]


class _Exchanges(threading.local):
    """Those under way in this thread, the innermost last."""

    def __init__(self):
        self.stack: list[Exchange] = []


_exchanges = _Exchanges()


class _Exchanging(TorchFunctionMode):
    """Exchanges tensors by what they are, or else by the place where they are used.

    The second is for modules whose weights are others now: `torch.func.functional_call`
    has put them back before a derivative is asked for.
    """

    def __init__(self, exchange: Exchange, uses: "_Uses"):
        super().__init__()
        self.exchange = exchange
        self.uses = uses
        self.calls = 0
        self.inside: set[int] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        del types
        expected = self.uses.get((self.calls, func), ())
        self.calls += 1
        exchange = self.exchange
        if expected:
            leaves = list(_leaves((args, kwargs)))
            moved = {
                id(leaves[place]): exchange[id(original)]
                for place, original in expected
                if place < len(leaves) and self._replaces(leaves[place], original)
            }
            exchange = {**exchange, **moved} if moved else exchange
        args = exchanged(args, exchange)
        kwargs = exchanged(kwargs, exchange) if kwargs else {}
        out = func(*args, **kwargs)
        for x in _leaves(out):
            # Operations in place return what they were given.
            if id(x) not in self.exchange:
                self.inside.add(id(x))
        return out

    def _replaces(self, x, original):
        known = id(x) in self.exchange or id(x) in self.inside
        return not known and x.shape == original.shape and x.dtype == original.dtype

    def __enter__(self):
        _exchanges.stack.append(self.exchange)
        return super().__enter__()

    def __exit__(self, *error):
        _exchanges.stack.pop()
        return super().__exit__(*error)


# By the number of a call and its function: places in the arguments, and what was there.
_Uses = dict[tuple[int, Any], list[tuple[int, Tensor]]]


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for x in tree:
            yield from _leaves(x)
    elif isinstance(tree, dict):
        for x in tree.values():
            yield from _leaves(x)


def exchanged(tree: Any, exchange: Exchange) -> Any:
    """`tree` with tensors exchanged, in the containers that PyTorch's own take."""
    if isinstance(tree, Tensor):
        return exchange.get(id(tree), tree)
    if type(tree) in (tuple, list):
        return type(tree)([exchanged(x, exchange) for x in tree])
    if type(tree) is dict:
        return {key: exchanged(x, exchange) for key, x in tree.items()}
    return tree


def _resolved(x: Tensor) -> Tensor:
    """What stands for `x` in the solves around this one."""
    for exchange in reversed(_exchanges.stack):
        x = exchange.get(id(x), x)
    return x


def _matters(x: Tensor, level: int) -> bool:
    """Whether `x` has derivatives, or belongs to a transform of level up to `level`."""
    if is_functorch_wrapped_tensor(x):
        # One of a higher level belongs to a transform that the function itself makes.
        return maybe_get_level(x) <= level
    if not x.requires_grad and forward_ad._current_level >= 0:
        return forward_ad.unpack_dual(x).tangent is not None
    return x.requires_grad


class _Recording(TorchFunctionMode):
    """Notes the tensors that come from outside of what runs under it."""

    def __init__(self, inside: Sequence[Tensor]):
        super().__init__()
        # Tensors from outside live on, so no other will have their `id`.
        self.inside = {id(x) for x in inside}
        self.found: dict[int, Tensor] = {}
        self.uses: _Uses = {}
        self.calls = 0
        self.level = maybe_current_level() or 0

    def note(self, x: Tensor) -> bool:
        """Whether `x` is from outside and has to be a parameter."""
        if id(x) in self.inside:
            return False
        if id(x) not in self.found:
            if not any(_matters(y, self.level) for y in (x, _resolved(x))):
                return False
            self.found[id(x)] = x
        return True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        del types
        kwargs = kwargs or {}
        leaves = enumerate(_leaves((args, kwargs)))
        uses = [(place, x) for place, x in leaves if self.note(x)]
        if uses:
            self.uses[self.calls, func] = uses
        self.calls += 1
        out = func(*args, **kwargs)
        for x in _leaves(out):
            if id(x) not in self.found:
                self.inside.add(id(x))
        return out


@dataclasses.dataclass(frozen=True)
class Autocast:
    """The state of autocast on some devices, to be entered again later."""

    states: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def now(cls, device: torch.device) -> "Autocast":
        return cls(
            tuple(
                (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
                for kind in dict.fromkeys((device.type, "cpu"))
                if torch.amp.is_autocast_available(kind)
            )
        )

    @property
    def enabled(self) -> bool:
        return any(enabled for _, enabled, _ in self.states)

    @property
    def off(self) -> bool:
        """Whether no autocast is under way, nor was in this state."""
        for kind, enabled, _ in self.states:
            if enabled or torch.is_autocast_enabled(kind):
                return False
        return True

    def eps(self, dtypes: Sequence[torch.dtype]) -> float:
        """The relative precision of what works on `dtypes` in this state."""
        reduced = [dtype for _, enabled, dtype in self.states if enabled]
        return max(torch.finfo(dtype).eps for dtype in (*dtypes, *reduced))

    @contextlib.contextmanager
    def entered(self, *, enabled: bool = True) -> Iterator[None]:
        """This state, or with `enabled=False` none."""
        with contextlib.ExitStack() as stack:
            for kind, was, dtype in self.states:
                wanted = was and enabled
                if wanted or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype, enabled=wanted))
            yield


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Runs what `torch.compile` has made as it was, so that its calls are seen."""
    # Whoever compiles has loaded this; it is slow to load.
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()


class Captured(AbstractClosed):
    """A function of a flat state with the tensors it depends on as parameters.

    **Attributes:**

    - `fn`: maps a flat state `(B, n)` and an exchange of tensors to `(B, n)`; it makes
        the exchange in its arguments, and the rest is made for it.
    - `eps`: the relative precision to which `fn` computes.
    - `originals`: the tensors in whose place the parameters are put.
    """

    def __init__(
        self,
        fn: Callable[[Tensor, Exchange], Tensor],
        autocast: Autocast,
        eps: float,
        originals: Sequence[Tensor] = (),
        uses: "_Uses | None" = None,
    ):
        self.fn, self.autocast, self.eps = fn, autocast, eps
        self.originals, self.uses = tuple(originals), uses or {}

    def __call__(self, z: Tensor, params: Sequence[Tensor]) -> Tensor:
        return self.run(self.fn, z, params)

    def run(
        self, fn: Callable[[Tensor, Exchange], Any], z: Tensor, params: Sequence[Tensor]
    ) -> Any:
        """Calls `fn`, which calls PyTorch as `self.fn` does, with the exchange made."""
        if self.unchanged(params):
            # Nothing to enter: calls of a small `fn` are so cheap that it would tell.
            return fn(z, {})
        with self.autocast.entered():
            if self._has(params):
                return fn(z, {})
            pairs = zip(self.originals, params, strict=True)
            exchange = {id(original): new for original, new in pairs}
            exchanging = _Exchanging(exchange, self.uses)
            with _eager(), told(exchanging.inside), exchanging:
                return fn(z, exchange)

    def unchanged(self, params: Sequence[Tensor]) -> bool:
        """Whether a call with these parameters is one of `fn`, and nothing besides."""
        return self._has(params) and self.autocast.off

    def _has(self, params):
        same = len(params) == len(self.originals)
        return same and all(map(operator.is_, params, self.originals))

    def vmapped(self, size, in_dims, randomness):
        return _Vmapped(self, size, in_dims, randomness)


def with_params(
    map_: AbstractClosed, params: Sequence[Tensor]
) -> Callable[[Tensor], Tensor]:
    """`z -> f(z; params)`, for many calls in the same state of autocast."""
    if isinstance(map_, Captured) and map_.unchanged(params):
        fn = map_.fn
        return lambda z: fn(z, {})
    return lambda z: map_(z, params)


class _Vmapped(AbstractClosed):
    """All members of a `vmap` as samples of one batch."""

    def __init__(
        self,
        map: AbstractClosed,
        size: int,
        in_dims: Sequence[int | None],
        randomness: str,
    ):
        self.map, self.size, self.eps = map, size, map.eps
        self.in_dims, self.randomness = tuple(in_dims), randomness

    def __call__(self, z, params):
        apart = z.reshape(self.size, z.shape[0] // self.size, *z.shape[1:])
        out = torch.func.vmap(
            lambda z, *params: self.map(z, params),
            (0, *self.in_dims),
            randomness=self.randomness,
        )(apart, *params)
        return out.reshape(z.shape)

    def vmapped(self, size, in_dims, randomness):
        return _Vmapped(self, size, in_dims, randomness)


@dataclasses.dataclass(frozen=True)
class Capture:
    """What one run of a function has shown.

    **Attributes:**

    - `map`: the function with its parameters explicit.
    - `params`: their values here.
    - `start`: what the function returned and its Jacobian, if that was asked for; where
        neither belongs to a transform.
    """

    map: Captured
    params: tuple[Tensor, ...]
    start: tuple[Tensor, LinearisedOperator | None] | None


def capture(
    fn: Callable[[Tensor, Exchange], Tensor],
    z: Tensor,
    args: Any,
    autocast: Autocast,
    eps: float,
    linearised: bool,
    inside: Sequence[Tensor] = (),
) -> Capture:
    """Runs `fn(z)` once to find the tensors that it depends on, but those in `inside`.

    Seen are all arguments of PyTorch's own functions. Those of scripted modules and of
    a `torch.autograd.Function` are not, unless they are in `args`.

    **Raises:**

    `RuntimeError` if `fn` depends on variables that were not seen.
    """
    plain = not under_transforms()
    z = z.detach()
    if linearised and plain:
        z.requires_grad_()
    recording = _Recording([z, *inside])
    for leaf in pytree.tree_leaves(args):
        if isinstance(leaf, Tensor):
            recording.note(leaf)
    # The recording last: to enter the others also is a call.
    made = told(recording.inside)
    with autocast.entered(), torch.set_grad_enabled(plain), _eager(), made, recording:
        value = fn(z, {})
    originals = tuple(recording.found.values())
    params = tuple(map(_resolved, originals))
    start = None
    if plain:
        for out in _leaves(value):
            check_leaves(out, [z, *inside, *originals, *params])
        operator = None
        if linearised:
            operator = LinearisedOperator.of(value, z, False, eps)
        if isinstance(value, Tensor):
            start = value.detach(), operator
    map_ = Captured(fn, autocast, eps, originals, recording.uses)
    return Capture(map_, params, start)
