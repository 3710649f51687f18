import contextlib
from typing import Any

import torch
from torch import Tensor

from ._calculus import forward_mode, is_recorded
from ._custom_types import ArrayLike, Inexact
from ._named import named
from ._scan import (
    AbstractFusedScan,
    AbstractScan,
    AssociativeScan,
    SequentialScan,
    TritonScan,
)
from ._scan.algebra import apply, is_dense, outer


def affine_scan(
    a: ArrayLike,
    b: ArrayLike,
    init: ArrayLike | None = None,
    *,
    reverse: bool = False,
    scan: str | AbstractScan = "auto",
) -> Inexact:
    """Solve the affine recurrence `x_t = a_t x_{t-1} + b_t` for all times.

    !!! example

        ```python
        import torch
        from parafix.core.torch import affine_scan

        affine_scan(torch.full((5, 1), 0.5), torch.ones(5, 1))  # 1, 1.5, 1.75, ...
        ```

    **Arguments:**

    - `a`: the linear part: diagonal, with as many axes as `b`, or dense, with one more.
        Every axis but the last (two, if dense) may have size 1, time included; such an
        axis broadcasts and is not materialised.
    - `b`: shape `(T, *batch, n)`, any `T >= 0`; float or complex.
    - `init`: shape `(*batch, n)`, the state before the first step; zero by default, in
        which case the first `a` is not read.
    - `reverse`: if true, solve `x_t = a_t x_{t+1} + b_t`; `init` enters at the end.
    - `scan`: an [`parafix.core.torch.AbstractScan`][], a registered name, or `"auto"`:
        on a GPU `triton` where it has no reason against; else sequential for large
        states on a CPU, associative otherwise.

    NumPy arrays are taken to the device of the tensors.

    **Returns:**

    `x`, of the shape of `b` and the common dtype of the arguments, on their device.

    **Raises:**

    `ValueError` if the shapes or devices do not fit, `TypeError` for integers, and
    `ValueError` with the reasons of a scan that was asked for and cannot serve.

    ??? abstract "Derivatives"

        The recurrence is a linear system `L x = b` with unit lower bidiagonal `L`, so
        its tangents solve the same recurrence and its cotangents the transposed one,
        `λ_t = g_t + a_{t+1}^H λ_{t+1}`: one scan in the other direction. The derivative
        is defined on the system and not on the scan, hence is right for every scan and
        to every order, by `backward` and under `torch.func`. `torch.compile` runs it
        between its graphs.
    """
    a, b, init = _checked(a, b, init)
    chosen = scan if isinstance(scan, str) and scan == "auto" else as_scan(scan)
    if isinstance(chosen, AbstractScan):
        reasons = chosen.reasons_against(a, b)
        if reasons:
            raise ValueError(
                f"scan={scan!r} cannot solve this recurrence (a: {_words(a)}, "
                f"b: {_words(b)}): " + "; ".join(reasons)
            )
    if init is not None:
        return _solve(a, b, init, chosen, reverse)
    if a.shape[0] != b.shape[0] or len(b) == 0:
        return _solve(a, b, b.new_zeros(b.shape[1:]), chosen, reverse)
    # One step shorter from the first `b`, so that a NaN in the first `a` cannot reach
    # the result as `NaN * 0`.
    if reverse:
        return torch.cat([_solve(a[:-1], b[:-1], b[-1], chosen, True), b[-1:]])
    return torch.cat([b[:1], _solve(a[1:], b[1:], b[0], chosen, False)])


def as_scan(scan: str | AbstractScan) -> AbstractScan:
    """The scan that `scan` names, or `scan` itself."""
    if isinstance(scan, AbstractScan):
        return scan
    if not isinstance(scan, str):
        raise TypeError(
            f"`scan` must be an AbstractScan or the name of one, got {scan!r}."
        )
    return named("scan", scan)()


def _automatic(a: Tensor, b: Tensor) -> AbstractScan:
    """Sequential where a step is so large that calling it costs little beside it.

    Measured on one thread of a CPU, float32: a step costs some 3 microseconds of Python
    and as much again at 8192 numbers of `a` and `b` together, whether diagonal or
    dense. Below, the associative scan wins from some twenty steps on, and by 30 to 100
    times for ten thousand small ones; above, it loses by up to 3 times, since it does
    more work.
    On a GPU nothing has been measured: there the kernel moves each number once, which
    the associative scan, taken where the kernel cannot serve, does some four times.
    """
    if b.device.type == "cuda":
        kernel = TritonScan()
        return AssociativeScan() if kernel.reasons_against(a, b) else kernel
    large = a.numel() + b.numel() >= 8192 * b.shape[0]
    on_host = b.device.type == "cpu"
    return SequentialScan() if large and on_host else AssociativeScan()


def automatic_choice() -> str:
    """What `"auto"` takes here, in words, for `parafix doctor`."""
    gpu = torch.cuda.is_available()
    b = torch.empty((1, 1), device="cuda" if gpu else "cpu")
    reasons = TritonScan().reasons_against(b, b)
    if gpu and not reasons:
        return "auto takes 'triton' for diagonal matrices on cuda"
    taken = (
        "'associative'" if gpu else "'associative' or, for large states, 'sequential'"
    )
    return f"auto takes {taken}; not 'triton': {'; '.join(reasons)}"


def _exactly(device: torch.device) -> Any:
    """Switches autocast off: what it rounds, a recurrence multiplies up."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _solve(a, b, init, scan, reverse) -> Inexact:
    if is_recorded() or torch.compiler.is_compiling():
        return _Solve.apply(a, b, init, scan, reverse)
    # A `Function` is not worth its call.
    return _Solve.forward(a, b, init, scan, reverse)


class _Solve(torch.autograd.Function):
    """The states, as a function of `a`, `b` and `init`.

    Every derivative is a recurrence with the same `a`, so it is taken by this function
    again, and there are as many of them as anybody asks for.
    """

    @staticmethod
    def forward(a, b, init, scan, reverse):  # pyright: ignore
        if b.numel() == 0:
            return b.clone()
        chosen = _automatic(a, b) if scan == "auto" else scan
        with _exactly(b.device):
            x = chosen.solve(a, b, init, reverse)
        # A function that returns its own input cannot save it for `backward`.
        return x.clone() if any(x is given for given in (a, b, init)) else x

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, _, init, ctx.scan, ctx.reverse = inputs
        ctx.save_for_backward(a, init, output)
        ctx.save_for_forward(a, init, output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, g):  # pyright: ignore
        if g is None:
            return None, None, None, None, None
        a, init, x = ctx.saved_tensors
        reverse = ctx.reverse
        if x.numel() == 0:
            zeros = torch.zeros_like(a), torch.zeros_like(x), torch.zeros_like(init)
            return *zeros, None, None
        chosen = _automatic(a, x) if ctx.scan == "auto" else ctx.scan
        if isinstance(chosen, AbstractFusedScan) and not is_recorded():
            if g.dtype != x.dtype:
                g = g.to(x.dtype)
            grads = chosen.vjp(a, x, init, g, reverse, ctx.needs_input_grad[0])
            return *grads, None, None
        # l_t = a_{t+1}^H l_{t+1} + g_t, and the cotangent of `init` would be the next.
        # Shifted by one step, each stands where the `a` does that takes it on: the same
        # `a` at the same times, the other way.
        with _exactly(x.device):
            last = g[0] if reverse else g[-1]
            shifted = _Solve.apply(
                a.mH if is_dense(a, x) else a.conj(),
                _enter(g, torch.zeros_like(init), reverse),
                last,
                ctx.scan,
                not reverse,
            )
            of_b = _enter(shifted, last, not reverse)
            of_a = None
            if ctx.needs_input_grad[0]:
                of_a = outer(of_b, _enter(x, init, reverse), a.shape)
        return of_a, of_b, shifted[-1] if reverse else shifted[0], None, None

    @staticmethod
    def jvp(ctx, a_t, b_t, init_t, *_):  # pyright: ignore
        device = ctx.saved_tensors[0].device
        with forward_mode(ctx) as (a, init, x), _exactly(device):
            rhs = torch.zeros_like(x) if b_t is None else b_t
            if x.numel() == 0:
                return rhs.clone()
            if a_t is not None:
                rhs = rhs + apply(a_t, _enter(x, init, ctx.reverse))
            init_t = torch.zeros_like(init) if init_t is None else init_t
            return _Solve.apply(a, rhs, init_t, ctx.scan, ctx.reverse)

    @staticmethod
    def vmap(info, in_dims, a, b, init, scan, reverse):  # pyright: ignore
        # One more axis of the batch, after time; of size 1 in an `a` that all share.
        a = a.unsqueeze(1) if in_dims[0] is None else a.movedim(in_dims[0], 1)
        b, init = (
            x.unsqueeze(axis).expand(*x.shape[:axis], info.batch_size, *x.shape[axis:])
            if dim is None
            else x.movedim(dim, axis)
            for x, dim, axis in ((b, in_dims[1], 1), (init, in_dims[2], 0))
        )
        return _Solve.apply(a, b, init, scan, reverse), 1


def _enter(x: Tensor, init: Tensor, reverse: bool) -> Tensor:
    """The state that enters each step: the one before, the first time `init`."""
    parts = [x[1:], init.unsqueeze(0)] if reverse else [init.unsqueeze(0), x[:-1]]
    return torch.cat(parts)


def _checked(a, b, init):
    device = _device({"a": a, "b": b, "init": init})
    a, b = torch.as_tensor(a, device=device), torch.as_tensor(b, device=device)
    init = None if init is None else torch.as_tensor(init, device=device)
    for name, x in (("a", a), ("b", b), ("init", init)):
        if x is not None and not (x.is_floating_point() or x.is_complex()):
            raise TypeError(f"`{name}` must be float or complex, got {x.dtype}.")
    dtype = torch.promote_types(a.dtype, b.dtype)
    dtype = dtype if init is None else torch.promote_types(dtype, init.dtype)
    if b.ndim < 2:
        raise ValueError(f"`b` must have shape (T, *batch, n), got {_shape(b)}.")
    if a.ndim == b.ndim:
        full = _shape(b)
        tail = 1
    elif a.ndim == b.ndim + 1:
        full = (*b.shape, b.shape[-1])
        tail = 2
    else:
        raise ValueError(
            "`a` must have as many axes as `b` (diagonal) or one more (dense); got "
            f"a: {_shape(a)}, b: {_shape(b)}."
        )
    lead_ok = all(
        i in (1, j) for i, j in zip(a.shape[:-tail], full[:-tail], strict=True)
    )
    if not lead_ok or _shape(a)[-tail:] != full[-tail:]:
        raise ValueError(
            f"`a` of shape {_shape(a)} does not fit `b` of shape {_shape(b)}: expected "
            f"{full}, where every axis but the last {'two' if tail == 2 else 'one'} "
            "may be 1."
        )
    if init is not None and init.shape != b.shape[1:]:
        raise ValueError(
            f"`init` must have shape {_shape(b)[1:]}, that of one time step of `b`; "
            f"got {_shape(init)}."
        )
    init = None if init is None else init.to(dtype)
    return a.to(dtype), b.to(dtype), init


def _device(given: dict[str, Any]) -> torch.device | None:
    """The device of all tensors among the arguments; `None` if there are none."""
    places = {name: x.device for name, x in given.items() if isinstance(x, Tensor)}
    if len(set(places.values())) > 1:
        listing = ", ".join(f"{name}: {device}" for name, device in places.items())
        raise ValueError(f"all arguments must be on one device, got {listing}.")
    return next(iter(places.values()), None)


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _words(x: Tensor) -> str:
    return f"{x.dtype}{_shape(x)}"
