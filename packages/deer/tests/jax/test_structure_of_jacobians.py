"""Declared structures of Jacobians: what they are and cost, and when they are false."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import lax

import parafix.core.jax
from parafix.core.jax import (
    Blocks,
    Chain,
    Custom,
    Dense,
    Diagonal,
    jacobian,
    solve_chain,
    Structured,
)
from parafix.core.testing.jax import assert_close, temporary_bytes
from parafix.deer.jax import check_structure, choose, DEER, scan


FORMS = {
    "dense": (Dense(), 6),
    "diagonal": (Diagonal(), 1),
    "blocks": (Blocks(2), 2),
    "one block": (Blocks(6), 6),
    "halves": (Blocks(2, leaves=2), 2),
    "blocks in two leaves": (Blocks(6, leaves=2), 6),
}


def pattern(structure, size=6):
    """Where the Jacobian may be other than zero, from the definition in words."""
    if isinstance(structure, Dense):
        return np.ones((size, size), bool)
    if isinstance(structure, Diagonal):
        return np.eye(size, dtype=bool)
    per_leaf = size // structure.leaves
    width = structure.size // structure.leaves
    block = np.arange(size) % per_leaf // width
    return block[:, None] == block[None]


def coupled(structure):
    """A nonlinear step that couples just what `structure` allows."""
    weights = np.random.default_rng(0).uniform(-0.9, 0.9, (6, 6)) * pattern(structure)

    def step(z, x):
        return jnp.tanh(jnp.asarray(weights) @ z + x)

    return step


@pytest.mark.parametrize("name", FORMS)
class TestForms:
    def test_jacobian(self, name):
        structure, tangents = FORMS[name]
        step = coupled(structure)
        z, x = jnp.linspace(-1, 1, 6), jnp.linspace(0.5, -0.5, 6)
        f, a = jacobian(Structured(step, structure), z, x)
        assert a.shape == structure.shape(6)
        assert a.size == structure.num_entries(6)
        assert structure.num_linear(6) == tangents
        expected = jax.jacrev(step)(z, x)
        np.testing.assert_allclose(f, step(z, x), rtol=1e-15)
        np.testing.assert_allclose(structure.dense(a, 6), expected, atol=1e-15)
        np.testing.assert_allclose(structure.apply(a, z), expected @ z, atol=1e-15)
        np.testing.assert_allclose(structure.diagonal(a), np.diag(expected), atol=1e-15)

    def test_vectors_and_entries(self, name):
        structure, _ = FORMS[name]
        v = jnp.arange(12.0).reshape(2, 6)
        np.testing.assert_array_equal(structure.entries(structure.vectors(v)), v)

    def test_check_structure(self, name):
        structure, _ = FORMS[name]
        problem = Chain(
            Structured(coupled(structure), structure),
            jnp.zeros(6),
            jnp.ones((4, 6)),
            4,
        )
        parafix.core.jax.check_structure(problem)
        for other, _ in FORMS.values():
            beyond = pattern(structure) & ~pattern(other)
            if beyond.any():
                declared = Structured(coupled(structure), other)
                wrong = eqx.tree_at(lambda p: p.step, problem, declared)
                with pytest.raises(
                    ValueError, match=r"structure .* is false"
                ) as caught:
                    parafix.core.jax.check_structure(wrong)
                words = str(caught.value).split("Entry (")[1].split(")")[0]
                row, column = map(int, words.split(", "))
                assert beyond[row, column]


def test_what_cannot_be():
    with pytest.raises(ValueError, match="6 entries has no blocks of 4"):
        Blocks(4).shape(6)
    with pytest.raises(ValueError, match="multiple of leaves; got 3 and 2"):
        Blocks(3, leaves=2)
    with pytest.raises(ValueError, match="no blocks of 4 entries"):
        scan(
            lambda h, x: (h, h),
            jnp.zeros(6),
            length=3,
            solver="deer",
            structure=Blocks(4),
        )


@pytest.fixture
def unchecked():
    # What is wrong is to be found by the library itself.
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("structure", ["diagonal", Diagonal])
def test_what_is_no_structure(structure, unchecked):
    f, init = lambda h, x: (jnp.roll(h, 1), h), jnp.ones(6)
    calls = (
        lambda: scan(f, init, length=3, structure=structure, solver="deer"),
        lambda: check_structure(f, structure, init, None),
        lambda: Structured(f, structure),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"such as `Diagonal\(\)`"):
            call()


def test_inputs_of_a_check():
    f, init = lambda h, x: (h, h), jnp.ones(6)
    check_structure(f, Diagonal(), init, None)
    for xs, words in (
        (jnp.array(1.0), "`xs` is a scalar"),
        ((jnp.ones(3), jnp.ones(4)), "one length"),
    ):
        with pytest.raises(ValueError, match=words):
            check_structure(f, Diagonal(), init, xs)
    f = lambda carry, x: ((carry[0], carry[1] + (carry[0] > 0).sum()), x)
    with pytest.raises(TypeError, match=r"`carry\[1\]`.* depends on `carry\[0\]`"):
        check_structure(f, Diagonal(), (init, jnp.array(0)), None)


def elementwise(weights, h, x):
    h = jnp.tanh(weights * h + x)
    return h, h


class Supplied(eqx.Module):
    """A diagonal step that brings its Jacobian along."""

    weights: jax.Array

    def __call__(self, h, x):
        return elementwise(self.weights, h, x)

    @property
    def structure(self):
        # Of `tanh(w h + x)` it is `w (1 - tanh^2)`.
        def diagonal(h, x):
            return self.weights * (1 - jnp.tanh(self.weights * h + x) ** 2)

        return Custom(diagonal, Diagonal())


class TestCustom:
    def test_values_gradient_and_hessian(self):
        xs = jnp.sin(jnp.arange(60.0)).reshape(20, 3)
        init = jnp.array([0.1, -0.2, 0.3])

        def loss(solve, weights):
            _, ys = solve(Supplied(weights), init, xs)
            return jnp.sum(ys**3)

        def directional(solve):
            gradient = jax.grad(ft.partial(loss, solve))
            return lambda w: jax.jvp(gradient, (w,), (jnp.ones(3),))

        weights = jnp.array([0.5, -0.8, 0.3])
        loop = lambda f, *data: lax.scan(lambda h, x: f(h, x), *data)
        solve = ft.partial(scan, solver="deer")
        actual = jax.jit(directional(solve))(weights)
        assert_close(actual, directional(loop)(weights), 1e-10)

    def test_no_tangents_are_taken(self):
        xs = jnp.ones((20, 3))
        f = Supplied(jnp.array([0.5, -0.8, 0.3]))
        _, solution = scan(f, jnp.zeros(3), xs, solver="deer", return_solution=True)
        assert solution.stats["num_linear"] == 0
        check_structure(f, f.structure, jnp.zeros(3), xs)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
    def test_a_derivative_that_is_lost_in_rounding(self, dtype):
        # Far out `1 - tanh^2` is zero, or an `eps`, and this formula is right.
        diagonal = lambda h, x: 2 / jnp.cosh(2 * h + x) ** 2

        def f(h, x):
            h = jnp.tanh(2 * h + x)
            return h, h

        init, xs = jnp.zeros(1, dtype), jnp.sin(jnp.arange(8, dtype=dtype))
        structure, xs = Custom(diagonal, Diagonal()), xs[:, None]
        check_structure(f, structure, init, xs)
        actual = scan(f, init, xs, solver="deer", structure=structure)
        assert_close(actual, lax.scan(f, init, xs), 10 * jnp.finfo(dtype).eps)

    def test_half_precision(self):
        step = Structured(lambda z, x: jnp.tanh(z / 2 + x), Diagonal())
        init, xs = jnp.zeros(3, jnp.float16), jnp.ones((8, 3), jnp.float16)
        problem = Chain(step, init, xs, 8)
        parafix.core.jax.check_structure(problem)
        value = solve_chain(problem, solver="jacobi").value
        _, expected = lax.scan(lambda z, x: (step(z, x),) * 2, init, xs)
        assert_close(value, expected, 6e-3)

    def test_a_function_that_is_wrong(self):
        f = ft.partial(elementwise, jnp.array([0.5, -0.8, 0.3]))
        xs = jnp.ones((20, 3))
        wrong = Custom(lambda h, x: jnp.array([0.5, -0.8, 0.3]), Diagonal())
        with pytest.raises(ValueError, match="is false"):
            check_structure(f, wrong, jnp.zeros(3), xs)
        shape = Custom(lambda h, x: jnp.eye(3), Diagonal())
        with pytest.raises(
            ValueError, match=r"must have shape \(3,\).*returned \(3, 3\)"
        ):
            scan(f, jnp.zeros(3), xs, solver="deer", structure=shape)


class TestFalseDeclarations:
    """What couples entries only somewhere is found, and by `scan` itself."""

    CASES = (
        # Everywhere; below zero only; only for large states; with one input only.
        lambda h, x: jnp.tanh(0.5 * h + 0.1 * jnp.roll(h, 1) + x),
        lambda h, x: jnp.tanh(0.5 * h + 0.1 * jnp.minimum(jnp.roll(h, 1), 0) + x),
        lambda h, x: (
            0.5 * h + jnp.sign(h) * jax.nn.relu(jnp.abs(jnp.roll(h, 1)) - 3) + x
        ),
        lambda h, x: jnp.tanh(0.5 * h + 1e-5 * jnp.roll(h, 1) + x),
    )

    def test_check_structure(self):
        xs = jnp.ones((8, 3))
        for case in self.CASES:
            f = lambda h, x, case=case: (case(h, x), None)
            check_structure(f, Dense(), jnp.zeros(3), xs)
            with pytest.raises(ValueError, match="is false"):
                check_structure(f, Diagonal(), jnp.zeros(3), xs)

    def test_scan(self):
        xs = jnp.ones((8, 3))

        @ft.partial(jax.jit, static_argnums=2)
        def solve(case, init, what):
            def f(h, x):
                h = lax.switch(case, (*self.CASES, lambda h, x: jnp.tanh(h + x)), h, x)
                return h, h

            def total(init):
                carry, ys = scan(
                    f, init, xs, solver="deer", structure=Diagonal(), throw=False
                )
                return ys.sum()

            return jax.grad(total)(init) if what == "gradient" else total(init)

        for what in ("value", "gradient"):
            # The last is diagonal, and nothing is raised.
            assert np.isfinite(solve(len(self.CASES), jnp.zeros(3), what)).all()
            for case in range(len(self.CASES)):
                # Of an error in a callback JAX makes the one or the other.
                with pytest.raises(
                    (RuntimeError, ValueError), match="of the Jacobian is false"
                ):
                    jax.block_until_ready(solve(case, jnp.zeros(3), what))

    def test_what_is_not_finite_somewhere_is_no_contradiction(self):
        def f(h, x):
            h = jnp.sqrt(h + x)
            return h, h

        expected = lax.scan(f, jnp.ones(2), jnp.ones((5, 2)))
        actual = scan(
            f, jnp.ones(2), jnp.ones((5, 2)), solver="deer", structure=Diagonal()
        )
        assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize(
    "solver", ["quasi-deer", pytest.param("elk", marks=pytest.mark.slow)]
)
def test_a_chain_of_a_structured_step(solver):
    step = coupled(Blocks(2))
    problem = Chain(
        Structured(step, Blocks(2)),
        jnp.zeros(6),
        jnp.sin(jnp.arange(60.0)).reshape(10, 6),
        10,
    )
    solution = solve_chain(problem, solver=solver)
    _, expected = lax.scan(lambda z, x: (step(z, x),) * 2, problem.init, problem.xs)
    assert_close(solution.value, expected, 1e-11)
    # Two tangents in every sweep, in every certificate, and for the growth of errors.
    evals = solution.stats["num_evals"]
    assert solution.stats["num_linear"] == 2 * evals


@pytest.mark.slow
def test_memory_and_work_of_a_diagonal_one():
    # One chunk for all times, so that it is the structure that saves memory.
    length, size = 256, 64
    weights = jnp.linspace(-0.9, 0.9, size)
    xs = jnp.ones((length, size))
    dense = length * size * size * xs.dtype.itemsize

    def loss(structure, weights):
        solver = DEER(rtol=1e-9, atol=1e-9, chunk=length)
        f = ft.partial(elementwise, weights)
        (_, ys), solution = scan(
            f,
            jnp.zeros(size),
            xs,
            solver=solver,
            window=length,
            return_solution=True,
            structure=structure,
        )
        return (ys**2).sum(), solution.stats["num_linear"]

    gradient = jax.value_and_grad(ft.partial(loss, Diagonal()), has_aux=True)
    assert temporary_bytes(gradient, weights) < dense / 2
    assert temporary_bytes(ft.partial(loss, Dense()), weights) > dense


def test_the_automatic_choice_looks_at_blocks():
    assert choose(10_000, 256, "cuda").solver == "sequential"
    assert choose(10_000, 256, "cuda", Diagonal()).solver == "deer"
    assert choose(10_000, 256, "cuda", Blocks(16)).solver == "deer"
    assert choose(10_000, 256, "cuda", Blocks(64)).solver == "sequential"
    assert "64 x 64" in choose(10_000, 256, "cuda", Blocks(64)).reason
