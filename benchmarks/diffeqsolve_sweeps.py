"""How many sweeps `parafix.deer.jax.diffeqsolve` takes: no times, only counts.

`python benchmarks/diffeqsolve_sweeps.py` prints the table of docs/odes.md: trajectories
of a few thousand steps, in float64 and to the default tolerances, by what sweeps start
from. Every answer is compared with that of Diffrax, and a solve that is not right is
marked.
"""

import math
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from parafix.deer.jax import diffeqsolve


MOST = 400
GUESSES: dict[str, dict[str, Any]] = {
    "coarse": {},
    "constant": {"guess": "constant"},
    "step": {"guess": "step"},
    "coarse, window=100": {"window": 100},
}


def pendulum(t: Any, y: Any, args: Any) -> Any:
    force = -2.0 * jnp.sin(y[0]) - 0.2 * y[1] + 0.3 * jnp.cos(t)
    return jnp.stack([y[1], force])


def orbit(t: Any, y: Any, args: Any) -> Any:
    place, velocity = y[:2], y[2:]
    return jnp.concatenate([velocity, -place / jnp.sum(place**2) ** 1.5])


def van_der_pol(t: Any, y: Any, args: Any) -> Any:
    return jnp.stack([y[1], args * (1 - y[0] ** 2) * y[1] - y[0]])


def lorenz(t: Any, y: Any, args: Any) -> Any:
    a, b, c = y
    return jnp.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c])


def double_well(end: float) -> Any:
    path = diffrax.VirtualBrownianTree(0.0, end, 1e-4, (), jax.random.key(0))
    return diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: y - y**3),
        diffrax.ControlTerm(lambda t, y, args: jnp.array(0.4), path),
    )


def problems() -> dict[str, tuple[Any, ...]]:
    """Terms, solver, end, step, initial state and argument of each."""
    tsit5, ode = diffrax.Tsit5(), diffrax.ODETerm
    start, circle = jnp.array([0.7, -0.2]), jnp.array([2.0, 0.0])
    far = jnp.array([0.5, 0.0, 0.0, math.sqrt(3.0)])
    well = (double_well(20.0), diffrax.EulerHeun(), 20.0, 0.01, jnp.array(0.1), None)
    return {
        "driven pendulum, Tsit5": (ode(pendulum), tsit5, 20.0, 0.02, start, None),
        "the same, finer": (ode(pendulum), tsit5, 20.0, 0.002, start, None),
        "the same, Heun": (ode(pendulum), diffrax.Heun(), 20.0, 0.02, start, None),
        "Kepler orbit, Dopri5": (ode(orbit), diffrax.Dopri5(), 20.0, 0.01, far, None),
        "van der Pol, mu=2, Tsit5": (ode(van_der_pol), tsit5, 20.0, 0.01, circle, 2.0),
        "Lorenz, Tsit5": (ode(lorenz), tsit5, 5.0, 0.005, jnp.ones(3), None),
        "double well with noise, EulerHeun": well,
        "van der Pol, mu=10, Tsit5": (
            *(ode(van_der_pol), tsit5, 40.0, 0.01, circle, 10.0),
        ),
    }


def cell(problem: tuple[Any, ...], expected: Any, options: dict[str, Any]) -> str:
    terms, solver, end, dt, y0, args = problem
    solution = diffeqsolve(
        *(terms, solver, 0.0, end, dt, y0, args),
        max_sweeps=MOST,
        throw=False,
        **options,
    )
    if not bool(solution.result == diffrax.RESULTS.successful):
        return "-"
    right = bool(jnp.allclose(solution.ys, expected, rtol=1e-8, atol=1e-8))
    return f"{int(solution.stats['num_sweeps'])}{'' if right else ' (wrong)'}"


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    print("| problem | steps |", " | ".join(GUESSES), "|")
    print("|---" * (2 + len(GUESSES)) + "|")
    for name, problem in problems().items():
        terms, solver, end, dt, y0, args = problem
        theirs = diffrax.diffeqsolve(
            *(terms, solver, 0.0, end, dt, y0, args), max_steps=20_000
        )
        cells = [cell(problem, theirs.ys, options) for options in GUESSES.values()]
        row = [name, str(int(theirs.stats["num_steps"])), *cells]
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
