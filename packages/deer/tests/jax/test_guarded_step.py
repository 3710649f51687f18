"""Implicit steps of which some have no solution, against their closed form."""

import functools as ft

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from parafix.core.testing.jax import assert_close
from parafix.deer.jax import diffeqsolve


# One program, which compiles for long.
pytestmark = pytest.mark.slow

DT, STEPS = 0.05, 20
NEWTON = optx.Newton(rtol=1e-11, atol=1e-11)
SOLVER = diffrax.ImplicitEuler(root_finder=NEWTON, root_find_max_steps=20)
# After four steps, within the sixth (to which the largest `a` has no solution), later.
SAVED = np.array([0.2, 0.27, 0.71])
Y0 = (jnp.array([1.0, 0.4]), jnp.array(0.5))
FAILED = diffrax.RESULTS.nonlinear_max_steps_reached


def solve(a, **options):
    # What the field closes over is differentiated.
    field = lambda t, y, args: jax.tree.map(lambda y: a * y**2, y)
    subs = diffrax.SubSaveAt(steps=True), diffrax.SubSaveAt(ts=jnp.asarray(SAVED))
    arguments = (diffrax.ODETerm(field), SOLVER, 0.0, DT * STEPS, DT, Y0)
    saveat = diffrax.SaveAt(subs=subs)
    return diffeqsolve(*arguments, saveat=saveat, **options)


def states(a, number=STEPS):
    """Of `y = before + DT a y^2` the solution near `before`, or NaN."""
    ys, after = Y0, []
    for _ in range(number):
        root = lambda y: 2 * y / (1 + jnp.sqrt(1 - 4 * DT * a * y))
        ys = jax.tree.map(root, ys)
        after.append(ys)
    return jax.tree.map(lambda *xs: jnp.stack(xs), *after)


def total(ys):
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(ys))


@ft.cache
def batch():
    def loss(a):
        solution = solve(a, throw=False)
        every, between = solution.ys
        return total(every) + total(between), solution

    return jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)))(
        jnp.array([-2.0, 2.0, 0.1])
    )


def test_values_and_results():
    (_, solution), _ = batch()
    every, between = solution.ys
    expected = jax.vmap(states)(jnp.array([-2.0, 2.0, 0.1]))
    for i in (0, 2):
        at = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
        assert_close(at(every), at(expected), 1e-10)
    # The first entry of the first leaf is what fails; the others go with its state.
    good = int(np.isfinite(expected[0][1, :, 0]).sum())
    assert 4 < good < STEPS
    assert_close(every[0][1, :good], expected[0][1, :good], 1e-10)
    for x in jax.tree.leaves(every):
        assert np.isnan(x[1, good:]).all()
    assert int(solution.stats["converged_prefix"][1]) == good
    results = [jax.tree.map(lambda x, i=i: x[i], solution.result) for i in range(3)]
    assert bool(results[1] == FAILED)
    assert all(bool(results[i] == diffrax.RESULTS.successful) for i in (0, 2))
    # Within a step that fails there is nothing to interpolate.
    inside = DT * good < SAVED
    assert inside[1]
    assert SAVED[1] < DT * (good + 1)
    assert (np.isnan(between[0][1]).all(1) == inside).all()


def test_gradients():
    _, gradient = batch()

    def loss(a, number):
        ys = states(a, number)
        # The interpolation of this solver is linear.
        starts = jax.tree.map(lambda y, x: jnp.concatenate([y[None], x]), Y0, ys)
        times = DT * np.arange(number + 1)
        saved = SAVED[times[-1] > SAVED]
        at = lambda x: jax.vmap(lambda x: jnp.interp(saved, times, x), 1, 1)(
            x.reshape(number + 1, -1)
        )
        return total(ys) + total(jax.tree.map(at, starts))

    # Of the one that fails it is that of the states which there are.
    for i, (a, number) in enumerate([(-2.0, STEPS), (2.0, 5), (0.1, STEPS)]):
        assert_close(gradient[i], jax.grad(loss)(a, number), 1e-8)


def test_a_failure_raises():
    with pytest.raises(eqx.EquinoxRuntimeError, match="First bad position: 5"):
        solve(2.0)
    with pytest.raises(eqx.EquinoxRuntimeError):
        jax.grad(lambda a: total(solve(a).ys))(2.0)
    loop = solve(2.0, root_finder="sequential", throw=False)
    assert bool(loop.result == FAILED)
