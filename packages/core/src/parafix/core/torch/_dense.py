import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._adjoint import AbstractAdjoint, DenseProblem
from ._capture import Autocast, Exchange
from ._check import checked_count, default_tolerance
from ._inference import out_of_inference
from ._iteration import AbstractIteration, may_overwrite
from ._named import named
from ._result import RESULTS
from ._solution import Solution
from ._solver import as_dense


_Y = TypeVar("_Y", bound=Tensor | tuple[Tensor, ...])


def fixed_point(
    fn: Callable[..., _Y],
    y0: _Y,
    args: Any = None,
    *,
    solver: str | AbstractIteration = "anderson",
    adjoint: str | AbstractAdjoint = "implicit",
    rtol: Any = None,
    atol: Any = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> Solution[_Y]:
    """Find `y` with `fn(y, args) = y`, for every sample of a batch.

    The samples are on axis 0, and `fn` must not mix them. Every sample stops by itself,
    and the others change no bit of it.

    !!! example

        ```python
        import torch
        from parafix.core.torch import fixed_point

        fixed_point(torch.cos, torch.ones(1)).value  # tensor([0.7391])
        ```

    **Arguments:**

    - `fn`: maps `(y, args)`, or `y` alone if `args` is `None`, to something of the
        structure, shapes and dtypes of `y`. It must be deterministic: it is evaluated
        again for derivatives. Those with respect to weights of modules and other
        tensors that it uses come by themselves; see below.
    - `y0`: the guess: a tensor `(B, ...)` or a tuple of them, real and floating. Its
        gradient is zero, unless `adjoint="unrolled"`.
    - `args`: passed on to `fn`; anything.
    - `solver`: a registered name, which is built from `rtol` and `atol`, or an
        [`parafix.core.torch.AbstractIteration`][].
    - `adjoint`: how to differentiate: a registered name or an adjoint.
    - `rtol`, `atol`: `y` is a solution if `max |fn(y) - y| / (atol + rtol |y|)` is at
        most one; `eps^(3/4)` of the dtype of each leaf by default.
    - `max_steps`: at most this many steps, each of which measures an iterate and then
        moves, so that the last move is in vain; 256 by default.
    - `throw`: whether a failure of any sample raises.

    **Returns:**

    A [`parafix.core.torch.Solution`][]; its `value` has the structure of `y0`, its
    `result` is a code for each sample. Where a sample failed, its value is the iterate
    of lowest residual.

    **Raises:**

    `TypeError` if `y0` or `fn` is not as above, `ValueError` for bad numbers, and with
    `throw=True` `RuntimeError` with the sentence of the first sample that failed.

    !!! note "What is captured"

        `fn` is run once to see which tensors with derivatives it hands to PyTorch's
        functions; where nothing is transformed, the solve goes on from this run.
        Arguments of scripted modules and of a `torch.autograd.Function` are not seen:
        a `RuntimeError` says so, and they must come by `args`. Under `torch.func` and
        in forward mode nobody notices.
    """
    return _eagerly(fn, y0, args, False, solver, adjoint, rtol, atol, max_steps, throw)


def root_find(
    fn: Callable[..., _Y],
    y0: _Y,
    args: Any = None,
    *,
    solver: str | AbstractIteration = "newton",
    adjoint: str | AbstractAdjoint = "implicit",
    rtol: Any = None,
    atol: Any = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> Solution[_Y]:
    """Find `y` with `fn(y, args) = 0`, for every sample of a batch.

    The same as [`parafix.core.torch.fixed_point`][] of `y - fn(y, args)`, and so is
    everything about it: in particular, `y` is a solution if
    `max |fn(y)| / (atol + rtol |y|)` is at most one.

    !!! example

        ```python
        import torch
        from parafix.core.torch import root_find

        root_find(lambda y, a: y**2 - a, torch.ones(1), 2.0).value  # tensor([1.4142])
        ```

    **Arguments:**

    - `fn`: maps `(y, args)`, or `y` alone if `args` is `None`, to something of the
        structure, shapes and dtypes of `y`.
    - All others: as in [`parafix.core.torch.fixed_point`][].

    **Returns:**

    A [`parafix.core.torch.Solution`][].
    """
    return _eagerly(fn, y0, args, True, solver, adjoint, rtol, atol, max_steps, throw)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the leaves of a state lie in a flat one, which has at least single precision.

    **Attributes:**

    - `single`: whether the state is one tensor, and no tuple.
    - `shapes`: of the leaves, without the axis of samples.
    """

    single: bool
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        dtype = torch.float32
        for other in self.dtypes:
            dtype = torch.promote_types(dtype, other)
        return dtype

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @functools.cached_property
    def flat(self) -> bool:
        """Whether the state is a flat one already."""
        (first, *_), (dtype, *_) = self.shapes, self.dtypes
        return self.single and len(first) == 1 and dtype == self.dtype

    def tolerance(self, device: torch.device) -> float | Tensor:
        """`eps^(3/4)`, one number, or one for each entry if dtypes differ."""
        each = [default_tolerance(dtype) for dtype in self.dtypes]
        if len(set(each)) <= 1:
            return each[0] if each else 0.0
        parts = zip(each, self.sizes, strict=True)
        numbers = [number for number, size in parts for _ in range(size)]
        return torch.tensor(numbers, dtype=self.dtype, device=device)

    def flatten(self, y: Any) -> Tensor:
        """`(B, n)`, from leaves `(B, ...)`."""
        if self.flat and y.dtype is self.dtype and may_overwrite():
            # Nobody watches what becomes of `y`.
            return y
        leaves = [
            leaf.reshape(leaf.shape[0], size).to(self.dtype)
            for leaf, size in zip(self.leaves(y), self.sizes, strict=True)
        ]
        return leaves[0] if len(leaves) == 1 else torch.cat(leaves, 1)

    def unflatten(self, z: Tensor) -> Any:
        """The leaves, each contiguous."""
        if self.flat:
            return z.contiguous()
        parts = (z,) if len(self.sizes) == 1 else z.split(self.sizes, 1)
        leaves = [
            part.reshape(z.shape[0], *shape).to(dtype).contiguous()
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]
        return leaves[0] if self.single else tuple(leaves)

    def leaves(self, y: Any) -> tuple[Tensor, ...]:
        return (y,) if self.single else tuple(y)

    def rounded(self, z: Tensor) -> Tensor:
        """`z` as its leaves can hold it."""
        if self.flat or all(dtype == self.dtype for dtype in self.dtypes):
            return z
        return self.flatten(self.unflatten(z))

    def described(self, samples: int) -> str:
        """The leaves that a state of so many samples has."""
        parts = zip(self.shapes, self.dtypes, strict=True)
        leaves = [_described(dtype, (samples, *shape)) for shape, dtype in parts]
        return leaves[0] if self.single else f"({', '.join(leaves)})"


def _described(dtype, shape):
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def _layout(y0):
    single = isinstance(y0, Tensor)
    if not single and not (
        isinstance(y0, tuple) and y0 and all(isinstance(x, Tensor) for x in y0)
    ):
        raise TypeError(f"`y0` must be a tensor or a tuple of tensors, got {y0!r}.")
    leaves = (y0,) if single else y0
    for i, leaf in enumerate(leaves):
        name = "y0" if single else f"y0[{i}]"
        if not leaf.is_floating_point():
            hint = ""
            if leaf.is_complex():
                hint = " Split it into its real and its imaginary part."
            dtype = str(leaf.dtype).removeprefix("torch.")
            raise TypeError(f"`{name}` must be real floats, got {dtype}.{hint}")
        if leaf.ndim == 0:
            raise TypeError(
                f"`{name}` must have the samples on axis 0, got a tensor without axes. "
                "Add one by `y0[None]`."
            )
        if leaf.shape[0] != leaves[0].shape[0] or leaf.device != leaves[0].device:
            raise TypeError(
                "All leaves of `y0` must have as many samples on axis 0 and be on one "
                f"device: `y0[0]` has {leaves[0].shape[0]} on {leaves[0].device}, "
                f"`{name}` has {leaf.shape[0]} on {leaf.device}."
            )
    shapes = tuple(tuple(leaf.shape[1:]) for leaf in leaves)
    return Layout(single, shapes, tuple(leaf.dtype for leaf in leaves))


def _checked_output(layout, samples, out, autocast):
    if layout.flat and isinstance(out, Tensor):
        # The usual case, at little cost.
        shape = (samples, *layout.sizes)
        if out.dtype is layout.dtype and out.shape == shape:
            return out
    if layout.single:
        ok = isinstance(out, Tensor)
    else:
        ok = isinstance(out, tuple) and len(out) == len(layout.shapes)
        ok = ok and all(isinstance(x, Tensor) for x in out)
    if ok:
        for x, shape, dtype in zip(
            layout.leaves(out), layout.shapes, layout.dtypes, strict=True
        ):
            # Under autocast, operations choose their dtypes by themselves.
            ok &= x.shape == (samples, *shape)
            ok &= x.dtype == dtype or (autocast and x.is_floating_point())
    if not ok:
        got = pytree.tree_map_only(Tensor, lambda x: _Shown(x.dtype, x.shape), out)
        raise TypeError(
            "`fn` must return what it takes, with the same structure, shapes and "
            f"dtypes: `y0` is {layout.described(samples)}, and `fn` returned {got}."
        )
    return out


@dataclasses.dataclass(frozen=True)
class _Shown:
    dtype: torch.dtype
    shape: torch.Size

    def __repr__(self) -> str:
        return _described(self.dtype, self.shape)


def _eagerly(*arguments: Any) -> Solution:
    # A solve stops by what it finds, which `torch.compile` cannot follow.
    if torch.compiler.is_compiling():
        solve: Any = torch.compiler.disable(_solve)
        return solve(*arguments)
    return _solve(*arguments)


def _solve(fn, y0, args, root, solver, adjoint, rtol, atol, max_steps, throw):
    layout = _layout(y0)
    max_steps = checked_count("max_steps", max_steps)
    max_steps = 256 if max_steps is None else max_steps
    z0 = layout.flatten(y0)
    solver = as_dense(solver, rtol, atol, layout.tolerance(z0.device))
    if isinstance(adjoint, str):
        adjoint = named("adjoint", adjoint)()
    if not isinstance(adjoint, AbstractAdjoint):
        raise TypeError(
            "`adjoint` must be a registered name or an object such as "
            f"`ImplicitAdjoint()`, got {adjoint!r}."
        )
    if z0.numel() == 0:
        return _empty(y0, z0)
    autocast = Autocast.now(z0.device)

    def f(z: Tensor, exchange: Exchange) -> Tensor:
        # What `fn` does to its argument must not reach the iterate.
        y = layout.unflatten(z.clone())
        given = args
        if exchange:
            exchange_leaf = lambda x: exchange.get(id(x), x)
            given = pytree.tree_map_only(Tensor, exchange_leaf, args)
        out = fn(y) if args is None else fn(y, given)
        out = _checked_output(layout, z.shape[0], out, autocast.enabled)
        out = layout.flatten(out)
        return z - out if root else out

    eps = autocast.eps(layout.dtypes)
    derivatives = out_of_inference() if solver.linearises else contextlib.nullcontext()
    with derivatives as copies, autocast.entered(enabled=False):
        function = f if copies is None else copies.inside(f)
        problem = DenseProblem(
            function, args, autocast, eps, solver, layout.rounded, max_steps, throw
        )
        # A copy: what `fn` does to its argument is no business of the caller.
        outcome = adjoint.apply(problem, z0.clone())
    stats = {
        "num_steps": outcome.num_steps,
        "num_evals": outcome.num_evals,
        "num_linear": outcome.num_linear,
        "residual": outcome.residual,
    }
    return Solution(layout.unflatten(outcome.z), outcome.result, stats)


def _empty(y0, z0):
    none = torch.zeros(z0.shape[0], dtype=torch.int64, device=z0.device)
    stats = {
        "num_steps": none,
        "num_evals": none,
        "num_linear": none,
        "residual": torch.zeros(z0.shape[0], dtype=z0.dtype, device=z0.device),
    }
    return Solution(y0, torch.full_like(none, RESULTS.successful), stats)
