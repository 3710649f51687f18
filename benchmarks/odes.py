"""Differential equations on fixed grids: problems of a table, and their solvers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from parafix.deer.jax import diffeqsolve

from .gru import FORWARD, GRADIENT
from .harness import Answer, Contestant, Facts
from .jax_programs import in_float64, jax_program, named_arrays
from .verdicts import codes_of, worst_result


class Equation(NamedTuple):
    """`y' = field(t, y, params)`, or with noise, and what to solve it with.

    - `grid`: from the number of steps to the times.
    - `params`, `y0`: float64; `y0` of one sample.
    - `noise`: the factor of a Brownian motion for each entry of `y`, as a function of
        the same arguments; `None` for an ordinary differential equation.
    """

    field: Callable[[Any, Any, Any], Any]
    y0: np.ndarray
    params: Any
    grid: Callable[[int], np.ndarray]
    solver: diffrax.AbstractSolver
    noise: Callable[[Any, Any, Any], Any] | None = None


def _evenly(end: float) -> Callable[[int], np.ndarray]:
    # No step is longer than a thousandth, with which the methods are stable.
    return lambda count: np.linspace(0, end * min(1, count / 1_000), count + 1)


def _geometrically(first: float, end: float) -> Callable[[int], np.ndarray]:
    return lambda count: np.concatenate([[0.0], np.geomspace(first, end, count)])


def _fitzhugh_nagumo(t, y, params):
    v, w = y
    a, b, tau, current = params
    return jnp.stack([v - v**3 / 3 - w + current, (v + a - b * w) / tau])


def _van_der_pol(t, y, mu):
    return jnp.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])


def _robertson(t, y, params):
    a, b, c = params
    slow, fast = a * y[0], c * y[1] * y[2]
    worn = b * y[1] ** 2
    return jnp.stack([fast - slow, slow - fast - worn, worn])


def _lotka_volterra(t, y, params):
    a, b, c, d = params
    prey, predators = y
    return jnp.stack(
        [a * prey - b * prey * predators, d * prey * predators - c * predators]
    )


def _network(t, y, weights):
    first, bias, second = weights
    return second @ jnp.tanh(first @ y + bias) - 0.1 * y


def _network_weights(size: int, hidden: int) -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(0)
    return (
        draw.normal(size=(hidden, size)) / size**0.5,
        draw.normal(size=hidden),
        draw.normal(size=(size, hidden)) / hidden**0.5,
    )


# What the stages of an implicit method are solved by, to near rounding.
_STAGES: dict[str, Any] = {
    "root_finder": optx.Newton(rtol=1e-10, atol=1e-12),
    "root_find_max_steps": 50,
}


_LOTKA_VOLTERRA = np.array([1.1, 0.4, 0.4, 0.1])
EQUATIONS = {
    "FitzHugh-Nagumo, Tsit5": Equation(
        _fitzhugh_nagumo,
        np.array([-1.0, 1.0]),
        np.array([0.7, 0.8, 12.5, 0.5]),
        _evenly(100.0),
        diffrax.Tsit5(),
    ),
    "neural ODE 4-32-4, Heun": Equation(
        _network,
        np.array([1.0, -1.0, 0.5, 0.0]),
        _network_weights(4, 32),
        _evenly(10.0),
        diffrax.Heun(),
    ),
    "van der Pol mu=5, Dopri5": Equation(
        _van_der_pol,
        np.array([2.0, 0.0]),
        np.array(5.0),
        _evenly(20.0),
        diffrax.Dopri5(),
    ),
    "van der Pol mu=1000, Kvaerno3": Equation(
        _van_der_pol,
        np.array([2.0, 0.0]),
        np.array(1e3),
        # Along the slow branch; at 807 it jumps.
        _geometrically(1e-4, 5e2),
        diffrax.Kvaerno3(**_STAGES),
    ),
    "Robertson, Kvaerno5": Equation(
        _robertson,
        np.array([1.0, 0.0, 0.0]),
        np.array([0.04, 3e7, 1e4]),
        _geometrically(1e-5, 1e5),
        diffrax.Kvaerno5(**_STAGES),
    ),
    "noisy Lotka-Volterra, EulerHeun": Equation(
        _lotka_volterra,
        np.array([10.0, 5.0]),
        _LOTKA_VOLTERRA,
        _evenly(10.0),
        diffrax.EulerHeun(),
        lambda t, y, params: 0.1 * y,
    ),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """An equation over `length` steps; `batch` samples start at different places."""

    name: str
    batch: int
    length: int

    @property
    def equation(self) -> Equation:
        return EQUATIONS[self.name]

    @functools.cached_property
    def arguments(self) -> tuple[Any, np.ndarray, np.ndarray]:
        """`(params, y0, ts)` in float64, `y0` of all samples."""
        draw = np.random.default_rng(0)
        y0 = self.equation.y0
        factors = 1 + 0.05 * draw.uniform(-1, 1, (self.batch, y0.size))
        factors[0] = 1
        return self.equation.params, factors * y0, self.equation.grid(self.length)

    def terms(self, ts: Any, shape: tuple[int, ...]) -> Any:
        drift = diffrax.ODETerm(self.equation.field)
        if self.equation.noise is None:
            return drift
        end = self.equation.grid(self.length)[-1]
        brownian = diffrax.VirtualBrownianTree(
            0.0, end, end / self.length / 4, shape, jax.random.key(0)
        )
        diffusion = lambda t, y, params: jnp.diag(self.equation.noise(t, y, params))
        return diffrax.MultiTerm(drift, diffrax.ControlTerm(diffusion, brownian))

    def solve(
        self, solver: "Solver", params: Any, y0: Any, ts: Any, **more: Any
    ) -> Any:
        """The solution of one sample, saved at all steps."""
        return solver.solve(
            self.terms(ts, y0.shape),
            self.equation.solver,
            ts[0],
            ts[-1],
            None,
            y0,
            params,
            saveat=diffrax.SaveAt(steps=True),
            stepsize_controller=diffrax.StepTo(ts),
            max_steps=self.length,
            **solver.options,
            **more,
        )

    def forward(self, solver: "Solver") -> Callable[..., jax.Array]:
        """All states: `(B, T, n)`."""
        one = lambda params, y0, ts: self.solve(solver, params, y0, ts).ys
        return jax.vmap(one, in_axes=(None, 0, None))

    def gradient(self, solver: "Solver") -> Callable[..., Any]:
        """The mean square of all states; its gradient in parameters and `y0`."""

        def loss(params, y0, ts):
            return jnp.mean(self.forward(solver)(params, y0, ts) ** 2)

        return jax.value_and_grad(loss, argnums=(0, 1))

    @functools.cached_property
    def references(self) -> dict[str, Answer]:
        """Diffrax's own numbers: to give them is what is asked for."""
        return {
            group: named_arrays(in_float64(function, *self.arguments))
            for group, function in (
                (FORWARD, self.forward(DIFFRAX)),
                (GRADIENT, self.gradient(DIFFRAX)),
            )
        }

    @functools.cache  # noqa: B019 (a problem lives as long as its case)
    def facts(self, solver: "Solver") -> Facts:
        """Sweeps, residual and result code, from a run that is not timed."""
        if not solver.sweeps:
            return {}

        def one(params, y0, ts):
            stats = self.solve(solver, params, y0, ts, throw=False).stats
            return stats["num_sweeps"], stats["residual"], codes_of(stats["result"])

        batched = jax.vmap(one, in_axes=(None, 0, None))
        sweeps, residual, codes = in_float64(batched, *self.arguments)
        return {
            "sweeps": int(np.max(sweeps)),
            "residual": float(np.max(residual)),
            "result": worst_result(codes),
        }


class Solver(NamedTuple):
    """Who solves: a function like `diffrax.diffeqsolve`, and options for it."""

    name: str
    solve: Callable[..., Any]
    options: Any
    sweeps: bool = False

    def __hash__(self) -> int:
        return hash(self.name)


DIFFRAX = Solver("diffrax", diffrax.diffeqsolve, {})
DIRECT = Solver(
    "diffrax, DirectAdjoint",
    diffrax.diffeqsolve,
    {"adjoint": diffrax.DirectAdjoint()},
)
DEER = Solver("parafix deer", diffeqsolve, {}, sweeps=True)
CONSTANT = Solver(
    "parafix deer, from y0", diffeqsolve, {"guess": "constant"}, sweeps=True
)
AUTO = Solver("parafix auto", diffeqsolve, {"root_finder": "auto"})


def contestants(
    problem: Problem, group: str, solvers: tuple["Solver", ...]
) -> list[Contestant]:
    """The solvers on a problem, `"forward"` or `"value and gradient"`."""
    make = {FORWARD: problem.forward, GRADIENT: problem.gradient}[group]
    return [
        Contestant(
            solver.name,
            functools.partial(
                jax_program,
                make(solver),
                *problem.arguments,
                facts=functools.partial(problem.facts, solver),
                wide=True,
            ),
        )
        for solver in solvers
    ]
