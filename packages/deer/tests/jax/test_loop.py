"""A loop whose derivatives are those of the chain at its states."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import lax

from parafix.core.jax import ChainAdjoint, Diagonal, RESULTS
from parafix.core.testing.jax import assert_close, assert_identical, gru, lstm
from parafix.deer.jax import DiagonalGRUCell, scan


LENGTH = 30
loop = ft.partial(scan, solver="sequential", adjoint="implicit")


def weighted(tree):
    """A number that depends on every float of a tree, in no symmetric way."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return sum(
        (jnp.abs(x) ** 2 * jnp.cos(jnp.arange(x.size)).reshape(x.shape)).sum()
        for x in leaves
    )


def counting(key, length):
    """A cell with a counter and a key, whose output is no carry."""
    problem = gru(key, length)

    def bind(params):
        f = problem.bind(params)

        def step(carry, x):
            h, count, key = carry
            key, used = jax.random.split(key)
            h, _ = f(h, x + 0.1 * jax.random.normal(used) + count / 100)
            return (h, count + 1, key), {"y": h * x.sum(), "count": count}

        return step

    init = lambda h: (h, jnp.array(3), jax.random.key(7))
    return problem, bind, init


class TestDerivatives:
    @pytest.mark.slow
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("make", [gru, lstm])
    def test_of_every_kind(self, make, reverse):
        problem = make(jax.random.key(0), LENGTH)
        point = (problem.params, problem.init, problem.xs)

        def loss(run, *point):
            params, init, xs = point
            return weighted(run(problem.bind(params), init, xs, reverse=reverse))

        gradient = lambda run: jax.grad(ft.partial(loss, run), (0, 1, 2))
        for transform in (
            lambda run: jax.value_and_grad(ft.partial(loss, run), (0, 1, 2)),
            lambda run: lambda *p: jax.jvp(ft.partial(loss, run), p, p),
            # Forward over reverse.
            lambda run: lambda *p: jax.jvp(gradient(run), p, p)[1],
            # Reverse over reverse.
            lambda run: jax.grad(lambda *p: weighted(gradient(run)(*p)), (0, 1, 2)),
        ):
            actual, expected = (
                jax.jit(transform(run))(*point) for run in (loop, lax.scan)
            )
            assert_close(actual, expected, 1e-11)

    def test_forward_reverse_and_one_over_the_other(self):
        problem = lstm(jax.random.key(0), LENGTH)
        f = problem.bind()

        def both(run, init, xs):
            loss = lambda init, xs: weighted(run(f, init, xs, reverse=True))
            return jax.jvp(jax.grad(loss, (0, 1)), (init, xs), (init, xs))

        point = (problem.init, problem.xs)
        actual, expected = (
            jax.jit(ft.partial(both, run))(*point) for run in (loop, lax.scan)
        )
        assert_close(actual, expected, 1e-11)

    def test_with_drivers_and_an_output_of_its_own(self):
        problem, bind, init = counting(jax.random.key(0), LENGTH)

        def loss(run, params, h, xs):
            out = run(bind(params), init(h), xs, reverse=True)
            return weighted(out), out

        point = (problem.params, problem.init, problem.xs)
        actual, expected = (
            jax.jit(jax.value_and_grad(ft.partial(loss, run), (0, 1, 2), has_aux=True))(
                *point
            )
            for run in (loop, lax.scan)
        )
        keys = [value[1][0][-1] for value, _ in (actual, expected)]
        assert_identical(*map(jax.random.key_data, keys))
        ys = [value[1][1] for value, _ in (actual, expected)]
        assert_identical(*ys)
        assert_close(actual[1], expected[1], 1e-12)

    def test_under_vmap_and_inside_of_a_loop(self):
        problem = gru(jax.random.key(0), LENGTH)
        f = problem.bind()

        def loss(run, inits, xs):
            def outer(h, x):
                h, _ = run(f, h, x)
                return h, h

            both = lambda h: run(outer, h, xs)
            return weighted(jax.vmap(both)(inits))

        point = (
            jnp.stack([problem.init, -problem.init]),
            jnp.stack([problem.xs, 2 * problem.xs]),
        )
        actual, expected = (
            jax.jit(jax.grad(ft.partial(loss, run), (0, 1)))(*point)
            for run in (loop, lax.scan)
        )
        assert_close(actual, expected, 1e-12)

    @pytest.mark.parametrize(
        "options",
        [
            {"lengths": 17, "resets": np.arange(LENGTH) % 11 == 5},
            pytest.param(
                {"resets": np.arange(LENGTH) % 9 == 5}, marks=pytest.mark.slow
            ),
            pytest.param({"lengths": 17, "reverse": True}, marks=pytest.mark.slow),
        ],
    )
    def test_with_resets_and_lengths(self, options):
        problem = gru(jax.random.key(0), LENGTH)

        def loss(params, init, xs, adjoint):
            out, solution = scan(
                problem.bind(params),
                init,
                xs,
                solver="sequential",
                adjoint=adjoint,
                return_solution=True,
                **options,
            )
            return weighted((out, solution.value)), solution.result

        point = (problem.params, problem.init, problem.xs)
        ((actual, result), gradient), ((expected, _), right) = (
            jax.jit(
                jax.value_and_grad(
                    ft.partial(loss, adjoint=adjoint), (0, 1, 2), has_aux=True
                )
            )(*point)
            for adjoint in ("implicit", None)
        )
        assert result == RESULTS.successful
        assert_identical(actual, expected)
        assert_close(gradient, right, 1e-12)

    def test_of_complex_carries(self):
        def loss(run, a, z, xs):
            def f(z, x):
                z = a * z / lax.complex(1 + jnp.abs(z) ** 2, 0 * z.real) + x
                return z, z

            return weighted(run(f, z, xs))

        angles = jnp.linspace(0.0, 20.0, LENGTH)
        xs = lax.complex(jnp.cos(angles), jnp.sin(angles))
        point = (jnp.array(0.5 + 0.3j), jnp.array([0.1 + 1j, 1.0]), xs)
        actual, expected = (
            jax.grad(ft.partial(loss, run), (0, 1, 2))(*point)
            for run in (loop, lax.scan)
        )
        assert_close(actual, expected, 1e-12)

    def test_of_a_structure(self):
        cell = DiagonalGRUCell(3, 4, key=jax.random.key(0))
        xs = jax.random.normal(jax.random.key(1), (LENGTH, 3))

        def loss(cell, adjoint):
            options = {"solver": "sequential", "adjoint": adjoint}
            return weighted(scan(cell, jnp.ones(4), xs, **options))

        actual, expected = (
            eqx.filter_grad(loss)(cell, adjoint)
            for adjoint in (
                "implicit",
                ChainAdjoint(chunk=7),
            )
        )
        assert_close(actual, expected, 1e-12)
        assert_close(actual, eqx.filter_grad(loss)(cell, None), 1e-12)
        false = lambda h, x: (jnp.tanh(h + h[::-1] + x[0]),) * 2
        with pytest.raises(eqx.EquinoxRuntimeError, match="structure"):
            jax.grad(lambda h: loop(false, h, xs, structure=Diagonal())[0].sum())(
                jnp.ones(4)
            )

    @pytest.mark.parametrize("where", ["state", "slope"])
    def test_are_nan_where_those_of_the_loop_are(self, where):
        problem = gru(jax.random.key(0), LENGTH)
        f, init = problem.bind(), problem.init
        xs = problem.xs
        if where == "state":
            xs = xs.at[12].set(jnp.nan)

        def step(h, x):
            # The slope of the norm at zero is NaN, its value is zero.
            h, y = f(h, x)
            if where == "slope":
                h = h + jnp.linalg.norm(x - xs[12])
            return h, y

        def gradient(run):
            out = lambda init, xs: run(step, init, xs)[1]
            ys, pull = jax.vjp(out, init, xs)
            some = jnp.zeros_like(ys).at[jnp.array([5, 12, 20])].set(1)
            return (
                pull(some),
                pull(some.at[6:].set(0)),
                jax.jvp(out, (init, xs), (init, xs)),
            )

        actual, expected = (
            jax.tree.leaves(jax.jit(gradient, static_argnums=0)(run))
            for run in (loop, lax.scan)
        )
        assert any(np.isnan(x).any() for x in expected)
        for x, right in zip(actual, expected, strict=True):
            np.testing.assert_allclose(x, right, rtol=1e-10, atol=1e-12)


class TestWhereTheLoopIsNoChain:
    def check(self, f, init, xs, wrap=lambda run: run):
        def loss(run, init, xs):
            return weighted(wrap(ft.partial(run, f))(init, xs))

        actual, expected = (
            jax.jit(jax.value_and_grad(ft.partial(loss, run), (0, 1)))(init, xs)
            for run in (loop, lax.scan)
        )
        assert_identical(actual, expected)

    def test_a_counter_of_floats(self):
        def f(carry, x):
            h, hits = carry
            h = jnp.tanh(h + x) * (1 + hits / 100)
            return (h, hits + jnp.count_nonzero(h > 0)), h

        def with_hits(run):
            return lambda h, xs: run((h, jnp.array(0)), xs)

        self.check(
            f, jnp.ones(2), jnp.linspace(-1, 1, 2 * LENGTH).reshape(-1, 2), with_hits
        )

    def test_a_step_that_looks_at_other_samples(self):
        def f(h, x):
            h = jnp.tanh(h + x - 0.5 * lax.pmean(h, "samples"))
            return h, h

        def batched(run):
            return lambda h, xs: jax.vmap(run, (0, None), axis_name="samples")(h, xs)

        self.check(
            f, jnp.array([[0.1, 2.0], [1.0, -1.0]]), jnp.ones((LENGTH, 2)), batched
        )

    def test_a_step_that_prints(self, capsys):
        def f(h, x):
            jax.debug.print("once {}", h)
            return h * x, h

        jax.block_until_ready(jax.grad(lambda h: loop(f, h, jnp.ones(3))[0])(2.0))
        jax.effects_barrier()
        assert capsys.readouterr().out.count("once") == 3

    def test_a_step_without_a_tangent(self):
        @jax.custom_vjp
        def double(h):
            return h / 2

        double.defvjp(lambda h: (h / 2, None), lambda _, g: (0 * g,))
        f = lambda h, x: (double(h) + x, h * x)
        self.check(f, jnp.array(0.3), jnp.linspace(-1, 1, LENGTH))


def test_another_adjoint_is_an_error():
    problem = gru(jax.random.key(0), 3)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for solver in ("deer", "sequential"):
            with pytest.raises(TypeError, match="`adjoint`.*'one-step'"):
                scan(
                    problem.bind(),
                    problem.init,
                    problem.xs,
                    solver=solver,
                    adjoint="one-step",
                )
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("solver", ["deer", "sequential"])
def test_an_adjoint_is_used(solver):
    # By what cannot work: a scan that has reasons against.
    problem = gru(jax.random.key(0), LENGTH)
    f, xs = problem.bind(), problem.xs
    adjoint = ChainAdjoint(scan="triton")
    run = lambda init: scan(f, init, xs, solver=solver, adjoint=adjoint)[0].sum()
    assert np.isfinite(run(problem.init))
    with pytest.raises(ValueError, match="triton"):
        jax.grad(run)(problem.init)
