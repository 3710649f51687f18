"""Derivatives are those of the discrete solution, in every mode."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from parafix.core.testing.jax import assert_close, directional_derivative
from parafix.deer.jax import diffeqsolve


def field(t, y, args):
    return jnp.sin(args * t) - y * jnp.roll(y, 1) - args * y


TERM = diffrax.ODETerm(field)
Y0, ARGS = jnp.array([0.4, -0.3]), jnp.array(0.9)
GRID = jnp.linspace(0.0, 1.0, 31) ** 2 * 2.0
SAVED = jnp.array([0.011, 0.5, 1.3, 1.99])
WEIGHTS = jnp.cos(jnp.arange(12.0)).reshape(6, 2)

SOLVERS = {
    "tsit5": diffrax.Tsit5(),
    "kvaerno3": diffrax.Kvaerno3(root_finder=diffrax.VeryChord(rtol=1e-13, atol=1e-13)),
    "implicit-euler": diffrax.ImplicitEuler(
        root_finder=optx.Newton(rtol=1e-13, atol=1e-13)
    ),
    "reversible-heun": diffrax.ReversibleHeun(),
}


def loss_of(solve, name, **options):
    def loss(y0, args, grid, saved):
        solution = solve(
            *(TERM, SOLVERS[name], grid[0], grid[-1], None, y0, args),
            stepsize_controller=diffrax.StepTo(grid),
            saveat=diffrax.SaveAt(t0=True, ts=saved, t1=True),
            max_steps=30,
            **options,
        )
        return jnp.sum(WEIGHTS * solution.ys**2) + jnp.sum(solution.ts**2)

    return loss


POINT = (Y0, ARGS, GRID, SAVED)
DIRECTION = (
    jnp.array([0.3, -1.0]),
    jnp.array(0.5),
    jnp.sin(jnp.arange(31.0)) * GRID * (2.0 - GRID) * 0.05,
    jnp.array([0.1, -0.2, 0.3, -0.1]),
)


@pytest.mark.parametrize("name", SOLVERS)
def test_with_respect_to_states_arguments_and_times(name):
    adjoint = diffrax.DirectAdjoint()
    expected = jax.jit(
        jax.value_and_grad(
            loss_of(diffrax.diffeqsolve, name, adjoint=adjoint), (0, 1, 2, 3)
        )
    )(*POINT)
    actual = jax.jit(jax.value_and_grad(loss_of(diffeqsolve, name), (0, 1, 2, 3)))
    assert_close(actual(*POINT), expected, 1e-10)


def test_agrees_with_finite_differences():
    loss = jax.jit(loss_of(diffeqsolve, "tsit5"))
    gradient = jax.jit(jax.grad(loss_of(diffeqsolve, "tsit5"), (0, 1, 2, 3)))(*POINT)
    along = sum(jnp.sum(g * d) for g, d in zip(gradient, DIRECTION, strict=True))
    expected = directional_derivative(lambda p: loss(*p), POINT, DIRECTION, 1e-3)
    assert_close(along, expected, 1e-8)
    _, tangent = jax.jit(lambda p, v: jax.jvp(loss, p, v))(POINT, DIRECTION)
    assert_close(tangent, along, 1e-10)


def test_with_respect_to_the_ends_of_a_constant_grid():
    def loss(solve):
        def inner(t0, t1, dt0):
            solution = solve(
                *(TERM, diffrax.Heun(), t0, t1, dt0, Y0, ARGS),
                saveat=diffrax.SaveAt(steps=True),
                max_steps=20,
            )
            weights = jnp.cos(jnp.arange(20.0))
            return jnp.sum(weights[:, None] * solution.ys) + weights @ solution.ts

        return inner

    point = (0.1, 2.05, 0.1)
    expected = jax.grad(loss(diffrax.diffeqsolve), (0, 1, 2))(*point)
    assert_close(jax.grad(loss(diffeqsolve), (0, 1, 2))(*point), expected, 1e-10)


@pytest.mark.parametrize(
    "adjoint",
    [diffrax.RecursiveCheckpointAdjoint(), diffrax.ForwardMode(), "implicit"],
)
def test_adjoints_that_mean_the_same(adjoint):
    loss = loss_of(diffeqsolve, "tsit5", adjoint=adjoint)
    tangent = jax.jvp(lambda args: loss(Y0, args, GRID, SAVED), (ARGS,), (1.0,))[1]
    expected = jax.grad(loss_of(diffeqsolve, "tsit5"), 1)(*POINT)
    assert_close(tangent, expected, 1e-10)


@pytest.mark.parametrize("root_finder", ["sequential", "auto"])
def test_of_a_sequential_solve(root_finder):
    loss = loss_of(diffeqsolve, "tsit5", root_finder=root_finder)
    expected = jax.grad(loss_of(diffeqsolve, "tsit5"), (0, 1, 2, 3))(*POINT)
    assert_close(jax.grad(loss, (0, 1, 2, 3))(*POINT), expected, 1e-10)


def test_through_dense_output():
    def loss(solve):
        def inner(args, t):
            solution = solve(
                *(TERM, diffrax.Tsit5(), 0.0, 2.0, 0.1, Y0, args),
                saveat=diffrax.SaveAt(dense=True),
                max_steps=25,
            )
            return jnp.sum(solution.evaluate(t) ** 2)

        return inner

    point = (ARGS, jnp.array(1.234))
    expected = jax.grad(loss(diffrax.diffeqsolve), (0, 1))(*point)
    assert_close(jax.grad(loss(diffeqsolve), (0, 1))(*point), expected, 1e-10)


def test_the_guess_has_no_gradient():
    def loss(guess):
        solution = diffeqsolve(
            *(TERM, diffrax.Heun(), 0.0, 2.0, 0.1, Y0, ARGS), guess=guess
        )
        return jnp.sum(solution.ys)

    guess = jnp.broadcast_to(Y0, (20, 2))
    np.testing.assert_array_equal(jax.grad(loss)(guess), jnp.zeros((20, 2)))
