"""Values: whatever `jax.lax.scan` returns, in every shape and dtype it takes."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parafix.core.jax import Jacobi, RESULTS, Sequential
from parafix.core.testing.jax import (
    assert_close,
    assert_identical,
    gru,
    lstm,
    python_loop,
    reference_scan,
    tanh_cell,
)
from parafix.deer.jax import DEER, scan


SOLVERS = ("deer", "jacobi")
CELLS = {"gru": gru, "lstm": lstm, "tanh": tanh_cell}


def cell(name, length):
    return CELLS[name](jax.random.key(len(name)), length)


def check(f, init, xs=None, length=None, tolerance=1e-12, **options):
    """`scan` agrees with `lax.scan`, and says how it went without contradiction."""
    reverse = options.get("reverse", False)
    carry, ys, carries = reference_scan(f, init, xs, length, reverse=reverse)

    @jax.jit
    def solve(init, xs):
        return scan(f, init, xs, length, return_solution=True, **options)

    actual, solution = solve(init, xs)
    assert_close(actual, (carry, ys), tolerance)
    assert_close(solution.value, carries, tolerance)
    assert solution.result == RESULTS.successful
    assert solution.message() == ""
    steps = len(jax.tree.leaves(xs)[0]) if length is None else length
    assert solution.stats["converged_prefix"] == steps
    assert solution.stats["residual"] <= 1 or options["solver"] == "sequential"
    return solution


class TestCells:
    @pytest.mark.parametrize(
        ("solver", "length"),
        [
            *(("deer", length) for length in (0, 1, 2, 3, 100)),
            *(("jacobi", length) for length in (0, 1, 3)),
            *(("sequential", length) for length in (0, 3)),
            *(("auto", length) for length in (0, 3)),
        ],
    )
    def test_gru_at_every_length(self, solver, length):
        problem = cell("gru", length)
        check(problem.bind(), problem.init, problem.xs, solver=solver)

    @pytest.mark.parametrize(("solver", "name"), [("deer", "lstm"), ("jacobi", "tanh")])
    def test_other_cells(self, solver, name):
        problem = cell(name, 100)
        # Jacobi converges linearly: a residual within tolerance is an error of more.
        tolerance = 1e-12 if solver == "deer" else 1e-11
        check(
            problem.bind(), problem.init, problem.xs, tolerance=tolerance, solver=solver
        )

    def test_a_python_loop_says_the_same(self):
        problem = cell("lstm", 6)
        f, init, xs = problem.bind(), problem.init, problem.xs
        for reverse in (False, True):
            actual = scan(f, init, xs, reverse=reverse, solver="deer")
            assert_close(actual, python_loop(f, init, xs, reverse=reverse))

    def test_ten_thousand_steps(self):
        problem = cell("gru", 10_000)
        solution = check(problem.bind(), problem.init, problem.xs, solver="deer")
        assert solution.stats["num_steps"] <= 12

    def test_reverse(self):
        problem = cell("lstm", 7)
        check(problem.bind(), problem.init, problem.xs, solver="deer", reverse=True)

    @pytest.mark.parametrize(
        "window",
        [30, *(pytest.param(w, marks=pytest.mark.slow) for w in (1, 10, 1000))],
    )
    def test_windows_that_divide_the_length_or_do_not(self, window):
        problem = cell("lstm", 100)
        solution = check(
            problem.bind(), problem.init, problem.xs, solver="deer", window=window
        )
        assert solution.stats["num_steps"] >= -(-100 // window)

    def test_eager_and_jitted_agree(self):
        problem = cell("gru", 100)
        solve = ft.partial(scan, problem.bind(), solver="deer")
        eager = solve(problem.init, problem.xs)
        assert_close(jax.jit(solve)(problem.init, problem.xs), eager, 1e-15)


class TestCarries:
    def test_scalar_and_weakly_typed(self):
        xs = jnp.linspace(-1, 1, 5)

        def f(carry, x):
            carry = 0.5 * carry + x
            return carry, 2 * carry

        for init in (0.0, 0, np.float64(0.3), jnp.array(0.3)):
            expected = lax.scan(f, init, xs)
            actual = scan(f, init, xs, solver="deer")
            assert_close(actual, expected)
            types = [jax.typeof(x).weak_type for x in (*actual, *expected)]
            assert types[:2] == types[2:], init

    def test_nested_pytrees_of_several_dtypes(self, getkey):
        init = {
            "narrow": jnp.ones((2,), jnp.float32),
            "wide": [jnp.ones((2, 1)), jnp.zeros(())],
            "empty": jnp.zeros((0, 3)),
            "none": None,
            "nothing": (),
        }

        def f(carry, x):
            narrow, (wide, scalar) = carry["narrow"], carry["wide"]
            new = {
                **carry,
                "narrow": jnp.sin(narrow + x.astype(jnp.float32)),
                "wide": [0.3 * wide + scalar, jnp.tanh(scalar + x + wide.sum())],
            }
            return new, (carry["wide"][0], new["narrow"])

        xs = jax.random.normal(getkey(), (6,))
        check(f, init, xs, tolerance=3e-6, solver="jacobi", window=4)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_a_narrow_leaf_costs_a_wide_one_no_digits(self, solver):
        def f(carry, x):
            wide, narrow = carry
            wide = jnp.tanh(0.9 * wide + x)
            return (wide, narrow / 2), wide

        init = (jnp.zeros(()), jnp.ones((), jnp.bfloat16))
        xs = jnp.sin(jnp.arange(60.0))
        actual = scan(f, init, xs, solver=solver)
        assert_close(actual[1], lax.scan(f, init, xs)[1], 1e-10)

    def test_complex_numbers_through_maps_that_are_not_holomorphic(self, getkey):
        def f(carry, x):
            z, w = carry
            z = 0.5j * z.conj() + x + (0.3 * jnp.abs(w)).astype(complex)
            w = 0.4 * w + z.real
            return (z, w), jnp.abs(z) + w

        xs = jax.random.normal(getkey(), (8, 2), jnp.complex128)
        init = (jnp.zeros(2, jnp.complex128), jnp.ones(2))
        check(f, init, xs, solver="deer")

    @pytest.mark.parametrize(
        "dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64]
    )
    def test_narrow_dtypes(self, dtype, getkey):
        eps = float(jnp.finfo(dtype).eps)

        def f(carry, x):
            carry = jnp.tanh(carry * 0.5 + x)
            return carry, carry

        xs = jax.random.normal(getkey(), (20, 2), dtype) / 4
        init = jnp.zeros(2, dtype)
        check(f, init, xs, tolerance=4 * eps**0.75, solver="deer")

    def test_a_counter_drives_the_step(self):
        def f(carry, x):
            count, h = carry["count"], carry["h"]
            h = jnp.tanh(0.5 * h + x + jnp.where(count % 2 == 0, 1.0, -1.0))
            return {"count": count + 2, "even": ~carry["even"], "h": h}, (count, h)

        init = {"count": jnp.array(3), "even": jnp.array(True), "h": jnp.zeros(())}
        check(f, init, jnp.linspace(-1, 1, 7), solver="deer")
        check(f, init, jnp.linspace(-1, 1, 7), solver="jacobi", reverse=True, window=3)

    @pytest.mark.parametrize(
        "make",
        [jax.random.key, pytest.param(jax.random.PRNGKey, marks=pytest.mark.slow)],
    )
    def test_keys_in_the_carry(self, make):
        def f(carry, x):
            key, h = carry
            key, sub = jax.random.split(key)
            h = jnp.tanh(0.5 * h + x + jax.random.normal(sub))
            return (key, h), (h, key)

        init = (make(0), jnp.zeros(()))
        check(f, init, jnp.linspace(-1, 1, 7), solver="deer", reverse=True, window=3)

    @pytest.mark.parametrize(
        "make",
        [jax.random.key, pytest.param(jax.random.PRNGKey, marks=pytest.mark.slow)],
    )
    def test_keys_as_inputs(self, make):
        def f(h, x):
            h = jnp.tanh(0.5 * h + jax.random.normal(x["key"]) * x["scale"])
            return h, h

        xs = {"key": jax.random.split(make(0), 7), "scale": jnp.arange(7)}
        xs["scale"] = xs["scale"].astype(float)
        check(f, jnp.zeros(()), xs, solver="deer", reverse=True, window=3)

    def test_no_float_at_all(self):
        def f(count, x):
            return count + x, count

        for solver in (*SOLVERS, "auto"):
            check(f, jnp.array(0), jnp.arange(5), solver=solver)

    def test_an_empty_carry(self):
        check(lambda carry, x: (carry, 2 * x), (), jnp.arange(5.0), solver="deer")


class TestInputs:
    def test_none_with_a_length(self):
        def f(h, x):
            assert x is None
            h = jnp.cos(h)
            return h, h

        check(f, jnp.array([0.1, 0.7]), None, 9, solver="deer")
        check(f, jnp.array([0.1, 0.7]), length=9, solver="jacobi", reverse=True)

    def test_weights_of_every_step(self, getkey):
        xs = {
            "W": jax.random.normal(getkey(), (6, 2, 2)),
            "b": jax.random.normal(getkey(), (6, 2)),
            "n": jnp.arange(6),
        }

        def f(h, x):
            h = jnp.tanh(x["W"] @ h + x["b"] + x["n"].astype(float))
            return h, None

        check(f, jnp.zeros(2), xs, 6, solver="deer")

    def test_numpy_arrays(self):
        xs = np.linspace(-1, 1, 5)
        f = lambda h, x: (0.5 * h + x, h)
        actual = scan(f, np.float64(1), xs, solver="deer")
        assert_close(actual, lax.scan(f, np.float64(1), xs))


class TestOutputs:
    @pytest.mark.parametrize(
        "output",
        [
            lambda old, new, x: None,
            # Leaves of the new carry alone need no evaluation after the solve.
            lambda old, new, x: {"a": new, "b": (new, None)},
            lambda old, new, x: {
                "old": old,
                "new": new,
                "integer": jnp.argmax(new),
                "flags": new > 0,
                "constants": (3, 2.0, None),
                "narrow": new.sum().astype(jnp.float32),
                "product": x @ new,
            },
        ],
        ids=["none", "carry", "mixed"],
    )
    def test_of_every_kind(self, output):
        problem = cell("tanh", 12)

        def f(old, x):
            new, _ = problem.bind()(old, x)
            return new, output(old, new, x.sum() * jnp.ones(3))

        check(f, problem.init, problem.xs, solver="deer", window=5)


class TestNesting:
    def test_scan_in_scan(self):
        def nested(scan):
            def inner(h, x):
                h = jnp.tanh(0.5 * h + x)
                return h, h * x

            def outer(h, x):
                h, ys = scan(inner, h, x)
                return 0.5 * h, ys.sum()

            def loss(h, xs):
                carry, ys = scan(outer, h, xs)
                return carry.sum() + (ys**2).sum()

            xs = jnp.sin(jnp.arange(12.0)).reshape(4, 3)
            return jax.jit(jax.value_and_grad(loss, (0, 1)))(jnp.array(0.3), xs)

        assert_close(nested(ft.partial(scan, solver="deer")), nested(lax.scan))

    @pytest.mark.slow
    def test_scan_inside_vmap_inside_scan(self):
        def nested(inner_scan, outer_scan):
            def inner(h, x):
                h = jnp.tanh(0.5 * h + x)
                return h, h

            def outer(h, x):
                h, _ = jax.vmap(lambda h: inner_scan(inner, h, x))(h)
                return 0.5 * h, h.sum()

            def loss(h, xs):
                return (outer_scan(outer, h, xs)[1] ** 2).sum()

            xs = jnp.sin(jnp.arange(12.0)).reshape(4, 3)
            return jax.jit(jax.value_and_grad(loss, (0, 1)))(jnp.arange(2.0), xs)

        deer = ft.partial(scan, solver="deer")
        expected = nested(lax.scan, lax.scan)
        assert_close(nested(deer, lax.scan), expected)
        assert_close(nested(deer, deer), expected)


class TestGuesses:
    def solve(self, guess, **options):
        problem = cell("lstm", 20)
        f, init, xs = problem.bind(), problem.init, problem.xs
        reverse = options.get("reverse", False)
        carry, ys, carries = reference_scan(f, init, xs, reverse=reverse)
        actual, solution = scan(
            f, init, xs, guess=guess(carries), return_solution=True, **options
        )
        assert_close(actual, (carry, ys))
        return solution

    @pytest.mark.parametrize(
        ("solver", "reverse"), [("deer", False), ("deer", True), ("jacobi", True)]
    )
    def test_an_exact_one_takes_one_sweep(self, solver, reverse):
        solution = self.solve(lambda exact: exact, solver=solver, reverse=reverse)
        assert solution.stats["num_steps"] == 1

    def test_an_awful_one_does_no_harm(self):
        problem = cell("tanh", 20)
        f, init, xs = problem.bind(), problem.init, problem.xs
        solve = jax.jit(lambda guess: scan(f, init, xs, solver="deer", guess=guess))
        for bad in (jnp.nan, jnp.inf, 1e300, -1e-300):
            assert_close(solve(jnp.full((20, 3), bad)), lax.scan(f, init, xs))

    def test_the_value_of_an_earlier_solution_serves(self):
        first = self.solve(lambda exact: None, solver="deer")
        again = self.solve(lambda exact: first.value, solver="deer", window=7)
        assert again.stats["num_steps"] == 3

    def test_of_a_carry_with_a_counter_and_a_key(self):
        def f(carry, x):
            h = jnp.tanh(0.5 * carry["h"] + x)
            key = jax.random.fold_in(carry["key"], carry["n"])
            return {"h": h, "n": carry["n"] + 1, "key": key}, h

        init = {"h": jnp.zeros(2), "n": 0, "key": jax.random.key(0)}
        xs = jnp.ones((5, 2))
        *expected, carries = reference_scan(f, init, xs)
        actual, solution = scan(
            f, init, xs, solver="deer", guess=carries, return_solution=True
        )
        assert_close(actual, tuple(expected))
        assert solution.stats["num_steps"] == 1

    def test_a_sequential_solve_does_not_need_one(self):
        problem = cell("tanh", 5)
        f, init, xs = problem.bind(), problem.init, problem.xs
        guess = jnp.zeros((5, 3))
        expected = lax.scan(f, init, xs)
        assert_close(scan(f, init, xs, solver="sequential", guess=guess), expected)


class TestSolvers:
    def test_objects_stand_for_names(self):
        problem = cell("gru", 30)
        f, init, xs = problem.bind(), problem.init, problem.xs
        tolerances = {"rtol": 1e-8, "atol": 1e-9}
        for name, made in (("deer", DEER), ("jacobi", Jacobi)):
            by_name = scan(f, init, xs, solver=name, return_solution=True, **tolerances)
            by_object = scan(
                f, init, xs, solver=made(**tolerances), return_solution=True
            )
            assert_identical(by_object, by_name)
        sequential = scan(f, init, xs, solver=Sequential(1e-8, 1e-8))
        assert_identical(sequential, lax.scan(f, init, xs))

    @pytest.mark.parametrize(
        ("inner", "chunk"),
        [
            ("associative", 7),
            pytest.param("sequential", 1, marks=pytest.mark.slow),
            pytest.param("blocked", 100, marks=pytest.mark.slow),
        ],
    )
    def test_scans_and_chunks_change_only_rounding(self, inner, chunk):
        problem = cell("gru", 30)
        solver = DEER(rtol=1e-12, atol=1e-12, scan=inner, chunk=chunk)
        check(problem.bind(), problem.init, problem.xs, solver=solver)

    def test_unroll_is_passed_on(self):
        problem = cell("gru", 12)
        f, init, xs = problem.bind(), problem.init, problem.xs
        for unroll in (4, True):
            expected = jax.make_jaxpr(
                lambda init, xs, u=unroll: lax.scan(f, init, xs, unroll=u)
            )(init, xs)
            actual = jax.make_jaxpr(
                lambda init, xs, u=unroll: scan(
                    f, init, xs, unroll=u, solver="sequential"
                )
            )(init, xs)
            assert str(actual) == str(expected)

    def test_positional_arguments_are_those_of_lax_scan(self):
        problem = cell("gru", 12)
        f, init, xs = problem.bind(), problem.init, problem.xs
        expected = lax.scan(f, init, xs, 12, True, 2)
        assert_identical(scan(f, init, xs, 12, True, 2), expected)
        assert_close(scan(f, init, xs, 12, True, 2, solver="deer"), expected)


class TestStatistics:
    KEYS = {
        "num_steps",
        "num_evals",
        "num_linear",
        "residual",
        "converged_prefix",
        "error_estimate",
        "lyapunov_exponent",
        "sequential_from",
    }

    @pytest.mark.parametrize(
        ("solver", "length"), [("deer", 0), ("auto", 0), ("auto", 10), ("deer", 10)]
    )
    def test_keys_are_the_same_whatever_the_solver(self, solver, length):
        problem = cell("gru", length)
        _, solution = scan(
            problem.bind(),
            problem.init,
            problem.xs,
            solver=solver,
            return_solution=True,
        )
        assert set(solution.stats) == self.KEYS
        assert all(jnp.shape(value) == () for value in solution.stats.values())

    def test_of_a_gru(self):
        problem = cell("gru", 40)
        f, init, xs = problem.bind(), problem.init, problem.xs
        for solver in SOLVERS:
            _, solution = scan(f, init, xs, solver=solver, return_solution=True)
            stats = solution.stats
            assert 0 <= stats["residual"] <= 1
            assert stats["converged_prefix"] == 40
            # A sweep evaluates once; one more certifies, and one is for the growth.
            assert stats["num_evals"] == stats["num_steps"] + 2
            assert 0 < stats["error_estimate"] < 1e-14
        assert stats["num_linear"] == 6
        assert solution.leaves == ("carry",)

    def test_leaves_are_called_as_the_user_calls_them(self):
        problem = cell("lstm", 5)
        _, solution = scan(
            problem.bind(),
            problem.init,
            problem.xs,
            solver="deer",
            return_solution=True,
        )
        assert solution.leaves == ("carry['c']", "carry['h']")


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_linear_recurrence_takes_one_update(solver):
    # Jacobi carries a state forward by one time in a sweep; DEER solves it at once.
    if solver == "jacobi":
        solver, sweeps = "jacobi", 51
    else:
        sweeps = 2
    matrices = 0.6 * jnp.sin(jnp.arange(50 * 9.0)).reshape(50, 3, 3)

    def f(h, x):
        h = x @ h + 1
        return h, h

    solution = check(f, jnp.ones(3), matrices, solver=solver)
    assert solution.stats["num_steps"] <= sweeps
