"""The numbers of `diffrax.diffeqsolve`, and its derivatives, for every solver."""

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
from parafix.core.testing.jax import assert_close, directional_derivative
from parafix.deer.jax import diffeqsolve


def pendulum(t, y, args):
    position, velocity = y
    force = -args * jnp.sin(position) - 0.2 * velocity + 0.3 * jnp.cos(t)
    return velocity, force


ODE = diffrax.ODETerm(pendulum)
NEWTON = optx.Newton(rtol=1e-12, atol=1e-12)
EVERY_DAY = {
    "tsit5": diffrax.Tsit5(),
}
SLOW = {
    "implicit-euler": diffrax.ImplicitEuler(root_finder=NEWTON),
    "euler": diffrax.Euler(),
    "heun": diffrax.Heun(),
    "midpoint": diffrax.Midpoint(),
    "dopri5": diffrax.Dopri5(),
    "dopri8": diffrax.Dopri8(),
    "kvaerno3": diffrax.Kvaerno3(root_finder=NEWTON),
    "kvaerno5": diffrax.Kvaerno5(root_finder=NEWTON),
    "reversible-heun": diffrax.ReversibleHeun(),
    "leapfrog": diffrax.LeapfrogMidpoint(),
    "half": diffrax.HalfSolver(diffrax.Heun()),
}
SOLVERS = {**EVERY_DAY, **SLOW}

# Uneven steps; between them, on them and at both ends what is saved.
GRID = jnp.linspace(0.0, 1.0, 41) ** 2 * 2.0 + 0.05 * jnp.linspace(0.0, 1.0, 41)
SAVED = jnp.array([0.0, 0.013, 0.5, GRID[20], 1.3, 2.0, 2.05])
POINT = ((jnp.array(0.7), jnp.array(-0.2)), jnp.array(2.0), GRID, SAVED)


def loss_of(solve, solver, **options):
    """A scalar, and what it is made of, of states, arguments and times."""

    def loss(y0, args, grid, saved):
        subs = {
            "all": diffrax.SubSaveAt(t0=True, ts=saved, steps=3, t1=True),
            "one": diffrax.SubSaveAt(t1=True, fn=lambda t, y, args: (t * y[0], args)),
        }
        solution = solve(
            *(ODE, solver, grid[0], grid[-1], None, y0, args),
            stepsize_controller=diffrax.StepTo(grid),
            saveat=diffrax.SaveAt(subs=subs),
            max_steps=40,
            **options,
        )
        leaves = jax.tree.leaves((solution.ts, solution.ys))
        return sum(jnp.sum(jnp.sin(x + 1.0)) for x in leaves), solution

    return loss


@ft.cache
def gradients(solve, name, **options):
    loss = loss_of(solve, SOLVERS[name], **options)
    gradient = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)
    (_, solution), gradient = jax.jit(gradient)(*POINT)
    return solution, gradient


def assert_same(ours, theirs, tolerance=1e-12):
    assert_close((ours.ts, ours.ys), (theirs.ts, theirs.ys), tolerance)


@pytest.mark.parametrize(
    "name", [*EVERY_DAY, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_agrees_with_diffrax(name):
    ours, gradient = gradients(diffeqsolve, name)
    # Diffrax's direct adjoint takes no `HalfSolver`.
    direct = name != "half"
    adjoint = (
        diffrax.DirectAdjoint() if direct else diffrax.RecursiveCheckpointAdjoint()
    )
    theirs, expected = gradients(diffrax.diffeqsolve, name, adjoint=adjoint)
    assert_same(ours, theirs)
    assert_close(gradient, expected, 1e-10)
    for number in ("num_steps", "num_accepted_steps", "num_rejected_steps"):
        assert int(ours.stats[number]) == int(theirs.stats[number])
    assert bool(ours.result == diffrax.RESULTS.successful)
    assert bool(ours.stats["result"] == RESULTS.successful)
    # The states were not found one after the other.
    assert int(ours.stats["num_sweeps"]) <= 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"window": 8},
        {"guess": "constant"},
        {"root_finder": "quasi-deer"},
        {"root_finder": "sequential"},
        {"root_finder": "auto"},
        {"adjoint": diffrax.RecursiveCheckpointAdjoint()},
        {"adjoint": "implicit", "root_finder": "sequential"},
    ],
    ids=str,
)
def test_however_it_is_solved(options):
    loss = loss_of(diffeqsolve, SOLVERS["tsit5"], **options)
    gradient = jax.grad(loss, (0, 1, 2, 3), has_aux=True)
    gradient, solution = jax.jit(gradient)(*POINT)
    expected_solution, expected = gradients(diffeqsolve, "tsit5")
    assert_same(solution, expected_solution, 1e-11)
    assert_close(gradient, expected, 1e-10)


@pytest.mark.slow
def test_derivatives_agree_with_finite_differences():
    loss = jax.jit(loss_of(diffeqsolve, SOLVERS["tsit5"]))
    scalar = lambda point: loss(*point)[0]
    _, gradient = gradients(diffeqsolve, "tsit5")
    inside = SAVED * (2.05 - SAVED) * jnp.where(GRID[20] == SAVED, 0.0, 1.0)
    direction = (
        (jnp.array(0.3), jnp.array(-1.0)),
        jnp.array(0.5),
        jnp.sin(jnp.arange(41.0)) * GRID * (2.05 - GRID) * 0.05,
        0.1 * inside,
    )
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    along = sum(jnp.sum(g * d) for g, d in pairs)
    # A step beyond which no time that is saved gets into another step of the grid.
    expected = directional_derivative(scalar, POINT, direction, 1e-3)
    assert_close(along, expected, 1e-8)
    _, tangent = jax.jvp(scalar, (POINT,), (direction,))
    assert_close(tangent, along, 1e-10)


@pytest.mark.slow
def test_second_derivatives():
    def loss(solve, **options):
        def inner(args):
            arguments = (ODE, diffrax.Heun(), 0.0, 2.0, 0.1, POINT[0], args)
            return solve(*arguments, max_steps=20, **options).ys[0][-1]

        return inner

    theirs = loss(diffrax.diffeqsolve, adjoint=diffrax.DirectAdjoint())
    expected = jax.hessian(theirs)(POINT[1])
    assert_close(jax.hessian(loss(diffeqsolve))(POINT[1]), expected, 1e-10)


def both(terms, solver, *args, **options):
    ours = diffeqsolve(terms, solver, *args, **options)
    theirs = diffrax.diffeqsolve(terms, solver, *args, **options)
    assert bool(ours.result == diffrax.RESULTS.successful)
    return ours, theirs


@pytest.mark.parametrize(
    "solver",
    [
        diffrax.EulerHeun(),
        pytest.param(diffrax.ReversibleHeun(), marks=pytest.mark.slow),
    ],
)
def test_one_path_of_an_sde(solver):
    path = diffrax.VirtualBrownianTree(
        0.0, 2.0, tol=1e-3, shape=(), key=jax.random.key(3)
    )
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: -y + jnp.sin(t)),
        diffrax.ControlTerm(lambda t, y, args: 0.4 * jnp.cos(y), path),
    )
    save = diffrax.SaveAt(ts=jnp.linspace(0.0, 2.0, 7), t1=True)
    assert_same(*both(terms, solver, 0.0, 2.0, 0.05, jnp.array(0.3), saveat=save))


LINEAR = diffrax.ODETerm(lambda t, y, args: args * y * jnp.cos(t))


def test_backward_in_time():
    # A solver with a memory, of which the time is a part.
    save = diffrax.SaveAt(
        t0=True, ts=jnp.array([2.0, 1.99, 0.5, -1.0]), fn=lambda t, y, args: (t, y)
    )
    arguments = (2.0, -1.0, -0.07, jnp.ones(2), jnp.array(0.8))
    solver = diffrax.LeapfrogMidpoint()
    assert_same(*both(LINEAR, solver, *arguments, saveat=save))


@pytest.mark.slow
def test_backward_to_given_times():
    ts = -jnp.sort(jax.random.uniform(jax.random.key(0), (40,)))
    arguments = (LINEAR, diffrax.Heun(), ts[0], ts[-1], None, jnp.ones(2), 1.5)
    options = {
        "saveat": diffrax.SaveAt(t0=True, steps=True),
        "stepsize_controller": diffrax.StepTo(ts),
        "max_steps": 39,
    }
    ours, theirs = both(*arguments, **options)
    np.testing.assert_array_equal(ours.ts, ts)
    assert_same(ours, theirs)


@pytest.mark.slow
def test_a_symplectic_solver_takes_a_pair_of_terms():
    terms = (
        diffrax.ODETerm(lambda t, v, args: v),
        diffrax.ODETerm(lambda t, x, args: -jnp.sin(x)),
    )
    y0 = (jnp.array([0.5, 1.0]), jnp.zeros(2))
    save = diffrax.SaveAt(ts=jnp.array([0.2, 1.9]))
    solver = diffrax.SemiImplicitEuler()
    assert_same(*both(terms, solver, 0.0, 2.0, 0.05, y0, saveat=save))


@pytest.mark.slow
def test_complex_states():
    rotation = diffrax.ODETerm(lambda t, y, args: args * y * (1 - y * jnp.conj(y)))
    y0, args = jnp.array([0.2 + 0.1j]), jnp.array(1.0 + 2.0j)
    with pytest.warns(UserWarning, match="Complex"):
        ours, theirs = both(rotation, diffrax.Heun(), 0.0, 2.0, 0.05, y0, args)
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("t0", "t1", "dt0"),
    [
        (0, 1, 0.3),
        (0.1, 0.7, 0.1),
        (0.0, 1.0, 7.0),
        pytest.param(0.0, 1.0, 1.0, marks=pytest.mark.slow),
        pytest.param(3.0, -1.0, -0.35, marks=pytest.mark.slow),
        pytest.param(*map(np.float32, (0.0, 1.0, 0.1)), marks=pytest.mark.slow),
    ],
)
def test_grids_of_constant_steps(t0, t1, dt0):
    y0 = jnp.ones(1, np.asarray(t0 + 0.0).dtype)
    arguments = (LINEAR, diffrax.Euler(), t0, t1, dt0, y0, y0[0])
    options = {"saveat": diffrax.SaveAt(t0=True, steps=True, t1=True), "max_steps": 12}
    ours = diffeqsolve(*arguments, **options, root_finder="sequential")
    theirs = diffrax.diffeqsolve(*arguments, **options)
    # The same number of times. They may differ in the last bit: a compiler may fuse a
    # product with a sum inside of Diffrax's loop, and not outside of one.
    assert_same(ours, theirs, 2 * float(jnp.finfo(y0.dtype).eps))
    assert int(ours.stats["num_steps"]) == int(theirs.stats["num_steps"])


@pytest.mark.slow
def test_derivatives_with_respect_to_the_ends_of_a_constant_grid():
    def loss(solve):
        def inner(t0, t1, dt0):
            solution = solve(
                *(LINEAR, diffrax.Heun(), t0, t1, dt0, jnp.ones(2), 0.8),
                saveat=diffrax.SaveAt(steps=True),
                max_steps=20,
            )
            weights = jnp.cos(jnp.arange(20.0))
            return jnp.sum(weights[:, None] * solution.ys) + weights @ solution.ts

        return inner

    point = (0.1, 2.05, 0.1)
    expected = jax.grad(loss(diffrax.diffeqsolve), (0, 1, 2))(*point)
    assert_close(jax.grad(loss(diffeqsolve), (0, 1, 2))(*point), expected, 1e-10)


def test_every_sample_of_a_batch():
    @jax.jit
    @jax.vmap
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("euler", 1),
        ("heun", 2),
        ("midpoint", 2),
        ("tsit5", 5),
        ("dopri5", 5),
        ("implicit-euler", 1),
        ("kvaerno3", 3),
        ("kvaerno5", 5),
        ("reversible-heun", 2),
    ],
)
def test_order_of_convergence(name, order):
    term = diffrax.ODETerm(lambda t, y, args: y * (1 - y))

    # One program for all: 40 steps of any size, of which some lead to t=2.
    @jax.jit
    def error(dt):
        times = dt * jnp.arange(41.0)
        solution = diffeqsolve(
            *(term, SOLVERS[name], 0.0, times[-1], None, jnp.array(0.1)),
            stepsize_controller=diffrax.StepTo(times),
            saveat=diffrax.SaveAt(ts=jnp.array([2.0])),
        )
        return jnp.abs(solution.ys[0] - 1 / (1 + 9 * jnp.exp(-2.0)))

    dts = 2.0 / np.array([20, 28, 40])
    errors = [float(error(dt)) for dt in dts]
    slope = np.polyfit(np.log(dts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.2


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
    monkeypatch.delitem(sys.modules, "parafix.deer.jax._diffeqsolve")
    with pytest.raises(ModuleNotFoundError, match=r"parafix-deer\[jax\]"):
        _ = parafix.deer.jax.diffeqsolve
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = parafix.deer.jax.no_such_name
