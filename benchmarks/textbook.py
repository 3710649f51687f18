"""A plain implementation of DEER, as one would write it from the paper.

Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over the
sequence length", ICLR 2024, equation 5; derivatives by the implicit function theorem.
Nothing of parafix is used here.

Equation 5 asks for the step and for its Jacobian at all times. As it stands that is two
calls (`apart`); one call can give both (`together`). The results are equal to rounding,
and the times are not: the second is the stronger opponent, so both are here.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


Step = Callable[[Any, jax.Array, jax.Array], jax.Array]
# `(step, weights, lag, xs)` to the values `(T, n)` and the Jacobians `(T, n, n)`.
Linearise = Callable[[Step, Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def apart(
    step: Step, weights: Any, lag: jax.Array, xs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The step, and its Jacobian, each at all times."""
    function = functools.partial(step, weights)
    return jax.vmap(function)(lag, xs), jax.vmap(jax.jacfwd(function))(lag, xs)


def together(
    step: Step, weights: Any, lag: jax.Array, xs: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The step along with its Jacobian, at all times."""

    def value_twice(z, x):
        value = step(weights, z, x)
        return value, value

    jacobians, values = jax.vmap(jax.jacfwd(value_twice, has_aux=True))(lag, xs)
    return values, jacobians


def textbook_deer(
    step: Step,
    weights: Any,
    init: jax.Array,
    xs: jax.Array,
    rtol: float,
    atol: float,
    linearise: Linearise = apart,
) -> jax.Array:
    """The states `z_t = step(weights, z_{t-1}, x_t)` of one sample, shape `(T, n)`.

    Stops when the update is small, `max |z' - z| <= atol + rtol |z'|`, or after `T`
    iterations. Differentiable in reverse mode, in `weights`, `init` and `xs`.
    """
    solved: Any = _solve(step, weights, init, xs, rtol, atol, linearise)
    return solved[0]


def textbook_sweeps(
    step: Step,
    weights: Any,
    init: jax.Array,
    xs: jax.Array,
    rtol: float,
    atol: float,
    linearise: Linearise = apart,
) -> tuple[jax.Array, jax.Array]:
    """As `textbook_deer`, with the number of iterations; not differentiable."""
    return _iterate(step, weights, init, xs, rtol, atol, linearise)


def _combine(first, second):
    """The affine map `second` after the affine map `first`, at all times."""
    a_i, b_i = first
    a_j, b_j = second
    return a_j @ a_i, jnp.einsum("tij,tj->ti", a_j, b_i) + b_j


def _linear_recurrence(a, b, reverse=False):
    """`y_t = a_t y_{t-1} + b_t` with `y = 0` before the start (after the end)."""
    _, y = lax.associative_scan(_combine, (a, b), reverse=reverse)
    return y


def _lag(init, states):
    return jnp.concatenate([init[None], states[:-1]])


def _iterate(step, weights, init, xs, rtol, atol, linearise):
    length = xs.shape[0]

    def body(state):
        states, _, count = state
        lag = _lag(init, states)
        values, jacobians = linearise(step, weights, lag, xs)
        # z'_t = A_t z'_{t-1} + (f_t - A_t z_{t-1}); at the start z'_0 = z_0 = init, so
        # that the first right-hand side is f alone.
        b = values - jnp.einsum("tij,tj->ti", jacobians, lag)
        b = b.at[0].set(values[0])
        new = _linear_recurrence(jacobians, b)
        done = jnp.all(jnp.abs(new - states) <= atol + rtol * jnp.abs(new))
        return new, done, count + 1

    def running(state):
        _, done, count = state
        return ~done & (count < length)

    guess = jnp.broadcast_to(init, (length, init.shape[0]))
    start = (guess, jnp.array(False), jnp.array(0))
    states, _, count = lax.while_loop(running, body, start)
    return states, count


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5, 6))
def _solve(step, weights, init, xs, rtol, atol, linearise):
    return _iterate(step, weights, init, xs, rtol, atol, linearise)


def _solve_forward(step, weights, init, xs, rtol, atol, linearise):
    states, count = _iterate(step, weights, init, xs, rtol, atol, linearise)
    return (states, count), (weights, init, xs, states)


def _solve_backward(step, rtol, atol, linearise, residuals, cotangents):
    """Solve `λ_t = g_t + A_{t+1}^T λ_{t+1}` for `λ`, and pull it through `f`."""
    del rtol, atol
    weights, init, xs, states = residuals
    cotangent, _ = cotangents
    _, jacobians = linearise(step, weights, _lag(init, states), xs)
    transposed = jnp.swapaxes(jacobians, 1, 2)
    following = jnp.concatenate([transposed[1:], jnp.zeros_like(transposed[:1])])
    adjoint = _linear_recurrence(following, cotangent, reverse=True)

    def steps(weights, init, xs):
        # Through the states the solve above has gone already; here only `init` is
        # differentiated, at the start.
        lag = _lag(init, lax.stop_gradient(states))
        return jax.vmap(functools.partial(step, weights))(lag, xs)

    _, pull = jax.vjp(steps, weights, init, xs)
    return pull(adjoint)


_solve.defvjp(_solve_forward, _solve_backward)
