"""One-step maps of ordinary differential equations."""

import abc
import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from parafix.core.torch import GMRES, ImplicitAdjoint, LU, Newton, root_find


Time = Float[Tensor, ""]
States = Float[Tensor, "B n"]
Slope = Callable[[Any, Any], Any]


class AbstractOneStep(abc.ABC):
    """A map from `y(t0)` to about `y(t0 + h)`, where `dy/dt = func(t, y)`.

    A subclass that says how to step is a method of [`parafix.deer.torch.solve_ivp`][].
    It must be deterministic, must not mix samples, and is run under `torch.func.vmap`
    for all times at once: no decision by values, which is one of `torch.where`.
    """

    @abc.abstractmethod
    def __call__(self, func: Slope, t0: Time, h: Time, y: States) -> States:
        """One step.

        **Arguments:**

        - `func`: maps a time `()` and states `(B, n)` to slopes `(B, n)`.
        - `t0`: shape `()`, the time before the step.
        - `h`: shape `()`, its length; negative where time runs backwards.
        - `y`: shape `(B, n)`, the states before the step: real, at least float32,
            whatever leaves the user's state has.

        **Returns:**

        The states after the step, `(B, n)`.
        """


class AbstractExplicitRungeKutta(AbstractOneStep):
    """An explicit Runge-Kutta method.

    `k_i = func(t0 + c_i h, y + h sum_j a_ij k_j)` with `j < i`, and
    `y + h sum_i b_i k_i`.

    **Attributes:**

    - `nodes`: `c`.
    - `matrix`: the rows of `a`, as far as the diagonal.
    - `weights`: `b`.
    """

    nodes: ClassVar[tuple[float, ...]]
    matrix: ClassVar[tuple[tuple[float, ...], ...]]
    weights: ClassVar[tuple[float, ...]]

    def __call__(self, func, t0, h, y):
        slopes = []
        for node, row in zip(self.nodes, self.matrix, strict=True):
            slopes.append(func(_later(t0, node, h), _moved(y, h, row, slopes)))
        return _moved(y, h, self.weights, slopes)


def _later(t0, node, h):
    return t0 if node == 0 else torch.add(t0, h, alpha=node)


def _moved(y, h, weights, slopes):
    """`y + h sum_i weights_i slopes_i`, in few operations: a loop costs their calls."""
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
    if not terms:
        return y
    (weight, slope), *others = terms
    total = slope if weight == 1 else weight * slope
    for weight, slope in others:
        total = torch.add(total, slope, alpha=weight)
    return torch.addcmul(y, h, total)


@dataclasses.dataclass(frozen=True)
class Euler(AbstractExplicitRungeKutta):
    """Euler's method, of order 1: `y + h func(t0, y)`. `"euler"`."""

    nodes: ClassVar = (0.0,)
    matrix: ClassVar = ((),)
    weights: ClassVar = (1.0,)


@dataclasses.dataclass(frozen=True)
class Midpoint(AbstractExplicitRungeKutta):
    """The explicit midpoint rule, of order 2. `"midpoint"`.

    `y + h func(t0 + h/2, y + h/2 func(t0, y))`.
    """

    nodes: ClassVar = (0.0, 0.5)
    matrix: ClassVar = ((), (0.5,))
    weights: ClassVar = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Heun(AbstractExplicitRungeKutta):
    """Heun's method, of order 2: the explicit trapezoidal rule. `"heun2"`, `"heun"`.

    The mean of the slopes before the step and after one of Euler's.
    """

    nodes: ClassVar = (0.0, 1.0)
    matrix: ClassVar = ((), (1.0,))
    weights: ClassVar = (0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Heun3(AbstractExplicitRungeKutta):
    """Heun's method of order 3. `"heun3"`.

    ??? cite "Reference"

        Hairer, Nørsett and Wanner, "Solving ordinary differential equations I", 1993,
        table II.1.1.
    """

    nodes: ClassVar = (0.0, 1 / 3, 2 / 3)
    matrix: ClassVar = ((), (1 / 3,), (0.0, 2 / 3))
    weights: ClassVar = (1 / 4, 0.0, 3 / 4)


@dataclasses.dataclass(frozen=True)
class RK4(AbstractExplicitRungeKutta):
    """Kutta's 3/8 rule, of order 4. `"rk4"`, as in torchdiffeq.

    ??? cite "Reference"

        Kutta, "Beitrag zur näherungsweisen Integration totaler
        Differentialgleichungen", Zeitschrift für Mathematik und Physik 46, 1901;
        Hairer, Nørsett and Wanner, "Solving ordinary differential equations I", 1993,
        table II.1.2, right.
    """

    nodes: ClassVar = (0.0, 1 / 3, 2 / 3, 1.0)
    matrix: ClassVar = ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0))
    weights: ClassVar = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


@dataclasses.dataclass(frozen=True)
class ClassicalRK4(AbstractExplicitRungeKutta):
    """The Runge-Kutta method of textbooks, of order 4. `"classical_rk4"`.

    Other numbers than those of [`parafix.deer.torch.RK4`][], of the same order.

    ??? cite "Reference"

        Hairer, Nørsett and Wanner, "Solving ordinary differential equations I", 1993,
        table II.1.2, left.
    """

    nodes: ClassVar = (0.0, 0.5, 0.5, 1.0)
    matrix: ClassVar = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    weights: ClassVar = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


@dataclasses.dataclass(frozen=True)
class ImplicitMidpoint(AbstractOneStep):
    """The implicit midpoint rule, of order 2. `"implicit_midpoint"`.

    `m = y + h/2 func(t0 + h/2, m)`, and the step leads to `2 m - y`. A-stable,
    symmetric, and keeps every quadratic invariant (an energy, a norm) to rounding.

    Each step solves for `m` by Newton's method, until that moves no more; derivatives
    are those of the implicit function theorem. Where it finds no `m`, the step returns
    NaN, so that no solve which takes it is a success.

    **Arguments:**

    - `max_steps`: at most this many Newton steps.
    - `linear_solver`: a [`parafix.core.torch.LU`][], which forms the matrix of every
        sample, or a [`parafix.core.torch.GMRES`][], which does not.

    ??? cite "Reference"

        Hairer, Lubich and Wanner, "Geometric numerical integration", 2006, equation
        I.1.7 and theorem IV.2.1.
    """

    max_steps: int = 20
    linear_solver: LU | GMRES = LU()

    def __call__(self, func, t0, h, y):
        time = t0 + h / 2
        eps = torch.finfo(y.dtype).eps
        # Newton's method goes on to rounding, for invariants are as good as `m` is;
        # whether it has found one is asked at the usual tolerance.
        finest, usual = 4 * eps, eps**0.75
        solution = root_find(
            lambda m: m - y - h / 2 * func(time, m),
            y.detach(),
            solver=Newton(finest, finest, self.linear_solver),
            adjoint=ImplicitAdjoint(self.linear_solver),
            max_steps=self.max_steps,
            throw=False,
        )
        found = solution.stats["residual"] * finest <= usual
        return torch.where(found[:, None], 2 * solution.value - y, torch.nan)


# Names that torchdiffeq has, too, are of the same numbers.
METHODS: Final[dict[str, AbstractOneStep]] = {
    "euler": Euler(),
    "midpoint": Midpoint(),
    "heun": Heun(),
    "heun2": Heun(),
    "heun3": Heun3(),
    "rk4": RK4(),
    "classical_rk4": ClassicalRK4(),
    "implicit_midpoint": ImplicitMidpoint(),
}

# Elsewhere these choose the length of each step by the solution.
_ADAPTIVE = ("adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2", "tsit5")
# And these take more than the state before the step.
_MULTISTEP = ("explicit_adams", "fixed_adams", "implicit_adams")


def as_one_step(method: Any) -> AbstractOneStep:
    """The one-step map that `method` names, or `method` itself.

    **Raises:**

    `ValueError` for an unknown name, `TypeError` for anything else.
    """
    if isinstance(method, AbstractOneStep):
        return method
    if not isinstance(method, str):
        what = method.__name__ if isinstance(method, type) else repr(method)
        raise TypeError(
            f"`method` must be a name or a one-step map such as `RK4()`, got {what}."
        )
    if method in METHODS:
        return METHODS[method]
    names = _listed(METHODS)
    if method in _ADAPTIVE:
        raise ValueError(
            f'method="{method}" chooses its steps by the solution; `solve_ivp` steps '
            'exactly on `t`. Take method="rk4" and as many times in `t` as accuracy '
            "asks for."
        )
    if method in _MULTISTEP:
        raise ValueError(
            f'method="{method}" needs several states before a step; the methods of '
            f"`solve_ivp` need one: {names}."
        )
    close = difflib.get_close_matches(method, METHODS, n=1, cutoff=0.5)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    raise ValueError(f'There is no method "{method}": there are {names}.{hint}')


def _listed(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(f'"{name}"' for name in names)
