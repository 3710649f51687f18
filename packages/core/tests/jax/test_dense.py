"""`fixed_point` and `root_find`: values, derivatives, failures, bad input."""

import functools as ft

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

from parafix.core.jax import (
    AbstractDenseTangent,
    Anderson,
    Broyden,
    fixed_point,
    FixedPoint,
    GMRES,
    ImplicitAdjoint,
    Newton,
    PhantomAdjoint,
    RESULTS,
    root_find,
    SequentialScan,
)
from parafix.core.jax._linear import linear_solve
from parafix.core.testing.jax import assert_close, assert_identical, CallCounter


SIZE = 6


def matrix(seed=0, scale=0.5):
    values = np.random.default_rng(seed).normal(size=(SIZE, SIZE))
    return jnp.asarray(values * scale / np.abs(np.linalg.eigvals(values)).max())


def vector(seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=SIZE))


def cell(z, args):
    w, b = args
    return jnp.tanh(w @ z + b)


ARGS = (matrix(), vector())
GUESS = jnp.zeros(SIZE)
# One program for all tests of derivatives.
tight = ft.partial(fixed_point, cell, GUESS, rtol=1e-13, atol=1e-13)


def by_iteration(w, b):
    """The fixed point by NumPy, and the Jacobian there."""
    z = np.zeros(SIZE)
    for _ in range(2000):
        z = np.tanh(w @ z + b)
    return z, (1 - z**2)[:, None] * np.asarray(w)


def shift(args, direction, size):
    return jax.tree.map(lambda x, d: x + size * d, args, direction)


class TestValues:
    def test_scalars(self):
        assert_close(fixed_point(jnp.cos, 1.0).value, 0.7390851332151607, 1e-11)
        assert_close(root_find(lambda y, a: y**2 - a, 1, 2.0).value, 2**0.5, 1e-11)

    @pytest.mark.parametrize("solver", ["fixed-point", "anderson", "newton-krylov"])
    def test_a_root_is_the_fixed_point_of_the_difference(self, solver):
        expected, _ = by_iteration(*ARGS)
        found = root_find(lambda z, a: z - cell(z, a), GUESS, ARGS, solver=solver)
        assert_close(found.value, expected, 1e-10)

    def test_pytrees_of_several_dtypes(self):
        # Every leaf is held to the tolerance of its own dtype.
        def f(y):
            u, v = y["u"], y["v"]
            return {
                "u": 0.5 * jnp.cos(u) + 0.1 * v.sum().astype(u.dtype),
                "v": 0.3 * jnp.sin(v) + 0.1 * u[None, :2].astype(v.dtype),
            }

        y0 = {"u": jnp.zeros(3), "v": jnp.zeros((1, 2), jnp.float32)}
        solution = fixed_point(f, y0)
        y = solution.value
        assert jax.tree.structure(y) == jax.tree.structure(y0)
        assert (y["u"].dtype, y["v"].dtype) == (jnp.float64, jnp.float32)
        image = f(y)
        assert np.abs(image["u"] - y["u"]).max() < 4e-12
        assert np.abs(image["v"] - y["v"]).max() < 1e-5
        assert solution.stats["residual"] <= 1

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_narrow_dtypes(self, dtype):
        args = jax.tree.map(lambda x: x.astype(dtype), ARGS)
        solution = fixed_point(cell, GUESS.astype(dtype), args)
        assert solution.value.dtype == dtype
        expected, _ = by_iteration(*(np.asarray(x, float) for x in args))
        tolerance = float(jnp.finfo(dtype).eps) ** 0.75
        assert np.abs(np.asarray(solution.value, float) - expected).max() < (
            4 * tolerance
        )

    def test_of_size_zero(self):
        solution = fixed_point(lambda y: y, {"a": jnp.zeros((0, 3))})
        assert solution.value["a"].shape == (0, 3)
        assert solution.result == RESULTS.successful

    def test_evaluations_are_counted(self):
        # Chord linearises once, and its step evaluates, as the measurement does.
        for solver, each, first in (
            ("anderson", 1, 0),
            ("newton", 1, 0),
            ("chord", 2, 1),
        ):
            solution = fixed_point(cell, GUESS, ARGS, solver=solver)
            stats = solution.stats
            assert stats["num_evals"] == each * stats["num_steps"] + first
        stats = fixed_point(cell, GUESS, ARGS, solver="newton").stats
        # The last step only confirms.
        assert stats["num_linear"] == SIZE * (stats["num_steps"] - 1)

    def test_a_second_call_compiles_nothing(self):
        counter = CallCounter(cell)
        for b in (vector(2), vector(3)):
            fixed_point(counter, GUESS, (ARGS[0], b))
            counts = counter.calls
        fixed_point(counter, GUESS + 1, (ARGS[0], vector(4)))
        assert counter.calls == counts


class TestDerivatives:
    """Against dense linear algebra, and second ones against differences of these."""

    direction = (matrix(5, 1.0), vector(6))
    weights = vector(7)

    def gradient(self, args):
        w, b = (np.asarray(x) for x in args)
        z, jacobian = by_iteration(w, b)
        u = np.linalg.solve((np.eye(SIZE) - jacobian).T, self.weights) * (1 - z**2)
        return np.outer(u, z), u

    def loss(self, args, **options):
        return self.weights @ tight(args, **options).value

    @pytest.mark.parametrize("adjoint", ["implicit", "unrolled"])
    def test_first(self, adjoint):
        loss = ft.partial(self.loss, adjoint=adjoint)
        expected = self.gradient(ARGS)
        assert_close(jax.grad(loss)(ARGS), expected, 1e-9)
        _, tangent = jax.jvp(loss, (ARGS,), (self.direction,))
        along = sum(
            np.vdot(x, y) for x, y in zip(expected, self.direction, strict=True)
        )
        assert_close(tangent, along, 1e-9)

    @pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
    @pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
    def test_second(self, outer, inner):
        w, b = ARGS
        hessian = outer(inner(lambda b: self.loss((w, b))))(b)
        for i in range(2):
            step = 1e-5 * jnp.eye(SIZE)[i]
            above, below = (self.gradient((w, x))[1] for x in (b + step, b - step))
            assert_close(hessian[i], (above - below) / 2e-5, 1e-8)

    def test_second_of_what_is_unrolled(self):
        w, b = ARGS
        loss = lambda b: self.loss((w, b), solver="fixed-point", adjoint="unrolled")
        exact = jax.hessian(lambda b: self.loss((w, b)))(b)
        assert_close(jax.jacfwd(jax.grad(loss))(b), exact, 1e-8)

    def test_through_closures_and_of_roots(self):
        def loss(args):
            root = lambda z: z - cell(z, args)
            return self.weights @ root_find(root, GUESS, rtol=1e-13, atol=1e-13).value

        assert_close(jax.grad(loss)(ARGS), self.gradient(ARGS), 1e-9)

    def test_of_a_batch_are_those_of_its_samples(self):
        bs = jnp.stack([vector(seed) for seed in (1, 2, 3)])
        gradients = jax.vmap(jax.grad(lambda b: self.loss((ARGS[0], b))))(bs)
        for b, found in zip(bs, gradients, strict=True):
            assert_close(found, self.gradient((ARGS[0], b))[1], 1e-9)

    def test_with_respect_to_the_guess(self):
        def loss(guess, adjoint):
            solution = fixed_point(cell, guess, ARGS, adjoint=adjoint, atol=0.1)
            return self.weights @ solution.value

        for adjoint in ("implicit", "one-step", "phantom"):
            assert_identical(jax.grad(loss)(GUESS, adjoint), jnp.zeros(SIZE))
        assert np.abs(jax.grad(loss)(GUESS, "unrolled")).max() > 1e-6

    def test_of_a_map_that_expands(self):
        w = matrix(8, 3.0)
        f = lambda z, args: args[0] @ z + args[1]
        for solver in ("anderson", "broyden", "newton", "newton-krylov"):
            solve = lambda b, solver=solver: (
                fixed_point(
                    f, GUESS, (w, b), solver=solver, rtol=1e-12, atol=1e-12
                ).value
            )
            inverse = np.linalg.inv(np.eye(SIZE) - w)
            assert_close(solve(ARGS[1]), inverse @ ARGS[1], 1e-9)
            assert_close(jax.jacrev(solve)(ARGS[1]), inverse, 1e-9)

    def test_phantom_steps_are_a_series(self):
        _, jacobian = by_iteration(*ARGS)
        adjoint = PhantomAdjoint(steps=3, damping=0.25)
        tangent = jax.jvp(
            lambda z: (
                fixed_point(
                    lambda y, z: cell(y, ARGS) + z,
                    GUESS,
                    z,
                    adjoint=adjoint,
                    rtol=1e-13,
                    atol=1e-13,
                ).value
            ),
            (jnp.zeros(SIZE),),
            (self.weights,),
        )[1]
        t = np.zeros(SIZE)
        for _ in range(3):
            t = 0.25 * t + 0.75 * (jacobian @ t + self.weights)
        assert_close(tangent, t, 1e-10)

    def test_by_solvers_of_lineax_and_adjoints_of_optimistix(self):
        expected = self.gradient(ARGS)
        for adjoint in (
            ImplicitAdjoint(lx.AutoLinearSolver(well_posed=None)),
            optx.ImplicitAdjoint(),
        ):
            found = jax.grad(ft.partial(self.loss, adjoint=adjoint))(ARGS)
            assert_close(found, expected, 1e-9)


class Learnt(AbstractDenseTangent):
    """What the solver has learnt of the inverse Jacobian, instead of a linear solve."""

    def solve(self, jvp, b, throw, inverse):
        assert inverse is not None
        return -inverse(b)


class TestOutsideAdjoints:
    def test_what_a_solver_has_learnt_can_be_used(self):
        solver = Broyden(1e-13, 1e-13, memory=50)
        gradients = {
            name: jax.grad(
                lambda b, adjoint=adjoint: (
                    vector(7)
                    @ fixed_point(
                        cell, GUESS, (ARGS[0], b), solver=solver, adjoint=adjoint
                    ).value
                )
            )(ARGS[1])
            for name, adjoint in (
                ("learnt", Learnt()),
                ("exact", "implicit"),
                ("one-step", "one-step"),
            )
        }
        error, other = (
            np.abs(gradients[name] - gradients["exact"]).max()
            for name in ("learnt", "one-step")
        )
        assert 1e-9 < error < 0.5 * other


class TestLinearSolves:
    @pytest.mark.parametrize("restart", [3, 50])
    def test_gmres(self, restart):
        a = jnp.eye(SIZE) - matrix(3, 0.6)
        b = vector(4)
        solver = GMRES(restart=restart)
        x, (count, ok) = linear_solve(lambda v: a @ v, b, solver)
        assert ok
        assert_close(x, np.linalg.solve(a, b), 1e-10)
        if restart > SIZE:
            assert count == SIZE + 1

    def test_gmres_restarts_beyond_some_size_only(self):
        # Eigenvalues all around zero: restarts after few products lead nowhere.
        size = 120
        random = np.random.default_rng(5)
        a = jnp.eye(size) - 3 * random.normal(size=(size, size)) / np.sqrt(size)
        b = jnp.asarray(random.normal(size=size))
        _, (_, ok) = linear_solve(lambda v: a @ v, b, GMRES(restart=20))
        assert not ok
        x, (count, ok) = linear_solve(lambda v: a @ v, b, GMRES())
        assert (ok, count) == (True, size + 1)
        assert_close(x, np.linalg.solve(a, b), 1e-8)

    def test_gmres_stops_as_soon_as_it_may(self):
        # Three eigenvalues: three products, and one to see what is left.
        a = jnp.diag(jnp.array([1.0, 1.0, 2.0, 2.0, 5.0, 5.0]))
        x, (count, ok) = linear_solve(lambda v: a @ v, vector(4), GMRES())
        assert (ok, count) == (True, 4)
        assert_close(x, vector(4) / jnp.diagonal(a), 1e-11)

    def test_gmres_with_nothing_to_do(self):
        x, (count, ok) = linear_solve(lambda v: 2 * v, jnp.zeros(SIZE), GMRES())
        assert (ok, count) == (True, 0)
        assert_identical(x, jnp.zeros(SIZE))

    @pytest.mark.parametrize("a", [0.0, jnp.nan])
    def test_gmres_says_that_it_failed(self, a):
        _, (_, ok) = linear_solve(lambda v: a * v, vector(4), GMRES())
        assert not ok

    def test_one_that_fails_raises(self):
        f = lambda z, x: z - z**3 + x

        def loss(x, throw):
            return fixed_point(f, jnp.zeros(2), x, throw=throw).value.sum()

        with pytest.raises(RuntimeError, match="linear solve"):
            jax.jit(jax.grad(loss), static_argnums=1)(0.0, True)
        assert np.isnan(jax.grad(loss)(0.0, False))

    def test_one_that_fails_is_that_of_one_sample(self):
        def f(z, x):
            return x * z - z**3 + 1 - x

        def loss(x):
            return fixed_point(f, jnp.zeros(2), x, throw=False).value.sum()

        xs = jnp.array([0.5, 1.0, -0.3])
        gradients = jax.vmap(jax.grad(loss))(xs)
        np.testing.assert_array_equal(np.isnan(gradients), [False, True, False])
        other = jax.vmap(jax.grad(loss))(xs.at[1].set(0.2))
        assert_identical(gradients[::2], other[::2])


class TestFailures:
    def outcome(self, f, y0, **options):
        solution = fixed_point(f, y0, throw=False, **options)
        with pytest.raises(RuntimeError) as error:
            fixed_point(f, y0, **options)
        assert solution.message() in str(error.value)
        assert "position" not in solution.message()
        return solution

    def test_too_few_steps(self):
        solution = self.outcome(jnp.cos, jnp.array(1.0), max_steps=3)
        assert solution.result == RESULTS.max_steps_reached
        assert solution.stats["num_steps"] == 3

    def test_the_lowest_residual_comes_back(self):
        # Overrelaxed iteration from a good point gets worse and worse.
        solver = FixedPoint(1e-9, 1e-9, damping=-1.5)
        solution = self.outcome(jnp.cos, jnp.array(0.7), solver=solver, max_steps=5)
        assert solution.value == 0.7

    def test_divergence(self):
        f = lambda z: 3 * z + 1
        solution = self.outcome(f, jnp.zeros(2), solver="fixed-point")
        assert solution.result == RESULTS.diverged
        assert_identical(solution.value, jnp.zeros(2))

    def test_nonfinite(self):
        for y0 in (jnp.array([-1.0, 1.0]), jnp.array([jnp.nan, 1.0])):
            solution = self.outcome(jnp.log, y0)
            assert solution.result == RESULTS.nonfinite
        # Reached on the way, after points that were fine.
        f = lambda z: jnp.log(z - 0.5)
        solution = self.outcome(f, jnp.array(5.0), solver="fixed-point")
        assert solution.result == RESULTS.nonfinite
        assert np.isfinite(solution.value)

    def test_stalling(self):
        # The least step of the dtype away from a point that is none.
        f = lambda z: z + jnp.where(z > 1, -1e-17, 1e-17) * 1e3
        solution = self.outcome(
            f, jnp.array(100.0), solver="fixed-point", rtol=0.0, atol=1e-30
        )
        assert solution.result == RESULTS.stalled

    def test_a_singular_jacobian(self):
        f = lambda z: z + jnp.array([1.0, 0.5])
        solution = self.outcome(f, jnp.zeros(2), solver="newton")
        assert solution.result == RESULTS.linear_solve_failed

    def test_one_sample_among_others(self):
        f = lambda z, a: jnp.log(a + 0.5 * jnp.cos(z))
        solve = jax.vmap(lambda a: fixed_point(f, jnp.array(0.0), a, throw=False))
        good, bad = jnp.array([2.0, 3.0, 4.0]), jnp.array([2.0, -3.0, 4.0])
        ok = solve(bad).result == RESULTS.successful
        np.testing.assert_array_equal(ok, [True, False, True])
        assert_identical(solve(bad).value[::2], solve(good).value[::2])

    def test_when_only_a_gradient_is_asked_for(self):
        # Linear: the gradient needs no value.
        loss = lambda b: (
            fixed_point(lambda z, b: 3 * z + b, 0.0, b, solver="fixed-point").value
        )
        with pytest.raises(RuntimeError, match="without bound"):
            jax.jit(jax.grad(loss))(1.0)


class TestBadInput:
    @pytest.mark.parametrize(
        ("error", "words", "change"),
        [
            (TypeError, "y0.*int", {"y0": jnp.zeros(SIZE, int)}),
            (TypeError, r"y0\['a'\].*complex.*real", {"y0": {"a": jnp.array(1j)}}),
            (TypeError, r"fn.*float64\[6\].*float64\[3\]", {"fn": lambda z: z[:3]}),
            (TypeError, "fn.*float32", {"fn": lambda z: z.astype(jnp.float32)}),
            (TypeError, "fn.*structure", {"fn": lambda z: (z, z)}),
            (ValueError, "rtol", {"rtol": -1.0}),
            (TypeError, "atol", {"atol": "small"}),
            (ValueError, "max_steps", {"max_steps": 0}),
            (TypeError, "max_steps", {"max_steps": 1.5}),
            (LookupError, "solver='andersen'.*anderson", {"solver": "andersen"}),
            (LookupError, "adjoint='implict'.*implicit", {"adjoint": "implict"}),
            (TypeError, "adjoint", {"adjoint": 3}),
            (TypeError, "solver", {"solver": Anderson}),
            (TypeError, "Jacobi.*recurrences", {"solver": "jacobi"}),
            (TypeError, "Sequential.*recurrences", {"solver": "sequential"}),
            (TypeError, "solver", {"solver": SequentialScan()}),
            (ValueError, "rtol.*own", {"solver": Anderson(1e-3, 1e-3), "rtol": 0.1}),
        ],
    )
    def test_of_a_verb(self, error, words, change):
        arguments = {"fn": jnp.tanh, "y0": GUESS, **change}
        with pytest.raises(error, match=f"(?s){words}"):
            fixed_point(**arguments)

    @pytest.mark.parametrize(
        ("words", "make"),
        [
            ("history", lambda: Anderson(0.1, 0.1, history=0)),
            ("ridge", lambda: Anderson(0.1, 0.1, ridge=-1.0)),
            ("memory", lambda: Broyden(0.1, 0.1, memory=0)),
            ("kind", lambda: Broyden(0.1, 0.1, kind="ugly")),  # pyright: ignore
            ("rtol", lambda: Newton(-0.1, 0.1)),
            ("steps", lambda: PhantomAdjoint(steps=0)),
            ("restart", lambda: GMRES(restart=0)),
        ],
    )
    def test_of_a_constructor(self, words, make):
        with pytest.raises((ValueError, TypeError), match=words):
            make()
