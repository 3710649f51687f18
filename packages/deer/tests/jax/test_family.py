"""The sweeps that differ in their matrices: values, gradients, promises, filters."""

import dataclasses
import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import parafix.core
from parafix.core.jax import AbstractSweep, affine_scan, Jacobi, RESULTS
from parafix.core.testing.jax import assert_close, gru
from parafix.deer.jax import (
    AdaptiveDamping,
    DEER,
    ELK,
    Picard,
    QuasiDEER,
    QuasiELK,
    scan,
    TrustRegion,
)
from parafix.deer.jax._trust_region import (
    _Dense,
    _Diagonal,
    gains_by_prefix,
    gains_in_order,
)


TOLERANCES = {"rtol": 1e-9, "atol": 1e-9}


def registered_sweeps():
    """The names under which sweeps are registered, by whomever."""
    for component in parafix.core.components(kind="rootfinder", backend="jax"):
        target = parafix.core.get("rootfinder", component.name, backend="jax")
        if isinstance(target, type) and issubclass(target, AbstractSweep):
            yield component.name


NAMES = sorted(registered_sweeps())


def test_the_family_is_registered():
    family = {"deer", "elk", "jacobi", "picard", "quasi-deer", "quasi-elk"}
    assert family <= set(NAMES)


# The least and the largest number of sweeps that are expected.
SOLVERS = {
    "deer": (DEER(**TOLERANCES), 4, 7),
    "damped": (DEER(**TOLERANCES, damping="auto"), 4, 14),
    "quasi": (QuasiDEER(**TOLERANCES), 8, 20),
    "probe": (QuasiDEER(**TOLERANCES, probe=True), 10, 40),
    "elk": (ELK(**TOLERANCES), 4, 8),
    "elk of radius 1": (ELK(**TOLERANCES, radius=1.0), 15, 90),
    "quasi-elk": (QuasiELK(**TOLERANCES), 8, 20),
    "jacobi": (Jacobi(**TOLERANCES), 25, 60),
    "picard": (Picard(**TOLERANCES), 60, 200),
}
WEIGHTS = jax.random.normal(jax.random.key(1), (200,))


@pytest.fixture(scope="module")
def problem():
    """The gated recurrence of the tables in the documentation."""
    return gru(jax.random.key(0), 200, 4)


@pytest.fixture(scope="module")
def expected(problem):
    """Its outputs and a gradient of them, by the loop."""

    def loss(params, init, xs):
        _, ys = lax.scan(problem.bind(params), init, xs)
        return WEIGHTS @ jnp.sin(ys), ys

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    return gradient(problem.params, problem.init, problem.xs)


# Those of which other tests here see the values, too.
SLOW = {"damped", "elk of radius 1", "quasi-elk"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in SOLVERS],
)
def test_values_and_sweeps(name, problem, expected):
    solver, least, most = SOLVERS[name]
    (_, ys), solution = scan(
        problem.bind(), problem.init, problem.xs, solver=solver, return_solution=True
    )
    assert solution.result == RESULTS.successful
    assert_close(ys, expected[1], 1e-9)
    assert least <= solution.stats["num_steps"] <= most
    assert solution.stats["converged_prefix"] == 200


@pytest.mark.parametrize(
    "name", ["quasi-deer", "elk", pytest.param("quasi-elk", marks=pytest.mark.slow)]
)
def test_gradients_are_those_of_backpropagation_through_time(name, problem, expected):
    @jax.jit
    @ft.partial(jax.grad, argnums=(0, 1, 2))
    def gradient(params, init, xs):
        _, ys = scan(problem.bind(params), init, xs, solver=name)
        return WEIGHTS @ jnp.sin(ys)

    actual = gradient(problem.params, problem.init, problem.xs)
    assert_close(actual, expected[0], 1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "quasi-deer",
        pytest.param("elk", marks=pytest.mark.slow),
        pytest.param("quasi-elk", marks=pytest.mark.slow),
    ],
)
def test_products_with_the_hessian(name):
    problem = gru(jax.random.key(2), 20, 2)
    point = problem.params, problem.init
    direction = jax.tree.map(lambda x: jnp.cos(2 * x), point)

    def product(scan):
        def loss(point):
            params, init = point
            _, ys = scan(problem.bind(params), init, problem.xs)
            return WEIGHTS[:20] @ jnp.sin(ys)

        along = jax.jit(lambda point: jax.jvp(jax.grad(loss), (point,), (direction,)))
        return along(point)

    gradient, second = product(ft.partial(scan, solver=name))
    expected_gradient, expected = product(lax.scan)
    assert_close(gradient, expected_gradient, 1e-9)
    assert_close(second, expected, 1e-9)
    assert all(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(second))


class TestInfiniteRadius:
    @pytest.mark.parametrize(
        ("plain", "filtered"),
        [
            pytest.param(DEER, ELK, marks=pytest.mark.slow),
            (QuasiDEER, QuasiELK),
        ],
    )
    def test_is_the_plain_solver_sweep_by_sweep(self, plain, filtered):
        problem = gru(jax.random.key(0), 40, 3)

        @ft.partial(jax.jit, static_argnums=0)
        def sweep(solver, guess):
            _, solution = scan(
                problem.bind(),
                problem.init,
                problem.xs,
                solver=solver,
                guess=guess,
                max_steps=1,
                throw=False,
                return_solution=True,
            )
            return solution.value

        one = two = jnp.broadcast_to(problem.init, (40, 3))
        for _ in range(5):
            one = sweep(plain(**TOLERANCES), one)
            two = sweep(filtered(**TOLERANCES, radius=float("inf")), two)
            assert_close(two, one, 1e-13)


def random_matrices(structure, length=9):
    """`A_t` that amplify, right-hand sides, and the matrices as dense ones."""
    numbers = np.random.default_rng(3)
    shape = {"diagonal": (4,), "dense": (4, 4), "blocks": (2, 2, 2)}[structure]
    a = numbers.standard_normal((length, *shape)) * 1.2
    a[0] = 0
    r = numbers.standard_normal((length, 4))
    dense = np.zeros((length, 4, 4))
    for t in range(length):
        if structure == "diagonal":
            dense[t] = np.diag(a[t])
        elif structure == "dense":
            dense[t] = a[t]
        else:
            dense[t, :2, :2], dense[t, 2:, 2:] = a[t]
    return jnp.asarray(a), jnp.asarray(r), dense


def gaussian_predictions(a, r, radius):
    """The mean of `d_t` given that all before it were seen to be zero.

    For every `t` a least-squares problem in all of `d_1, ..., d_t`:
    `sum |d_s - a_s d_{s-1} - r_s|^2 + sum_{s < t} |d_s|^2 / radius^2`.
    """
    length, size = r.shape
    means = []
    for t in range(1, length + 1):
        dynamics = np.eye(t * size)
        for s in range(1, t):
            rows, columns = (
                slice(s * size, (s + 1) * size),
                slice((s - 1) * size, s * size),
            )
            dynamics[rows, columns] = -a[s]
        seen = np.eye(t * size)[: (t - 1) * size] / radius
        matrix = np.concatenate([dynamics, seen])
        right = np.concatenate([r[:t].ravel(), np.zeros((t - 1) * size)])
        d = np.linalg.lstsq(matrix, right, rcond=None)[0]
        means.append(d[-size:])
    return np.stack(means)


class TestTrustRegion:
    @pytest.mark.parametrize("radius", [0.3, 2.0, 50.0])
    @pytest.mark.parametrize("structure", ["diagonal", "dense", "blocks"])
    def test_is_a_dense_gaussian_solve(self, structure, radius):
        a, r, dense = random_matrices(structure)
        expected = gaussian_predictions(dense, np.asarray(r), radius)
        region = TrustRegion(radius)
        # In two chunks, with what is carried from one to the other.
        held = region.start(jax.ShapeDtypeStruct(a.shape[1:], a.dtype))
        times = jnp.arange(len(a))
        first, held = region.damp(a[:5], times[:5], None, held)
        rest, _ = region.damp(a[5:], times[5:], None, held)
        held_back = jnp.concatenate([first, rest])
        if structure == "blocks":
            d = affine_scan(held_back, r.reshape(-1, 2, 2)).reshape(-1, 4)
        else:
            d = affine_scan(held_back, r)
        np.testing.assert_allclose(d, expected, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("structure", ["diagonal", "dense", "blocks"])
    def test_the_parallel_filter_is_the_sequential_one(self, structure):
        a, _, _ = random_matrices(structure, 13)
        algebra = (_Diagonal if structure == "diagonal" else _Dense)(jnp.asarray(0.2))
        before = gains_in_order(a[:3], jnp.zeros_like(a[0]), algebra)[-1]
        expected = gains_in_order(a[3:], before, algebra)
        actual = gains_by_prefix(a[3:], before, algebra)
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)

    def test_half_precision(self):
        a, _, _ = random_matrices("dense")
        narrow, start = a.astype(jnp.float16), jnp.zeros_like(a[0])
        expected, _ = TrustRegion(2.0).damp(a, jnp.arange(len(a)), None, start)
        actual, _ = TrustRegion(2.0).damp(
            narrow, jnp.arange(len(a)), None, start.astype(jnp.float16)
        )
        assert actual.dtype == jnp.float16
        np.testing.assert_allclose(actual, expected, atol=0.02)

    def test_the_ends_of_its_range(self):
        a, _, _ = random_matrices("dense")
        start = jnp.zeros_like(a[0])
        times = jnp.arange(len(a))
        free, _ = TrustRegion(float("inf")).damp(a, times, None, start)
        np.testing.assert_array_equal(free, a)
        none, _ = TrustRegion(0.0).damp(a, times, None, start)
        np.testing.assert_allclose(none[1:], 0, atol=1e-14)
        with pytest.raises(ValueError, match="`radius` must be non-negative"):
            ELK(**TOLERANCES, radius=-1.0)
        for made in (TrustRegion, ft.partial(ELK, 0.1, 0.1)):
            with pytest.raises(TypeError, match="`radius` must be a single"):
                made(radius=jnp.ones(3))


class TestDamping:
    def test_only_when_the_residual_grows(self):
        # The weights are an input, so that there is one program for each solver.
        problem = gru(jax.random.key(0), 200, 4)

        @ft.partial(jax.jit, static_argnums=0)
        def sweeps(damping, scale):
            params = jax.tree.map(lambda w: scale * w, problem.params)
            (_, ys), solution = scan(
                problem.bind(params),
                problem.init,
                problem.xs,
                solver=DEER(**TOLERANCES, damping=damping),
                throw=False,
                return_solution=True,
            )
            return ys, solution

        for scale in (1.0, 4.0):
            params = jax.tree.map(lambda w, scale=scale: scale * w, problem.params)
            expected = lax.scan(problem.bind(params), problem.init, problem.xs)[1]
            count = {}
            for damping in (None, "auto"):
                ys, solution = sweeps(damping, scale)
                assert solution.result == RESULTS.successful
                assert_close(ys, expected, 1e-9)
                count[damping] = int(solution.stats["num_steps"])
            if scale == 1:
                assert count["auto"] == count[None]
            else:
                assert count["auto"] < count[None]

    def test_the_factor_follows_the_residual(self):
        damping = AdaptiveDamping()
        memory = damping.init(jnp.zeros(3))
        kept = []
        for residual in (8.0, 9.0, jnp.nan, 5.0, 4.0, 3.0, 2.0):
            memory = damping.update(memory, jnp.asarray(residual))
            kept.append(float(memory[0]))
        assert kept == [1.0, 0.5, 0.25, 0.5, 1.0, 1.0, 1.0]

    def test_bad_input(self):
        with pytest.raises(TypeError, match='must be None, "auto" or'):
            DEER(**TOLERANCES, damping="sometimes")
        with pytest.raises(ValueError, match="between 0 and 1, got 2"):
            AdaptiveDamping(factor=2.0)


def field(z):
    """Of Lorenz."""
    x, y, w = z
    return jnp.stack([10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w])


def lorenz(z):
    """A step of the fourth-order Runge-Kutta method, of 0.1 units of time."""
    dt = 0.1
    k1 = field(z)
    k2 = field(z + dt / 2 * k1)
    k3 = field(z + dt / 2 * k2)
    k4 = field(z + dt * k3)
    return z + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class TestNeverAFalseSuccess:
    LENGTH = 320
    # The step is an input, too, so that each solver is compiled once.
    CASES = ("nan", "squaring", "logistic", "heavy", "gated", "lorenz", "easy")

    def step(self, case, z, x):
        time, x = x
        gated = gru(jax.random.key(0), 1, 3, 3)
        gated = gated.bind(jax.tree.map(lambda w: 100 * w, gated.params))
        heavy = 100 * jnp.array([[1.0, -2.0, 0.5], [1.5, 1.0, -1.0], [-0.5, 2.0, 1.0]])
        steps = [
            lambda z: jnp.tanh(0.5 * z + x) + jnp.where(time == 7, jnp.nan, 0),
            lambda z: z * z,
            lambda z: 3.9 * z * (1 - z),
            lambda z: jnp.tanh(heavy @ z + 100 * x),
            lambda z: gated(z, x)[0],
            lambda z: lorenz(z),
            lambda z: jnp.tanh(0.5 * z + x),
        ]
        z = lax.switch(case, steps, z)
        return z, z

    def init(self, case):
        return {
            "squaring": jnp.array([2.0, 0.5, 0.1]),
            "logistic": jnp.array([0.3, 0.4, 0.6]),
            "lorenz": jnp.array([1.0, 2.0, 20.0]),
        }.get(case, jnp.array([0.1, 0.0, -0.2]))

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(n, marks=[pytest.mark.slow] * (n in ("picard", "quasi-elk")))
            for n in NAMES
        ],
    )
    def test_on(self, name):
        phase = 0.3 * jnp.arange(float(self.LENGTH))
        xs = (jnp.arange(self.LENGTH), jnp.sin(phase[:, None] + jnp.arange(3.0)[None]))

        @jax.jit
        def both(case, init):
            f = ft.partial(self.step, case)
            (_, ys), solution = scan(
                f, init, xs, solver=name, throw=False, return_solution=True
            )
            return ys, solution, lax.scan(f, init, xs)[1]

        for case, what in enumerate(self.CASES):
            ys, solution, expected = both(jnp.asarray(case), self.init(what))
            unit = max(1.0, float(np.nanmax(np.where(np.isinf(expected), 0, expected))))
            deviation = np.abs(np.asarray(ys) - np.asarray(expected)).max() / unit
            successful = bool(solution.result == RESULTS.successful)
            # What is called a success is one.
            assert not successful or deviation < 1e-9, (what, deviation)
            assert np.isfinite(ys).all() or not successful, what
            prefix = int(solution.stats["converged_prefix"])
            if what == "easy":
                assert successful, solution.message()
                assert solution.stats["lyapunov_exponent"] < 0
            elif what == "nan":
                assert solution.result == RESULTS.nonfinite
                assert prefix == 7
            elif what == "squaring":
                assert solution.result == RESULTS.nonfinite
                assert prefix == np.isfinite(expected).all(1).sum()
            elif what in ("logistic", "lorenz"):
                assert solution.result == RESULTS.ill_conditioned, what
                assert solution.stats["lyapunov_exponent"] > 0, what
                assert "amplifies errors by about" in solution.message()

    # Nothing ties it to a trajectory that is known, so it takes some 2000 sweeps.
    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(n, marks=[pytest.mark.slow] * (n != "quasi-deer"))
            for n in NAMES
        ],
    )
    def test_on_twenty_units_of_time_by_the_method_of_euler(self, name):
        def f(z, _):
            z = z + 0.01 * field(z)
            return z, z

        @jax.jit
        def both(init):
            (_, ys), solution = scan(
                f,
                init,
                length=2000,
                solver=name,
                throw=False,
                return_solution=True,
            )
            return ys, solution, lax.scan(f, init, length=2000)[1]

        ys, solution, expected = both(jnp.ones(3))
        assert solution.result == RESULTS.ill_conditioned
        assert solution.stats["error_estimate"] > 1e-8
        prefix = int(solution.stats["converged_prefix"])
        assert 100 < prefix < 2000
        assert_close(ys[:prefix], expected[:prefix], 1e-10)


class TestLyapunovExponent:
    def exponent(self, f, init, length):
        solve = jax.jit(
            lambda init: scan(
                f, init, length=length, solver="deer", throw=False, return_solution=True
            )
        )
        return float(solve(init)[1].stats["lyapunov_exponent"])

    def test_of_linear_maps(self):
        # Of a matrix it is the logarithm of the spectral radius, and neither many steps
        # nor numbers that leave the range of floats on the way matter.
        q = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
        matrix = jnp.asarray(q @ np.diag([1e-3, 1e-4, 1e-5]) @ q.T)

        def f(z, _):
            z = matrix @ z + 1
            return z, z

        exponent = self.exponent(f, jnp.zeros(3), 1000)
        np.testing.assert_allclose(exponent, np.log(1e-3), rtol=1e-3)

    def test_of_what_remembers_nothing(self):
        def f(z, _):
            z = jnp.cos(0 * z)
            return z, z

        assert self.exponent(f, jnp.zeros(1), 10) == -np.inf

    def test_against_a_sequential_product(self):
        problem = gru(jax.random.key(4), 57, 3)
        f = problem.bind()
        _, solution = scan(
            f, problem.init, problem.xs, solver="deer", window=20, return_solution=True
        )
        before = jnp.concatenate([problem.init[None], solution.value[:-1]])
        blocks = jax.vmap(jax.jacfwd(lambda z, x: f(z, x)[0]))(before, problem.xs)
        product = np.eye(3)
        for block in np.asarray(blocks):
            product = block @ product
        expected = np.log(np.abs(product).max()) / 57
        actual = solution.stats["lyapunov_exponent"]
        np.testing.assert_allclose(actual, expected, rtol=1e-10)

    def test_a_solve_that_raises_says_it(self):
        # Of the map 3.9 z (1 - z) it is 0.5, a factor of 1.6 in each step.
        def f(z, _):
            z = 3.9 * z * (1 - z)
            return z, z

        with pytest.raises(
            RuntimeError, match=r"amplifies errors by about (1\.5|1\.75|2) per step"
        ):
            scan(f, jnp.array([0.3]), length=200, solver="deer")

    def test_costs_nothing_where_nobody_asks(self):
        problem = gru(jax.random.key(4), 57, 3)

        def loops(return_solution):
            def solve(init, xs):
                out = scan(
                    problem.bind(),
                    init,
                    xs,
                    solver="jacobi",
                    throw=False,
                    return_solution=return_solution,
                )
                if not return_solution:
                    return out
                return out[0], out[1].stats["lyapunov_exponent"]

            lowered = jax.jit(solve).lower(problem.init, problem.xs)
            return lowered.compile().as_text().count(" while(")

        assert loops(False) < loops(True)


def test_the_fields_can_be_replaced():
    solver = dataclasses.replace(ELK(**TOLERANCES), radius=3.0)
    assert solver.damping.radius == 3.0
