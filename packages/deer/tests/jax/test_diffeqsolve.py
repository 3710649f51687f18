"""The numbers of `diffrax.diffeqsolve`, for every kind of solver."""

import functools as ft
import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import parafix.deer.jax
from parafix.core.jax import RESULTS
from parafix.core.testing.jax import assert_close
from parafix.deer.jax import diffeqsolve


TIGHT = optx.Newton(rtol=1e-13, atol=1e-13)
CHORD = diffrax.VeryChord(rtol=1e-13, atol=1e-13)


def pendulum(t, y, args):
    position, velocity = y
    force = -args * jnp.sin(position) - 0.2 * velocity + 0.3 * jnp.cos(t)
    return velocity, force


Y0 = (jnp.array(0.7), jnp.array(-0.2))
ARGS = jnp.array(2.0)
ODE = diffrax.ODETerm(pendulum)

ODE_SOLVERS = {
    "euler": diffrax.Euler(),
    "heun": diffrax.Heun(),
    "midpoint": diffrax.Midpoint(),
    "tsit5": diffrax.Tsit5(),
    "dopri5": diffrax.Dopri5(),
    "dopri8": diffrax.Dopri8(),
    "implicit-euler": diffrax.ImplicitEuler(root_finder=TIGHT),
    "kvaerno3": diffrax.Kvaerno3(root_finder=CHORD),
    "kvaerno5": diffrax.Kvaerno5(root_finder=CHORD),
    "reversible-heun": diffrax.ReversibleHeun(),
    "leapfrog": diffrax.LeapfrogMidpoint(),
    "half": diffrax.HalfSolver(diffrax.Heun()),
}

# Between, on and beside the times of the grid, and both ends.
TS = jnp.array([0.0, 0.013, 0.05, 0.1, 1.234, 1.25, 2.049, 2.05])
SAVEAT = diffrax.SaveAt(
    subs={
        "all": diffrax.SubSaveAt(t0=True, ts=TS, steps=3, t1=True),
        "last": diffrax.SubSaveAt(t1=True, fn=lambda t, y, args: (t * y[0], args)),
    }
)


@ft.cache
def solution(solve, name, **options):
    @jax.jit
    def run(y0, args):
        return solve(
            *(ODE, ODE_SOLVERS[name], 0.0, 2.05, 0.05, y0, args),
            saveat=SAVEAT,
            max_steps=41,
            **options,
        )

    return run(Y0, ARGS)


@pytest.mark.parametrize("name", ODE_SOLVERS)
def test_agrees_with_diffrax(name):
    ours, theirs = solution(diffeqsolve, name), solution(diffrax.diffeqsolve, name)
    assert_close((ours.ts, ours.ys), (theirs.ts, theirs.ys), 1e-12)
    assert int(ours.stats["num_steps"]) == int(theirs.stats["num_steps"]) == 41
    assert bool(ours.result == diffrax.RESULTS.successful)
    assert bool(ours.stats["result"] == RESULTS.successful)
    # The states were not found one after the other.
    assert int(ours.stats["num_sweeps"]) <= 10


def both(terms, solver, *args, **options):
    """The solutions of both, and whether the first says that it went well."""
    ours = diffeqsolve(terms, solver, *args, **options)
    options = {"max_steps": 200, **options}
    for name in ("root_finder", "guess", "window", "max_sweeps"):
        options.pop(name, None)
    theirs = diffrax.diffeqsolve(terms, solver, *args, **options)
    assert bool(ours.result == diffrax.RESULTS.successful)
    return ours, theirs


def assert_same(ours, theirs, tolerance=1e-12):
    assert_close((ours.ts, ours.ys), (theirs.ts, theirs.ys), tolerance)


@pytest.mark.parametrize("solver", [diffrax.EulerHeun(), diffrax.ReversibleHeun()])
def test_one_path_of_an_sde(solver):
    path = diffrax.VirtualBrownianTree(
        0.0, 2.0, tol=1e-3, shape=(), key=jax.random.key(3)
    )
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: -y + jnp.sin(t)),
        diffrax.ControlTerm(lambda t, y, args: 0.4 * jnp.cos(y), path),
    )
    save = diffrax.SaveAt(ts=jnp.linspace(0.0, 2.0, 7), t1=True)
    assert_same(*both(terms, solver, 0.0, 2.0, 0.02, jnp.array(0.3), saveat=save))


def test_a_symplectic_solver_takes_a_pair_of_terms():
    terms = (
        diffrax.ODETerm(lambda t, v, args: v),
        diffrax.ODETerm(lambda t, x, args: -jnp.sin(x)),
    )
    y0 = (jnp.array([0.5, 1.0]), jnp.zeros(2))
    save = diffrax.SaveAt(ts=jnp.array([0.2, 1.9]))
    solver = diffrax.SemiImplicitEuler()
    assert_same(*both(terms, solver, 0.0, 2.0, 0.05, y0, saveat=save))


LINEAR = diffrax.ODETerm(lambda t, y, args: args * y * jnp.cos(t))


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.LeapfrogMidpoint()])
def test_backward_in_time(solver):
    save = diffrax.SaveAt(
        t0=True, ts=jnp.array([2.0, 1.99, 0.5, -1.0]), fn=lambda t, y, args: (t, y)
    )
    arguments = (2.0, -1.0, -0.07, jnp.ones(2), jnp.array(0.8))
    assert_same(*both(LINEAR, solver, *arguments, saveat=save))


def test_complex_states():
    rotation = diffrax.ODETerm(lambda t, y, args: args * y * (1 - jnp.abs(y) ** 2))
    y0, args = jnp.array([0.2 + 0.1j]), jnp.array(1.0 + 2.0j)
    with pytest.warns(UserWarning, match="Complex"):
        ours, theirs = both(rotation, diffrax.Heun(), 0.0, 2.0, 0.05, y0, args)
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("t0", "t1", "dt0"),
    [
        (0, 1, 0.3),
        (0.0, 1.0, 1.0),
        (0.0, 1.0, 7.0),
        (0.1, 0.7, 0.1),
        (-0.3, 0.0, 0.1),
        (0.5, 0.5, 0.1),
        (np.float32(0.0), np.float32(1.0), np.float32(0.1)),
    ],
)
def test_grids_of_constant_steps(t0, t1, dt0):
    save = diffrax.SaveAt(t0=True, steps=True, t1=True)
    y0 = jnp.ones(1, np.asarray(t0 + 0.0).dtype)
    arguments = (LINEAR, diffrax.Euler(), t0, t1, dt0, y0, y0[0])
    ours = diffeqsolve(*arguments, saveat=save, max_steps=12)
    theirs = diffrax.diffeqsolve(*arguments, saveat=save, max_steps=12)
    # The very same times.
    np.testing.assert_array_equal(ours.ts, theirs.ts)
    assert_close(ours.ys, theirs.ys, 1e-12 if ours.ys.dtype == float else 1e-5)
    assert int(ours.stats["num_steps"]) == int(theirs.stats["num_steps"])


@pytest.mark.parametrize("sign", [1, -1])
def test_times_to_step_to(sign):
    ts = sign * jnp.sort(jax.random.uniform(jax.random.key(0), (40,)))
    save = diffrax.SaveAt(t0=True, steps=True)
    arguments = (LINEAR, diffrax.Heun(), ts[0], ts[-1], None, jnp.ones(2), 1.5)
    controller = diffrax.StepTo(ts)
    options = {"saveat": save, "stepsize_controller": controller, "max_steps": 39}
    ours, theirs = both(*arguments, **options)
    np.testing.assert_array_equal(ours.ts, ts)
    assert_same(ours, theirs)


def test_every_sample_of_a_batch():
    @jax.jit
    @ft.partial(jax.vmap, in_axes=(0, 0))
    def ours(y0, args):
        solution = diffeqsolve(LINEAR, diffrax.Heun(), 0.0, 2.0, 0.05, y0, args)
        return solution.ys[-1], solution.stats["num_sweeps"]

    y0, args = jnp.array([[1.0], [0.3], [-2.0]]), jnp.array([0.1, -1.0, 2.0])
    ys, sweeps = ours(y0, args)
    for i in range(3):
        arguments = (0.0, 2.0, 0.05, y0[i], args[i])
        expected = diffrax.diffeqsolve(LINEAR, diffrax.Heun(), *arguments)
        assert_close(ys[i], expected.ys[-1], 1e-12)
    assert sweeps.shape == (3,)


ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "tsit5": 5, "implicit-euler": 1}


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name):
    # y' = y cos(t) from 1 is exp(sin(t)).
    steps = np.array([20, 28, 40])
    errors = []
    for number in steps:
        arguments = (0.0, 2.0, 2.0 / number, jnp.ones(1), jnp.array(1.0))
        solution = diffeqsolve(LINEAR, ODE_SOLVERS[name], *arguments)
        errors.append(abs(float(solution.ys[-1, 0]) - np.exp(np.sin(2.0))))
    slope = np.polyfit(np.log(2.0 / steps), np.log(errors), 1)[0]
    assert abs(slope - ORDERS[name]) < 0.2


@pytest.mark.parametrize("root_finder", ["quasi-deer", "sequential", "auto"])
def test_other_root_finders(root_finder):
    ours = solution(diffeqsolve, "heun", root_finder=root_finder)
    theirs = solution(diffrax.diffeqsolve, "heun")
    assert_close((ours.ts, ours.ys), (theirs.ts, theirs.ys), 1e-11)


def test_windows():
    ours = solution(diffeqsolve, "heun", window=8)
    theirs = solution(diffrax.diffeqsolve, "heun")
    assert_close((ours.ts, ours.ys), (theirs.ts, theirs.ys), 1e-11)


def test_diffrax_is_loaded_on_first_use():
    program = (
        "import sys, parafix.deer.jax\n"
        "assert 'diffrax' not in sys.modules\n"
        "from parafix.deer.jax import diffeqsolve\n"
        "assert 'diffrax' in sys.modules\n"
        "assert parafix.deer.jax.diffeqsolve is diffeqsolve\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_without_diffrax(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    for name in [name for name in sys.modules if "parafix.deer.jax._diffeq" in name]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=r"parafix-deer\[jax\]"):
        _ = parafix.deer.jax.diffeqsolve
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = parafix.deer.jax.no_such_name
