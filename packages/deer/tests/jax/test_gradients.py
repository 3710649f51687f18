"""Derivatives: those of `jax.lax.scan`, in every mode and to every order."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parafix.core.testing.jax import (
    assert_close,
    directional_derivative,
    gru,
    lstm,
    tanh_cell,
    temporary_bytes,
)
from parafix.deer.jax import DEER, scan


CELLS = {"gru": gru, "lstm": lstm, "tanh": tanh_cell}


def loss_over(scan, problem, **options):
    """A function of weights, initial carry and inputs that uses carry and outputs."""

    def loss(params, init, xs):
        carry, ys = scan(problem.bind(params), init, xs, **options)
        weights = jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)
        ends = sum(jnp.sum(x**2) for x in jax.tree.leaves(carry))
        return ends + jnp.sum(weights * ys**2)

    return loss


def arguments_of(problem):
    return problem.params, problem.init, problem.xs


def gradients(scan, problem, **options):
    loss = loss_over(scan, problem, **options)
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*arguments_of(problem))


class TestReverseMode:
    @pytest.mark.parametrize(
        ("name", "length", "options"),
        [
            ("gru", 0, {}),
            ("gru", 1, {}),
            pytest.param("gru", 100, {"window": 30}, marks=pytest.mark.slow),
            ("lstm", 20, {"reverse": True, "window": 7}),
        ],
    )
    def test_agrees_with_lax_scan(self, name, length, options):
        problem = CELLS[name](jax.random.key(1), length)
        actual = gradients(scan, problem, solver="deer", **options)
        reverse = options.get("reverse", False)
        assert_close(actual, gradients(lax.scan, problem, reverse=reverse))

    def test_is_at_the_solution_whatever_the_solver(self):
        problem = lstm(jax.random.key(1), 20)
        actual = gradients(scan, problem, solver="jacobi")
        assert_close(actual, gradients(lax.scan, problem), 1e-10)
        # Jacobi's own transition is zero, so these would be too if they were its.
        assert np.abs(actual[1][0]["W"]).max() > 0.1

    @pytest.mark.slow
    def test_windows_change_nothing(self):
        problem = gru(jax.random.key(2), 40)
        whole = gradients(scan, problem, solver="jacobi")
        parts = gradients(scan, problem, solver="jacobi", window=16)
        assert_close(parts, whole, 1e-10)

    def test_of_large_states_after_an_approximate_forward(self):
        # 130 entries: no Jacobian is formed for the gradient.
        problem = lstm(jax.random.key(1), 12, 65)
        actual = gradients(scan, problem, solver="quasi-deer")
        assert_close(actual, gradients(lax.scan, problem), 1e-9)

    def test_agrees_with_differences(self):
        problem = lstm(jax.random.key(3), 10)
        loss = jax.jit(loss_over(ft.partial(scan, solver="deer"), problem))
        point = arguments_of(problem)
        direction = jax.tree.map(lambda x: jnp.sin(3 * x) + 0.1, point)
        _, gradient = gradients(scan, problem, solver="deer")
        products = jax.tree.map(lambda g, v: jnp.sum(g * v), gradient, direction)
        expected = directional_derivative(lambda p: loss(*p), point, direction)
        np.testing.assert_allclose(
            sum(jax.tree.leaves(products)), expected, rtol=1e-9, atol=1e-9
        )

    @pytest.mark.slow
    def test_of_chunks_and_other_scans(self):
        problem = gru(jax.random.key(2), 20)
        expected = gradients(lax.scan, problem)
        solver = DEER(rtol=1e-13, atol=1e-13, chunk=7, scan="associative")
        assert_close(gradients(scan, problem, solver=solver), expected)

    def test_of_a_linear_loss_over_the_last_carry_alone(self):
        problem = tanh_cell(jax.random.key(4), 20)

        def loss(scan, init):
            return scan(problem.bind(), init, problem.xs)[0].sum()

        actual, expected = (
            jax.grad(ft.partial(loss, each))(problem.init)
            for each in (ft.partial(scan, solver="deer"), lax.scan)
        )
        assert_close(actual, expected)

    def test_with_respect_to_the_guess_is_zero(self):
        problem = tanh_cell(jax.random.key(4), 10)

        def loss(guess):
            f, init, xs = problem.bind(), problem.init, problem.xs
            return scan(f, init, xs, solver="deer", guess=guess)[1].sum()

        gradient = jax.grad(loss)(jnp.full((10, 3), 0.3))
        assert not np.any(gradient)

    def test_of_a_complex_carry(self):
        def f(carry, x):
            z, h = carry
            z = jnp.array(0.5j) * z.conj() + x + h.astype(complex)
            return (z, jnp.tanh(0.4 * h + z.imag)), jnp.abs(z)

        def loss(scan, init, xs):
            (z, h), ys = scan(f, init, xs)
            return jnp.sum(ys**2) + jnp.abs(z) + h

        xs = jax.lax.complex(jnp.cos(jnp.arange(8.0)), jnp.sin(jnp.arange(8.0)))
        init = (jnp.array(0.3 + 0.2j), jnp.array(0.1))
        actual, expected = (
            jax.jit(jax.grad(ft.partial(loss, each), (0, 1)))(init, xs)
            for each in (ft.partial(scan, solver="deer"), lax.scan)
        )
        assert_close(actual, expected)

    def test_past_integers_and_keys(self):
        def f(carry, x):
            key, n, h = carry
            key, sub = jax.random.split(key)
            h = jnp.tanh(0.5 * h + x["float"] * jax.random.normal(sub) + x["int"])
            return (key, n + x["int"], h), h * n

        def loss(scan, h, floats):
            xs = {"float": floats, "int": jnp.arange(6)}
            (_, _, h), ys = scan(f, (jax.random.key(0), 1, h), xs)
            return h + ys.sum()

        with jax.numpy_dtype_promotion("standard"):
            actual, expected = (
                jax.jit(jax.grad(ft.partial(loss, each), (0, 1)))(0.3, jnp.ones(6))
                for each in (ft.partial(scan, solver="deer"), lax.scan)
            )
        assert_close(actual, expected)

    def test_of_narrow_dtypes_has_their_dtype(self):
        problem = gru(jax.random.key(2), 12, dtype=jnp.float32)
        actual = gradients(scan, problem, solver="deer")
        assert_close(actual, gradients(lax.scan, problem), 1e-5)


@ft.cache
def all_modes(solver, window=None):
    """Forward mode, Hessian, and what `vmap` makes of them."""
    problem = tanh_cell(jax.random.key(5), 6, size=2, inputs=1)
    if solver == "lax":
        loss = loss_over(lax.scan, problem)
    else:
        loss = loss_over(ft.partial(scan, solver=solver, window=window), problem)
    arguments = arguments_of(problem)

    @jax.jit
    def everything(arguments, tangents, inits):
        params, _, xs = arguments
        of_init = lambda init: loss(params, init, xs)
        return {
            "tangent": jax.jvp(loss, arguments, tangents),
            "hessian": jax.hessian(lambda all: loss(*all))(arguments),
            "over reverse": (
                None if window else jax.jacrev(jax.grad(of_init))(arguments[1])
            ),
            "batched": jax.vmap(jax.value_and_grad(of_init))(inits),
            "over vmap": jax.grad(lambda inits: jax.vmap(of_init)(inits).sum())(inits),
        }

    tangents = jax.tree.map(jnp.cos, arguments)
    return everything(arguments, tangents, jnp.arange(6.0).reshape(3, 2))


class TestOtherModes:
    @pytest.mark.parametrize(
        ("solver", "window"),
        [("deer", None), pytest.param("jacobi", 4, marks=pytest.mark.slow)],
    )
    def test_agree_with_lax_scan(self, solver, window):
        # Every entry of the Hessian, in weights, carry and inputs.
        assert_close(all_modes(solver, window), all_modes("lax", window))

    def test_reverse_over_reverse_in_windows(self):
        f = lambda h, x: (jnp.tanh(h + x), h)

        def second(scan):
            loss = lambda h: (scan(f, h, jnp.arange(6.0))[1] ** 2).sum()
            return jax.jit(jax.jacrev(jax.grad(loss)))(jnp.array(0.3))

        deer = ft.partial(scan, solver="deer", window=4)
        assert_close(second(deer), second(lax.scan))

    def test_a_third_derivative(self):
        def third(scan):
            def loss(h):
                f = lambda h, x: (jnp.sin(h * x), h)
                return scan(f, h, jnp.linspace(0.5, 1.5, 4))[0]

            return jax.jit(jax.grad(jax.grad(jax.grad(loss))))(jnp.array(0.7))

        expected = third(lax.scan)
        assert_close(third(ft.partial(scan, solver="deer")), expected)

    def test_linearize_and_its_transpose(self):
        problem = tanh_cell(jax.random.key(5), 6)
        solve = lambda init: scan(problem.bind(), init, problem.xs, solver="deer")[1]
        expected = jax.jacobian(
            lambda init: lax.scan(problem.bind(), init, problem.xs)[1]
        )(problem.init)
        _, tangent = jax.linearize(solve, problem.init)
        columns = jax.vmap(tangent, out_axes=2)(jnp.eye(3))
        assert_close(columns, expected)
        (row,) = jax.linear_transpose(tangent, problem.init)(jnp.ones((6, 3)))
        assert_close(row, expected.sum((0, 1)))

    @pytest.mark.slow
    def test_under_checkpoint(self):
        problem = gru(jax.random.key(5), 6)
        loss = jax.checkpoint(loss_over(ft.partial(scan, solver="deer"), problem))
        actual = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*arguments_of(problem))
        assert_close(actual, gradients(lax.scan, problem))


class TestMemory:
    def test_windows_bound_what_a_gradient_needs(self):
        length, size = 16_384, 64
        problem = tanh_cell(jax.random.key(6), 1, size, inputs=1, dtype=jnp.float32)
        xs = jax.ShapeDtypeStruct((length, 1), jnp.float32)
        loss = loss_over(ft.partial(scan, solver="deer", window=64), problem)
        gradient = jax.value_and_grad(loss, (0, 1, 2))
        used = temporary_bytes(gradient, problem.params, problem.init, xs)
        assert used < 20 * 2**20
        # The states alone are 4 MiB: what is measured is the real thing.
        assert used > length * size * 4

    @pytest.mark.slow
    def test_blocks_are_not_kept_without_windows(self):
        length, size = 2048, 32
        problem = tanh_cell(jax.random.key(6), 1, size=size, inputs=1)
        xs = jax.ShapeDtypeStruct((length, 1), jnp.float64)
        loss = loss_over(ft.partial(scan, solver="deer"), problem)
        gradient = jax.value_and_grad(loss, (0, 1, 2))
        used = temporary_bytes(gradient, problem.params, problem.init, xs)
        assert used < length * size * size * 8
