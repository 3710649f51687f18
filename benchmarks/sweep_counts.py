"""How many sweeps each solver of `parafix.deer.jax` takes: no times, only counts.

`python benchmarks/sweep_counts.py` prints the table of docs/how-to-choose.md: a gated
recurrent unit with 8 units over 1000 steps whose weights are multiplied by 1, 2 and 4,
and the ODE `z' = tanh(W z + U x) - z` on a grid of 0.001. In float64, to 1e-9. Every
answer is compared with the loop, and a solve that is not right is marked.
"""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from parafix.core.jax import Jacobi, RESULTS
from parafix.core.testing.jax import gru
from parafix.deer.jax import DEER, ELK, Picard, QuasiDEER, QuasiELK, scan


TOLERANCES = {"rtol": 1e-9, "atol": 1e-9}
SOLVERS = {
    "DEER": DEER(**TOLERANCES),
    "DEER, damping": DEER(**TOLERANCES, damping="auto"),
    "ELK": ELK(**TOLERANCES),
    "ELK, radius 1": ELK(**TOLERANCES, radius=1.0),
    "QuasiDEER": QuasiDEER(**TOLERANCES),
    "QuasiDEER, damping": QuasiDEER(**TOLERANCES, damping="auto"),
    "QuasiDEER, probe": QuasiDEER(**TOLERANCES, probe=True),
    "QuasiELK": QuasiELK(**TOLERANCES),
    "QuasiELK, radius 1": QuasiELK(**TOLERANCES, radius=1.0),
    "Jacobi": Jacobi(**TOLERANCES),
    "Picard": Picard(**TOLERANCES),
}


def euler(params: Any, z: Any, x: Any) -> Any:
    z = z + 0.001 * (jnp.tanh(params["W"][:8] @ z + params["U"][:8] @ x) - z)
    return z, z


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    problem = gru(jax.random.key(0), 1000, 8)

    @ft.partial(jax.jit, static_argnums=(0, 1))
    def solve(solver, step, params):
        f = lambda carry, x: step(params, carry, x)
        data = (problem.init, problem.xs)
        (_, ys), solution = scan(
            f, *data, solver=solver, throw=False, return_solution=True
        )
        deviation = jnp.abs(ys - lax.scan(f, *data)[1]).max()
        right = (solution.result == RESULTS.successful) & (deviation < 1e-7)
        return solution.stats, right

    for name, solver in SOLVERS.items():
        columns = []
        for step, scale in ((problem.step, 1), (problem.step, 2), (problem.step, 4)):
            params = jax.tree.map(lambda w, scale=scale: scale * w, problem.params)
            columns.append(solve(solver, step, params))
        columns.append(solve(solver, euler, problem.params))
        cells = [f"{int(s['num_steps'])}{'' if ok else ' WRONG'}" for s, ok in columns]
        if name == "DEER":
            exponents = [f"{float(s['lyapunov_exponent']):.3f}" for s, _ in columns]
            print("| Lyapunov exponent |", " | ".join(exponents), "|")
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
