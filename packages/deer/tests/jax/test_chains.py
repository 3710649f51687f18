"""Chains that are no recurrent networks: a sampler, a deep stack; and long ones."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parafix.core.jax import RESULTS
from parafix.core.testing.jax import assert_close, directional_derivative, gru
from parafix.deer.jax import scan


def log_density(target, z):
    """Of two normal distributions of equal weight around `mean` and `-mean`."""
    mean, correlation = target["mean"], target["correlation"]
    covariance = jnp.eye(2) + correlation * jnp.array([[0.0, 1.0], [1.0, 0.0]])
    inner = mean @ jnp.linalg.solve(covariance, z)
    square = z @ jnp.linalg.solve(covariance, z)
    return jnp.logaddexp(inner, -inner) - square / 2


def langevin(target, z, key):
    """A step of the Metropolis-adjusted Langevin algorithm, all of its luck in `key`.

    Roberts and Tweedie, "Exponential convergence of Langevin distributions and their
    discrete approximations", Bernoulli 1996, section 1.4.
    """
    size = 0.6
    for_noise, for_decision = jax.random.split(key)
    score = jax.grad(log_density, 1)
    drift = lambda z: z + size * score(target, z)
    forth = jnp.sqrt(2 * size) * jax.random.normal(for_noise, (2,))
    proposal = drift(z) + forth
    back = z - drift(proposal)
    ratio = log_density(target, proposal) - log_density(target, z)
    ratio = ratio + (forth @ forth - back @ back) / (4 * size)
    accepted = jnp.log(jax.random.uniform(for_decision)) < ratio
    z = jnp.where(accepted, proposal, z)
    return z, (z, accepted)


@ft.cache
def expectation(solver):
    """An expectation over a run, its gradient in the target, and the run."""
    keys = jax.random.split(jax.random.key(0), 400)

    def mean(target):
        f = ft.partial(langevin, target)
        if solver is None:
            (_, (z, accepted)), solution = lax.scan(f, jnp.zeros(2), keys), None
        else:
            (_, (z, accepted)), solution = scan(
                f, jnp.zeros(2), keys, solver=solver, throw=False, return_solution=True
            )
        return jnp.mean(z[:, 0] * z[:, 1] + z[:, 0] ** 2), (z, accepted, solution)

    target = {"mean": jnp.array([1.0, 0.5]), "correlation": jnp.array(0.5)}
    return jax.jit(jax.value_and_grad(mean, has_aux=True))(target)


@pytest.mark.parametrize(
    ("solver", "most"),
    [("deer", 30), pytest.param("quasi-deer", 150, marks=pytest.mark.slow)],
)
def test_a_markov_chain_is_its_sequential_run(solver, most):
    (mean, (z, accepted, solution)), gradient = expectation(solver)
    (expected_mean, (expected_z, decisions, _)), expected = expectation(None)
    # There is something to decide, and the sampler sees both of its modes.
    assert 0.6 < np.mean(decisions) < 0.9
    assert np.sum(expected_z[1:, 0] * expected_z[:-1, 0] < 0) > 20
    np.testing.assert_array_equal(accepted, decisions)
    assert_close((mean, z), (expected_mean, expected_z), 1e-9)
    assert_close(gradient, expected, 1e-9)
    assert np.abs(gradient["mean"]).min() > 0.1
    assert solution.result == RESULTS.successful
    assert solution.stats["lyapunov_exponent"] < 0
    assert solution.stats["num_steps"] < most


class TestDecisions:
    """A step may jump, and a state may lie on the other side than the one before it."""

    TOLERANCE = 1e-2
    INPUTS = jnp.sin(0.7 * jnp.arange(60.0))

    def step(self, threshold, carry, x):
        h, s = carry
        above = jnp.where(h > threshold, 1.0, -1.0)
        s = 0.5 * s + jnp.where(x > 0.9, above, 0.0)
        return (jnp.tanh(1.5 * h + x), s), s

    def solve(self, threshold):
        f, init = ft.partial(self.step, threshold), (jnp.zeros(()), jnp.zeros(()))
        tolerances = {"rtol": self.TOLERANCE, "atol": self.TOLERANCE}
        solve = ft.partial(scan, solver="deer", throw=False, return_solution=True)
        (_, ys), solution = solve(f, init, self.INPUTS, **tolerances)
        return ys, solution, lax.scan(f, init, self.INPUTS)[1]

    def test_between_the_last_two_iterates(self):
        # Loose tolerances leave room between the two. Thresholds all around the values
        # of `h` where it is looked at, of which some lie there.
        f = lambda h, x: (jnp.tanh(1.5 * h + x), h)
        _, h = lax.scan(f, jnp.zeros(()), self.INPUTS)
        around = jnp.linspace(-2, 2, 41) * self.TOLERANCE
        thresholds = (h[self.INPUTS > 0.9][:, None] + around[None]).ravel()
        ys, solution, expected = jax.jit(jax.vmap(self.solve))(thresholds)
        assert (solution.result == RESULTS.successful).all()
        assert (solution.stats["residual"] <= 1).all()
        assert_close(ys, expected, 10 * self.TOLERANCE)


class TestResidualStack:
    """Depth as time, and the weights of a layer as the input at that time."""

    DEPTH, SIZE = 1000, 8

    @staticmethod
    def layer(h, weights):
        h = h + jnp.tanh(weights["matrix"] @ h + weights["bias"]) / 1000**0.5
        return h, None

    @pytest.mark.parametrize("solver", ["deer", "picard"])
    def test_values_and_the_gradients_of_all_layers(self, solver):
        draw = np.random.default_rng(0)
        shapes = {"matrix": (self.SIZE, self.SIZE), "bias": (self.SIZE,)}
        weights = {
            name: jnp.asarray(draw.normal(size=(self.DEPTH, *shape)))
            for name, shape in shapes.items()
        }
        init = jnp.asarray(draw.normal(size=self.SIZE))

        def gradient(solve):
            def loss(weights, init):
                (last, _), solution = solve(self.layer, init, weights)
                return jnp.sum(jnp.sin(last)), (last, solution)

            derive = jax.value_and_grad(loss, (0, 1), has_aux=True)
            return jax.jit(derive)(weights, init)

        solve = ft.partial(scan, solver=solver, return_solution=True)
        (value, (last, solution)), actual = gradient(solve)
        loop = gradient(lambda *problem: (lax.scan(*problem), None))
        (expected_value, (expected_last, _)), expected = loop
        assert_close((value, last), (expected_value, expected_last), 1e-9)
        # The share of a layer is small: compared in units of its own size.
        unit = jax.tree.map(lambda x: jnp.abs(x).max(), expected)
        scaled = lambda tree: jax.tree.map(jnp.divide, tree, unit)
        assert_close(scaled(actual), scaled(expected), 1e-9)
        assert solution.result == RESULTS.successful
        assert solution.stats["num_steps"] < (10 if solver == "deer" else 60)


class TestLongSequences:
    LENGTH = 127_323

    @staticmethod
    def gradient(problem, solve):
        """The mean of a function of all outputs, its gradient, and the outputs."""

        def loss(params, init, xs):
            (_, ys), solution = solve(problem.bind(params), init, xs)
            return jnp.mean(jnp.sin(2 * ys)), (ys, solution)

        derive = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
        arguments = problem.params, problem.init, problem.xs
        return loss, arguments, jax.jit(derive)(*arguments)

    @pytest.mark.parametrize(
        ("solver", "dtype", "tolerance"),
        [
            ("deer", jnp.float32, 1e-5),
            pytest.param("deer", jnp.float64, 1e-9, marks=pytest.mark.slow),
            pytest.param("quasi-deer", jnp.float32, 1e-5, marks=pytest.mark.slow),
            pytest.param("quasi-deer", jnp.float64, 1e-9, marks=pytest.mark.slow),
        ],
    )
    def test_values_and_gradients(self, solver, dtype, tolerance):
        problem = gru(jax.random.key(0), self.LENGTH, 4, dtype=dtype)
        _, _, ((value, (ys, solution)), actual) = self.gradient(
            problem, ft.partial(scan, solver=solver, return_solution=True)
        )
        assert solution.result == RESULTS.successful
        assert solution.stats["num_steps"] < (20 if solver == "deer" else 50)
        # The loop in float64, of the same numbers.
        wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)
        params, init, xs = wide((problem.params, problem.init, problem.xs))
        problem = type(problem)(problem.step, params, init, xs)
        loss, arguments, ((expected_value, (expected_ys, _)), expected) = self.gradient(
            problem, lambda *problem: (lax.scan(*problem), None)
        )
        found = wide((value, ys, actual))
        assert_close(found, (expected_value, expected_ys, expected), tolerance)
        # And the gradient of the loop is one: along a line, by differences.
        direction = jax.tree.map(lambda x: jnp.sin(3 * x) + 0.1, arguments[0])
        along = jax.jit(lambda params: loss(params, *arguments[1:])[0])
        difference = directional_derivative(along, arguments[0], direction, 3e-3)
        products = jax.tree.map(lambda g, v: jnp.sum(g * v), found[2][0], direction)
        product = sum(map(float, jax.tree.leaves(products)))
        np.testing.assert_allclose(product, difference, rtol=0, atol=tolerance)
