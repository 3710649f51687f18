import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gru import gru, Problem, SEQUENTIAL
from benchmarks.harness import deviation
from benchmarks.jax_programs import in_float64, named_arrays
from benchmarks.textbook import apart, textbook_deer, textbook_sweeps, together


PROBLEM = Problem(3, 40, 4)


@pytest.fixture(params=[apart, together])
def solve(request):
    def states(weights, init, xs):
        return textbook_deer(gru, weights, init, xs, 1e-11, 1e-11, request.param)

    return states


def test_values(solve):
    found = in_float64(PROBLEM.batched(solve), *PROBLEM.arguments)
    assert deviation(named_arrays(found), PROBLEM.forward_reference) < 1e-12


def test_gradients(solve):
    def loss(states):
        weight = jnp.arange(states.size).reshape(states.shape) % 7
        return jnp.sum(weight * states**2)

    def gradient(function):
        return jax.grad(
            lambda *arguments: loss(PROBLEM.batched(function)(*arguments)), (0, 1, 2)
        )

    arguments = (PROBLEM.arguments[0], np.full((3, 4), 0.3), PROBLEM.arguments[2])
    found = in_float64(gradient(solve), *arguments)
    right = in_float64(gradient(SEQUENTIAL.states), *arguments)
    assert deviation(named_arrays(found), named_arrays(right)) < 1e-10


@pytest.mark.parametrize("length", [1, 2, 7])
def test_ends_after_as_many_sweeps_as_there_are_steps(length):
    problem = Problem(None, length, 2)
    weights, init, xs = problem.arguments
    states, sweeps = textbook_sweeps(
        gru, weights, jnp.asarray(init), jnp.asarray(xs), 0.0, 0.0
    )
    assert 1 <= int(sweeps) <= length
    assert deviation(named_arrays(states), problem.forward_reference) < 1e-6


def test_residual_is_that_of_the_states():
    states = np.array(jax.jit(PROBLEM.forward(SEQUENTIAL))(*PROBLEM.arguments))
    assert PROBLEM.residual(states) < 1
    states[1, 20, 2] += 1e-2
    assert PROBLEM.residual(states) > 100
