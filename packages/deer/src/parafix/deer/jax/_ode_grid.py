"""The times that Diffrax's controllers for fixed grids visit."""

import functools as ft
import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Real


class Grid(eqx.Module):
    """The `N` steps of a solve, of which each goes from one time to another.

    They are the floats that Diffrax's own loop visits, and derivatives reach them on
    the same ways.
    """

    # What the steps are given, as a starting and as an ending time.
    before: Real[Array, " N"]
    after: Real[Array, " N"]
    # At which time Diffrax says that a step has ended.
    ends: Real[Array, " N"]
    controller_state: Any

    @classmethod
    def of(
        cls,
        controller: Any,
        controller_state: Any,
        t0: Real[Array, ""],
        t1: Real[Array, ""],
        first: Real[Array, ""],
        length: int,
    ) -> "Grid":
        """The grid of a controller, whose first step goes from `t0` to `first`.

        It is a `ConstantStepSize` or a `StepTo`. Neither looks at a state, and what
        each of them keeps from step to step is the number of steps. So all times come
        at once.
        """

        def proposed(count):
            state = _counted(controller, controller_state, count)
            _, _, after, *_ = controller.adapt_step_size(
                t0, t0, None, None, None, None, None, state
            )
            return after

        later = jax.vmap(proposed)(jnp.arange(length - 1))
        # A step that would leave less than rounding before the end goes to the end.
        floor = jax.lax.stop_gradient(t1)
        for _ in range(100):
            floor = jnp.nextafter(floor, jnp.full_like(floor, -jnp.inf))
        later = jnp.where(later > floor, t1, later)
        after = jnp.concatenate([first[None], later])
        ends = jnp.minimum(after, t1)
        return cls(
            before=jnp.concatenate([t0[None], ends[:-1]]),
            after=after,
            ends=ends,
            controller_state=_counted(controller, controller_state, length),
        )


def _counted(controller, state, count):
    """What `controller` keeps after `count` more steps."""
    if isinstance(controller, diffrax.StepTo):
        return _sum(state, count)
    completed, *rest = state
    return _sum(completed, count), *rest


def _sum(x, y):
    x = jnp.asarray(x)
    return x + jnp.asarray(y, x.dtype)


def checked_controller(controller: Any) -> None:
    """Raises unless `controller` is one for fixed grids."""
    if isinstance(controller, diffrax.ConstantStepSize | diffrax.StepTo):
        return
    if isinstance(controller, diffrax.AbstractStepSizeController):
        raise ValueError(
            f"`stepsize_controller={type(controller).__name__}(...)` chooses each step "
            "by the one before, so that the steps cannot be taken at once. Use "
            "`diffrax.ConstantStepSize()` with `dt0`, or `diffrax.StepTo(ts)`. Good "
            "times for `StepTo` are those of one adaptive solve: "
            "`diffrax.diffeqsolve(..., saveat=diffrax.SaveAt(t0=True, steps=True))` "
            "has them in its `ts`, followed by infinities."
        )
    raise TypeError(
        "`stepsize_controller` must be a `diffrax.ConstantStepSize` or a "
        f"`diffrax.StepTo`, got {controller!r}."
    )


def length_of(controller: Any, t0: Any, t1: Any, dt0: Any, saveat: Any) -> int:
    """`N`, the number of steps, which must not depend on traced values."""
    if isinstance(controller, diffrax.StepTo):
        return controller.ts.shape[0] - 1
    if dt0 is None:
        raise ValueError(
            "`dt0` must be given with `ConstantStepSize`, which chooses no step size."
        )
    times = [_number(name, x) for name, x in (("t0", t0), ("t1", t1), ("dt0", dt0))]
    return _count(*times, _time_dtype(t0, t1, dt0, saveat))


def _number(name: str, x: Any) -> float:
    try:
        # What is only being differentiated has a value.
        value = float(jax.lax.stop_gradient(x) if isinstance(x, Tracer) else x)
    except jax.errors.ConcretizationTypeError as e:
        raise ValueError(
            f"`{name}` is traced, and with `ConstantStepSize` the number of steps "
            "depends on it, which must be known when the program is compiled. Take "
            "`t0`, `t1` and `dt0` out of `jit` and `vmap`, or use "
            "`diffrax.StepTo(ts)`, whose times may be traced."
        ) from e
    except TypeError as e:
        raise TypeError(f"`{name}` must be a real number, got {x!r}.") from e
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value}.")
    return value


def _time_dtype(t0, t1, dt0, saveat):
    """That of Diffrax: the wider one of all times that are given."""
    subs = jax.tree.leaves(saveat.subs, is_leaf=is_sub)
    times = [t0, t1, dt0, *(sub.ts for sub in subs if sub.ts is not None)]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*times)
        if not jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.result_type(float)
    return jnp.dtype(dtype)


@ft.lru_cache(maxsize=1024)
def _count(t0, t1, dt0, dtype):
    if (t1 - t0) * dt0 < 0:
        way, sign = ("forward", "positive") if t0 < t1 else ("backward", "negative")
        raise ValueError(
            f"From t0={t0} to t1={t1} time runs {way}, so `dt0` must be {sign}; got "
            f"{dt0}."
        )
    if t0 == t1:
        return 0
    if dt0 == 0:
        raise ValueError("`dt0` must not be zero.")
    if (t1 - t0) / dt0 > 2**31 - 2:
        raise ValueError(f"From t0={t0} to t1={t1} by dt0={dt0} are too many steps.")
    direction = 1 if t0 < t1 else -1
    controller: Any = diffrax.ConstantStepSize()
    with jax.ensure_compile_time_eval():
        t0, t1, dt0 = (jnp.asarray(direction * t, dtype) for t in (t0, t1, dt0))
        first, state = controller.init(None, t0, t1, None, dt0, None, None, None)
        grid = Grid.of(controller, state, t0, t1, jnp.minimum(first, t1), int(state[1]))
        return int((grid.before < t1).sum())


def is_sub(x: Any) -> bool:
    """Whether `x` is one of the leaves of `SaveAt.subs`."""
    return isinstance(x, diffrax.SubSaveAt)
