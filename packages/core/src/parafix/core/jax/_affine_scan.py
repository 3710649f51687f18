import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import ArrayLike

from ._custom_types import Inexact
from ._named import named
from ._scan import (
    AbstractFusedScan,
    AbstractScan,
    AssociativeScan,
    SequentialScan,
    TritonScan,
)
from ._scan.algebra import apply, is_dense
from ._scan.calculus import solve_fused
from ._segments import along_time, checked_resets


def affine_scan(
    a: ArrayLike,
    b: ArrayLike,
    init: ArrayLike | None = None,
    *,
    reverse: bool = False,
    scan: str | AbstractScan = "auto",
    resets: ArrayLike | None = None,
) -> Inexact:
    """Solve the affine recurrence `x_t = a_t x_{t-1} + b_t` for all times.

    !!! example

        ```python
        import jax.numpy as jnp
        from parafix.core.jax import affine_scan

        affine_scan(jnp.full((5, 1), 0.5), jnp.ones((5, 1)))  # 1, 1.5, 1.75, ...
        ```

    **Arguments:**

    - `a`: the linear part: diagonal, with as many axes as `b`, or dense, with one more.
        Every axis but the last (two, if dense) may have size 1, time included; such an
        axis broadcasts and is not materialised.
    - `b`: shape `(T, *batch, n)`, any `T >= 0`; float or complex.
    - `init`: shape `(*batch, n)`, the state before the first step; zero by default, in
        which case the first `a` is not read.
    - `reverse`: if true, solve `x_t = a_t x_{t+1} + b_t`; `init` enters at the end.
    - `scan`: an [`parafix.core.jax.AbstractScan`][], a registered name, or `"auto"`:
        sequential on a CPU, on an NVIDIA GPU `triton` where it has no reason against,
        associative elsewhere.
    - `resets`: booleans `(T,)`: where true, the recurrence starts over, `x_t = b_t`,
        whatever precedes: a NaN or an infinity there is not multiplied by zero but
        left behind, in derivatives too. None by default.

    **Returns:**

    `x`, of the shape of `b` and the common dtype of the arguments.

    **Raises:**

    `ValueError` if the shapes do not fit, `TypeError` for integers, and `ValueError`
    with the reasons of a scan that was asked for and cannot serve: at the call, or
    where only the platform is in the way, when the computation is lowered.

    ??? abstract "Derivatives"

        The recurrence is a linear system `L x = b` with unit lower bidiagonal `L`, so
        its tangents solve the same recurrence and its cotangents the transposed one,
        `λ_t = g_t + a_{t+1}^T λ_{t+1}`: one scan in the other direction. The derivative
        is defined on the system and not on the scan, hence is right for every scan and
        to every order.
    """
    a, b, init = _checked(a, b, init)
    chosen = scan if isinstance(scan, str) and scan == "auto" else as_scan(scan)
    if isinstance(chosen, AbstractScan):
        reasons = chosen.reasons_against(a, b)
        if reasons:
            raise ValueError(
                f"scan={scan!r} cannot solve this recurrence (a: {a.dtype}{a.shape}, "
                f"b: {b.dtype}{b.shape}): " + "; ".join(reasons)
            )
    if resets is not None:
        resets = checked_resets(resets, b.shape[0])
        a = jnp.where(along_time(resets, a), 0, a)
    if b.size == 0:
        return b
    if init is None:
        init = jnp.zeros(b.shape[1:], b.dtype)
        if a.shape[0] == b.shape[0]:
            # So that a NaN there cannot reach the result as `NaN * 0`.
            a = a.at[-1 if reverse else 0].set(0)
    if resets is not None:
        return _solve(chosen, a, b, init, reverse, resets)
    if chosen == "auto" and not TritonScan().reasons_against(a, b):
        return solve_fused(a, b, init, TritonScan(), reverse, fallback=True)
    if isinstance(chosen, AbstractFusedScan):
        return solve_fused(a, b, init, chosen, reverse, fallback=False)
    return _solve(chosen, a, b, init, reverse)


def automatic_choice() -> str:
    """What `"auto"` takes here, in words, for `parafix doctor`."""
    platform = jax.default_backend()
    if platform == "gpu":
        # What code is lowered for has a name of its own.
        version = jax.devices()[0].client.platform_version
        platform = "rocm" if "rocm" in version.lower() else "cuda"
    b = jnp.zeros((1, 1), jnp.float32)
    kernel = TritonScan()
    reasons = kernel.reasons_against(b, b) + kernel.reasons_against_platform(platform)
    if not reasons:
        return f"auto takes 'triton' for diagonal matrices on {platform}"
    taken = "sequential" if platform == "cpu" else "associative"
    return f"auto takes '{taken}' on {platform}; not 'triton': {'; '.join(reasons)}"


def as_scan(scan: str | AbstractScan) -> AbstractScan:
    """The scan that `scan` names, or `scan` itself."""
    if isinstance(scan, AbstractScan):
        return scan
    if not isinstance(scan, str):
        raise TypeError(
            f"`scan` must be an AbstractScan or the name of one, got {scan!r}."
        )
    return named("scan", scan)()


def _run(scan, a, b, init, reverse, resets=None):
    if resets is not None:
        return _run_restarting(scan, a, b, init, reverse, resets)
    if scan != "auto":
        return scan.solve(a, b, init, reverse)
    return lax.platform_dependent(
        a,
        b,
        init,
        cpu=lambda a, b, init: SequentialScan().solve(a, b, init, reverse),
        default=lambda a, b, init: AssociativeScan().solve(a, b, init, reverse),
    )


def _run_restarting(scan, a, b, init, reverse, resets):
    # Where `a` is zero, a scan multiplies what precedes by it; and `0 * NaN` is NaN,
    # which then is everywhere after. If all is finite, that has not happened.
    if scan == "auto" and not TritonScan().reasons_against(a, b):
        x = solve_fused(a, b, init, TritonScan(), reverse, fallback=True)
    elif isinstance(scan, AbstractFusedScan):
        x = solve_fused(a, b, init, scan, reverse, fallback=False)
    else:
        x = _run(scan, a, b, init, reverse)
    broken = ~jnp.isfinite(x).all()

    def body(x, inputs):
        a_t, b_t, reset = inputs
        x = jnp.where(reset, b_t, apply(a_t, x) + b_t)
        return x, x

    def one_after_the_other():
        again = lax.scan(body, init, (a, b, resets), reverse=reverse)[1]
        return jnp.where(broken, again, x)

    # Nobody pays for it unless somebody needs it, and only those get it.
    return lax.cond(eqxi.unvmap_any(broken), one_after_the_other, lambda: x)


def _solve(scan, a, b, init, reverse, resets=None):
    # The unknown is the states at T + 1 times, the first of which is given: the linear
    # system `y_0 = init` and `y_t - a_t y_{t-1} = b_t`. Its transpose is the recurrence
    # `l_t = a_{t+1}^T l_{t+1} + g_t` with `l_T = g_T`: the same `a`, the other way.
    # One array holds it all, for the solve can be transposed only if its right-hand
    # sides are linear all at once. (XLA sees that slices of concatenations are parts.)
    def matvec(y):
        past, future = _ends(y, reverse)
        if resets is not None:
            past = jnp.where(along_time(resets, past), 0, past)
        return _join(_edge(y, reverse), future - apply(a, past), reverse)

    def solve(_, rhs):
        init, b = _edge(rhs, reverse), _ends(rhs, reverse)[1]
        return _join(init, _run(scan, a, b, init, reverse, resets), reverse)

    def transpose_solve(_, g):
        a_t = jnp.swapaxes(a, -1, -2) if is_dense(a, b) else a
        last, g = _edge(g, not reverse), _ends(g, not reverse)[1]
        x = _run(scan, a_t, g, last, not reverse, resets)
        return _join(last, x, not reverse)

    y = lax.custom_linear_solve(matvec, _join(init, b, reverse), solve, transpose_solve)
    return _ends(y, reverse)[1]


def _join(init, x, reverse):
    parts = [x, init[None]] if reverse else [init[None], x]
    return jnp.concatenate(parts)


def _edge(y, reverse):
    """The state with which a recurrence starts."""
    return y[-1] if reverse else y[0]


def _ends(y, reverse):
    """All states but the last, and all but the first."""
    return (y[1:], y[:-1]) if reverse else (y[:-1], y[1:])


def _checked(a, b, init):
    a, b = jnp.asarray(a), jnp.asarray(b)
    init = None if init is None else jnp.asarray(init)
    given = [x for x in (a, b, init) if x is not None]
    for name, x in (("a", a), ("b", b), ("init", init)):
        if x is not None and not jnp.issubdtype(x.dtype, jnp.inexact):
            raise TypeError(f"`{name}` must be float or complex, got {x.dtype}.")
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*given)
    if b.ndim < 2:
        raise ValueError(f"`b` must have shape (T, *batch, n), got {b.shape}.")
    if a.ndim == b.ndim:
        full = b.shape
        tail = 1
    elif a.ndim == b.ndim + 1:
        full = (*b.shape, b.shape[-1])
        tail = 2
    else:
        raise ValueError(
            "`a` must have as many axes as `b` (diagonal) or one more (dense); got "
            f"a: {a.shape}, b: {b.shape}."
        )
    lead_ok = all(
        i in (1, j) for i, j in zip(a.shape[:-tail], full[:-tail], strict=True)
    )
    if not lead_ok or a.shape[-tail:] != full[-tail:]:
        raise ValueError(
            f"`a` of shape {a.shape} does not fit `b` of shape {b.shape}: expected "
            f"{full}, where every axis but the last {'two' if tail == 2 else 'one'} "
            "may be 1."
        )
    if init is not None and init.shape != b.shape[1:]:
        raise ValueError(
            f"`init` must have shape {b.shape[1:]}, that of one time step of `b`; got "
            f"{init.shape}."
        )
    init = None if init is None else init.astype(dtype)
    return a.astype(dtype), b.astype(dtype), init
