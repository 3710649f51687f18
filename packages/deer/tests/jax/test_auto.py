"""`solver="auto"`: never another number than `lax.scan`, and rarely another program."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parafix.core.jax import RESULTS
from parafix.core.testing.jax import (
    assert_close,
    assert_identical,
    CallCounter,
    gru,
    lstm,
    reference_scan,
)
from parafix.deer.jax import Choice, choose, scan


LENGTH = 300


@pytest.fixture
def accelerator(monkeypatch):
    """JAX says that it runs on a GPU, and compiles for the CPU all the same."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def problem_of(make=gru, length=LENGTH):
    problem = make(jax.random.key(0), length)
    return problem.bind(), problem.init, problem.xs


class TestOnCPU:
    def test_is_the_program_of_lax_scan(self):
        f, init, xs = problem_of(lstm)
        for options in ({}, {"reverse": True}, {"unroll": 3}):
            actual, expected = (
                jax.jit(ft.partial(each, f, **options)).lower(init, xs).as_text()
                for each in (scan, lax.scan)
            )
            assert actual == expected

    @pytest.mark.parametrize(("length", "size"), [(20, 2), (LENGTH, 12)])
    def test_and_so_is_its_gradient_where_that_is_the_fastest(self, length, size):
        W, xs = jnp.eye(size), jnp.ones((length, size))
        f = lambda h, x: (jnp.tanh(W @ h + x),) * 2

        def gradient(scan):
            loss = lambda init, xs: scan(f, init, xs)[1].sum()
            return jax.jit(jax.grad(loss, (0, 1)))

        actual, expected = (
            gradient(each).lower(xs[0], xs).as_text() for each in (scan, lax.scan)
        )
        assert actual == expected

    def test_elsewhere_its_gradient_is_that_of_the_chain(self):
        f, init, xs = problem_of()
        loss = lambda xs, scan, **options: scan(f, init, xs, **options)[1].sum()
        text = lambda *args, **options: (
            jax.jit(jax.grad(ft.partial(loss, scan=args[0], **options)))
            .lower(xs)
            .as_text()
        )
        automatic = text(scan)
        assert automatic != text(lax.scan)
        assert automatic == text(scan, adjoint="implicit")
        assert choose(LENGTH, 2, "cpu").adjoint == "implicit"

    def test_asking_for_a_solution_changes_no_number(self):
        f, init, xs = problem_of()
        for solver in ("auto", "sequential"):
            out, solution = scan(f, init, xs, solver=solver, return_solution=True)
            assert_close(out, lax.scan(f, init, xs), 1e-15)
            assert_close(solution.value, reference_scan(f, init, xs)[2], 1e-15)
            assert solution.result == RESULTS.successful

    def test_gradients_pass_through_a_solution(self):
        f, init, xs = problem_of(length=10)

        def loss(init, xs, ask):
            if ask:
                (_, ys), _ = scan(f, init, xs, return_solution=True)
            else:
                _, ys = scan(f, init, xs)
            return (ys**2).sum()

        actual, expected = (
            jax.grad(loss, (0, 1))(init, xs, ask) for ask in (True, False)
        )
        assert_close(actual, expected)


class TestOnAnAccelerator:
    """The program that decides when it is lowered; here, for a CPU."""

    @pytest.mark.parametrize("reverse", [False, True])
    def test_values_and_gradients_are_those_of_lax_scan(self, accelerator, reverse):
        f, init, xs = problem_of(lstm)

        def both(scan):
            def loss(init, xs):
                carry, ys = scan(f, init, xs, reverse=reverse)
                return (ys**2).sum() + carry["h"].sum(), (carry, ys)

            return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(init, xs)

        assert_close(both(scan), both(lax.scan))

    def test_both_ways_are_in_the_program(self, accelerator):
        f, init, xs = problem_of()
        text = str(jax.make_jaxpr(ft.partial(scan, f))(init, xs))
        assert "platform_index" in text
        assert "while" in text

    def test_under_vmap_and_with_a_solution(self, accelerator):
        f, init, xs = problem_of()
        inits = jnp.stack([init, 2 * init])
        solve = jax.vmap(ft.partial(scan, f, return_solution=True), (0, None))
        out, solution = solve(inits, xs)
        expected = jax.vmap(lambda init: lax.scan(f, init, xs))(inits)
        assert_close(out, expected)
        assert np.all(solution.stats["num_steps"] == LENGTH)

    def test_what_sweeps_cannot_serve_runs_sequentially(self, accelerator):
        def f(carry, x):
            h, hits = carry
            h = jnp.tanh(0.5 * h + x)
            return (h, hits + jnp.count_nonzero(h > 0)), h

        init, xs = (jnp.zeros(2), jnp.array(0)), jnp.ones((LENGTH, 2))
        assert_close(scan(f, init, xs), lax.scan(f, init, xs))

    def test_a_step_with_a_gradient_of_its_own_but_no_tangent(self, accelerator):
        f, init, xs = without_tangent()
        loss = lambda scan, init: scan(f, init, xs)[1].sum()
        actual, expected = (
            jax.value_and_grad(ft.partial(loss, each))(init)
            for each in (scan, lax.scan)
        )
        assert_close(actual, expected)
        # It is the gradient that was written, not that of the formula.
        assert actual[1] == 0

    def test_exceptions_of_the_step_are_shown(self, accelerator):
        def f(h, x):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            scan(f, jnp.zeros(2), jnp.ones((LENGTH, 2)))


def without_tangent():
    @jax.custom_vjp
    def double(h):
        return h / 2

    double.defvjp(lambda h: (h / 2, None), lambda _, g: (0 * g,))

    def f(h, x):
        h = double(h) + x
        return h, h * x

    return f, jnp.array(0.3), jnp.linspace(-1, 1, LENGTH)


@pytest.mark.parametrize("solver", ["auto", "sequential"])
def test_a_solution_can_be_asked_for_where_there_is_no_tangent(solver):
    f, init, xs = without_tangent()
    out, solution = scan(f, init, xs, solver=solver, return_solution=True)
    assert_close(out, lax.scan(f, init, xs))
    assert solution.result == RESULTS.successful


def test_a_solution_of_no_steps_where_a_counter_depends_on_floats():
    f = lambda c, x: ((jnp.tanh(c[0] + x), jnp.where(c[0] > 0, 1, c[1])), c[0])
    init = (jnp.array(0.5), jnp.array(3))
    out, solution = scan(f, init, jnp.zeros(0), return_solution=True)
    assert_identical(out[0], init)
    assert solution.result == RESULTS.successful
    assert solution.stats["converged_prefix"] == 0


class TestChoices:
    def test_the_processor_decides_first(self):
        for length in (10, 10**6):
            assert choose(length, 4, "cpu").solver == "sequential"
        assert choose(10_000, 4, "cuda").solver == "deer"

    @pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu", "gpu"])
    def test_short_wide_and_empty_ones_are_sequential(self, platform):
        assert choose(10_000, 4, platform).solver == "deer"
        assert choose(10, 4, platform).solver == "sequential"
        assert choose(10_000, 512, platform).solver == "sequential"
        assert choose(10_000, 0, platform).solver == "sequential"
        assert choose(0, 4, platform).solver == "sequential"

    def test_reasons_are_sentences_that_name_the_cause(self):
        assert "CPU" in choose(10, 4, "cpu").reason
        assert "10 steps" in choose(10, 4, "cuda").reason
        assert "512" in choose(10_000, 512, "cuda").reason
        choice = choose(10_000, 4, "cuda")
        assert isinstance(choice, Choice)
        assert "10000" in choice.reason


class TestCompilation:
    @pytest.mark.parametrize("solver", ["deer", "jacobi", "sequential", "auto"])
    @pytest.mark.parametrize("ask", [False, True])
    def test_the_same_step_and_shapes_are_not_traced_again(self, solver, ask):
        f, init, xs = problem_of(length=8)
        counter = CallCounter(f)
        solve = ft.partial(scan, counter, solver=solver, return_solution=ask)
        first = solve(init, xs)
        calls = counter.calls
        assert calls > 0
        again = solve(init + 1, xs * 2)
        assert counter.calls == calls
        assert_identical(solve(init, xs), first)
        assert counter.calls == calls
        del again

    def test_nor_in_a_gradient_under_jit(self):
        f, init, xs = problem_of(length=8)
        counter = CallCounter(f)
        gradient = jax.jit(
            jax.grad(lambda init: scan(counter, init, xs, solver="deer")[1].sum())
        )
        gradient(init)
        calls = counter.calls
        gradient(2 * init)
        assert counter.calls == calls
