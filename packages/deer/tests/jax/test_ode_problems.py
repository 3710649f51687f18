"""Problems of the literature, on grids, against SciPy's adaptive solvers."""

import diffrax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from scipy.integrate import solve_ivp as scipy_solve

from parafix.core.jax import RESULTS
from parafix.deer.jax import diffeqsolve


def fitzhugh_nagumo(t, y, args):
    v, w = y
    return jnp.stack([v - v**3 / 3 - w + 0.5, (v + 0.7 - 0.8 * w) / 12.5])


def lotka_volterra(t, y, args):
    prey, predators = y
    return jnp.stack(
        [1.1 * prey - 0.4 * prey * predators, 0.1 * prey * predators - 0.4 * predators]
    )


def rigid_body(t, y, args):
    """Euler's equations; Hairer, Norsett and Wanner 1993, section II.10."""
    return jnp.stack([-2 * y[1] * y[2], 1.25 * y[0] * y[2], -0.5 * y[0] * y[1]])


def henon_heiles(t, y, args):
    q, p, u, v = y
    return jnp.stack([u, v, -q - 2 * q * p, -p - q**2 + p**2])


def robertson(t, y, args):
    slow, fast, worn = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return jnp.stack([fast - slow, slow - fast - worn, worn])


def van_der_pol(t, y, args):
    return jnp.stack([y[1], 1e3 * (1 - y[0] ** 2) * y[1] - y[0]])


# Field, start, end, solver, and how far it may be from the solution: by its order and
# the length of its steps.
SMOOTH = {
    "FitzHugh-Nagumo": (fitzhugh_nagumo, [-1.0, 1.0], 40.0, diffrax.Tsit5(), 1e-6),
    "Lotka-Volterra": (lotka_volterra, [10.0, 5.0], 20.0, diffrax.Dopri5(), 1e-5),
    "rigid body": (rigid_body, [1.0, 0.0, 0.9], 10.0, diffrax.Dopri8(), 1e-10),
    "Henon-Heiles": (henon_heiles, [0.0, 0.1, 0.4, 0.0], 30.0, diffrax.Tsit5(), 1e-6),
}
STIFF = {
    "Robertson": (robertson, [1.0, 0.0, 0.0], (1e-5, 1e5)),
    # Along the slow branch; at 807 it jumps.
    "van der Pol": (van_der_pol, [2.0, 0.0], (1e-4, 5e2)),
}


def expected(field, y0, ts, method):
    right = lambda t, y: np.asarray(field(t, jnp.asarray(y), None))
    options = {"t_eval": ts, "rtol": 1e-11, "atol": 1e-13}
    return scipy_solve(right, (ts[0], ts[-1]), y0, method, **options).y.T


@pytest.mark.parametrize(
    "name", ["rigid body", *(pytest.param(x, marks=pytest.mark.slow) for x in SMOOTH)]
)
def test_smooth(name):
    field, y0, end, solver, tolerance = SMOOTH[name]
    ts = np.linspace(0, end, 301)
    solution = diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        end,
        end / 300,
        jnp.array(y0),
        saveat=diffrax.SaveAt(t0=True, steps=True),
    )
    assert solution.stats["result"] == RESULTS.successful
    truth = expected(field, y0, ts, "DOP853")
    np.testing.assert_allclose(solution.ts, ts, atol=1e-12)
    np.testing.assert_allclose(solution.ys, truth, atol=tolerance * np.abs(truth).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", STIFF)
def test_stiff_on_a_grid_that_grows(name):
    field, y0, (first, end) = STIFF[name]
    ts = np.concatenate([[0.0], np.geomspace(first, end, 400)])
    root_finder = optx.Newton(rtol=1e-10, atol=1e-12)
    solver = diffrax.Kvaerno5(root_finder=root_finder, root_find_max_steps=50)
    solution = diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        end,
        None,
        jnp.array(y0),
        stepsize_controller=diffrax.StepTo(jnp.asarray(ts)),
        saveat=diffrax.SaveAt(steps=True),
    )
    assert solution.stats["result"] == RESULTS.successful
    truth = expected(field, y0, ts, "Radau")[1:]
    # Of each component, relative to the largest it ever is.
    error = np.abs(np.asarray(solution.ys) - truth).max(0) / np.abs(truth).max(0)
    assert (error < 1e-5).all()
