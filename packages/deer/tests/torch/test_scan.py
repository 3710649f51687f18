"""Values: those of the loop, whatever the carry, the inputs and the options."""

import pytest
import torch
from torch.utils import _pytree as pytree

from parafix.core.testing.torch import (
    assert_close,
    assert_identical,
    CallCounter,
    gru,
    logistic,
    lstm,
    reference_scan,
    tanh_cell,
)
from parafix.core.torch import Jacobi, RESULTS, Sequential
from parafix.deer.torch import DEER, scan


DOUBLE = torch.float64
CELLS = {"gru": gru, "lstm": lstm, "tanh": tanh_cell}
SOLVERS = ("deer", "jacobi")


def cell(name, length, **options):
    return CELLS[name](7, length, **options)


def check(f, init, xs=None, length=None, *, tolerance=1e-12, reverse=False, **options):
    """That `scan` returns what the loop does; the solution."""
    expected = reference_scan(f, init, xs, length, reverse=reverse)
    actual, solution = scan(
        f, init, xs, length, reverse, return_solution=True, **options
    )
    assert_close((*actual, solution.value), expected, tolerance)
    assert (solution.result == RESULTS.successful).all()
    return solution


class TestCells:
    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("name", CELLS)
    @pytest.mark.parametrize("length", [1, 2, 3, 100])
    def test_agree_with_the_loop(self, name, length, reverse, solver):
        problem = cell(name, length)
        arguments = problem.bind(), problem.init, problem.xs
        # Of Newton's method the last step is far below the tolerance of 2e-12.
        tolerance = 1e-12 if solver == "deer" else 1e-11
        check(*arguments, solver=solver, reverse=reverse, tolerance=tolerance)

    @pytest.mark.parametrize("solver", [*SOLVERS, "sequential", "auto"])
    @pytest.mark.parametrize("name", CELLS)
    def test_of_no_steps(self, name, solver):
        problem = cell(name, 0)
        (carry, ys), solution = scan(
            problem.bind(),
            problem.init,
            problem.xs,
            solver=solver,
            return_solution=True,
        )
        assert_identical(carry, problem.init)
        _, expected, carries = reference_scan(
            problem.bind(), problem.init, cell(name, 1).xs
        )
        empty = lambda tree: pytree.tree_map(lambda x: x[:0], tree)
        assert_identical(ys, empty(expected))
        assert_identical(solution.value, empty(carries))
        assert (solution.result == RESULTS.successful).all()
        assert solution.result.shape == (2,)

    @pytest.mark.parametrize("window", [1, 10, 30, 1000])
    def test_in_windows(self, window):
        problem = cell("lstm", 100)
        arguments = problem.bind(), problem.init, problem.xs
        solution = check(*arguments, solver="deer", window=window)
        assert (solution.stats["num_steps"] >= -(-100 // window)).all()

    @pytest.mark.parametrize("name", CELLS)
    def test_ten_thousand_steps(self, name):
        problem = cell(name, 10_000)
        check(problem.bind(), problem.init, problem.xs, solver="deer", tolerance=1e-11)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_modules_of_torch(self, solver):
        torch.manual_seed(0)
        lstm_cell, gru_cell = torch.nn.LSTMCell(2, 3), torch.nn.GRUCell(3, 2)
        lstm_cell.double(), gru_cell.double()

        def f(carry, x):
            h, c = lstm_cell(x, carry["lstm"])
            g = gru_cell(h, carry["gru"])
            return {"lstm": (h, c), "gru": g}, g.sum(-1)

        zeros = lambda size: torch.zeros(4, size, dtype=DOUBLE)
        init = {"lstm": (zeros(3), zeros(3)), "gru": zeros(2)}
        check(f, init, torch.randn(20, 4, 2, dtype=DOUBLE), solver=solver)


class TestCarries:
    def test_nested_pytrees_of_several_dtypes(self):
        init = {
            "narrow": torch.ones(2, 2),
            "wide": [torch.ones(2, 2, 1, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE)],
            "empty": torch.zeros(2, 0, 3),
            "none": None,
            "nothing": (),
        }

        def f(carry, x):
            narrow, (wide, scalar) = carry["narrow"], carry["wide"]
            new = {
                **carry,
                "narrow": torch.sin(narrow + x.float()[:, None]),
                "wide": [
                    0.3 * wide + scalar[:, None, None],
                    torch.tanh(scalar + x + wide.sum((1, 2))),
                ],
            }
            return new, (carry["wide"][0], new["narrow"])

        xs = torch.randn(6, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
        check(f, init, xs, tolerance=3e-6, solver="jacobi", window=4)
        check(f, init, xs, tolerance=3e-6, solver="deer")

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_a_narrow_leaf_costs_a_wide_one_no_digits(self, solver):
        def f(carry, x):
            wide, narrow = carry
            wide = torch.tanh(0.9 * wide + x)
            return (wide, narrow / 2), wide

        init = (torch.zeros(1, dtype=DOUBLE), torch.ones(1, dtype=torch.bfloat16))
        xs = torch.sin(torch.arange(60.0, dtype=DOUBLE))[:, None]
        actual = scan(f, init, xs, solver=solver)
        assert_close(actual[1], reference_scan(f, init, xs)[1], 1e-10)

    def test_complex_numbers_through_maps_that_are_not_holomorphic(self):
        def f(carry, x):
            z, w = carry
            z = 0.5j * z.conj() + x + 0.3 * w.abs()
            w = 0.4 * w + z.real
            return (z, w), z.abs() + w

        random = torch.Generator().manual_seed(0)
        xs = torch.randn(8, 3, 2, dtype=torch.complex128, generator=random)
        init = torch.zeros(3, 2, dtype=torch.complex128), torch.ones(3, 2, dtype=DOUBLE)
        check(f, init, xs, solver="deer")
        check(f, init, xs, solver="jacobi", reverse=True, window=3)

    @pytest.mark.parametrize(
        "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64]
    )
    def test_narrow_dtypes(self, dtype):
        def f(carry, x):
            carry = torch.tanh(carry * 0.5 + x)
            return carry, carry

        random = torch.Generator().manual_seed(0)
        xs = torch.randn(20, 3, 2, generator=random, dtype=torch.complex64)
        xs = (xs / 4 if dtype.is_complex else xs.real / 4).to(dtype)
        eps = torch.finfo(dtype).eps
        init = torch.zeros(3, 2, dtype=dtype)
        check(f, init, xs, tolerance=4 * eps**0.75, solver="deer")

    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_counter_drives_the_step(self, solver, reverse):
        def f(carry, x):
            count, h = carry["count"], carry["h"]
            sign = torch.where(count % 2 == 0, 1.0, -1.0).double()
            h = torch.tanh(0.5 * h + x + sign)
            return {"count": count + 2, "even": ~carry["even"], "h": h}, (count, h)

        init = {
            "count": torch.tensor([3, 4]),
            "even": torch.tensor([True, False]),
            "h": torch.zeros(2, dtype=DOUBLE),
        }
        xs = torch.linspace(-1, 1, 7, dtype=DOUBLE)[:, None].expand(7, 2)
        check(f, init, xs, solver=solver, reverse=reverse, window=3)

    def test_no_float_at_all(self):
        f = lambda count, x: (count + x, count)
        for solver in (*SOLVERS, "sequential", "auto"):
            check(f, torch.tensor([0]), torch.arange(5)[:, None], solver=solver)

    def test_an_empty_carry(self):
        xs = torch.arange(5.0)
        for solver in (*SOLVERS, "sequential", "auto"):
            carry, ys = scan(lambda carry, x: (carry, 2 * x), (), xs, solver=solver)
            assert carry == ()
            assert_identical(ys, 2 * xs)

    @pytest.mark.parametrize("solver", [*SOLVERS, "sequential"])
    def test_no_samples(self, solver):
        problem = cell("gru", 5, samples=0)
        (_, ys), solution = scan(
            problem.bind(),
            problem.init,
            problem.xs,
            solver=solver,
            return_solution=True,
        )
        assert ys.shape == (5, 0)
        assert solution.result.shape == (0,)


class TestInputs:
    def test_none_with_a_length(self):
        def f(h, x):
            assert x is None
            h = torch.cos(h)
            return h, h

        init = torch.tensor([[0.1, 0.7]], dtype=DOUBLE)
        check(f, init, None, 9, solver="deer")
        check(f, init, length=9, solver="jacobi", reverse=True)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_weights_of_every_step(self, solver):
        # As many as there are samples, which is not to be taken for the samples.
        random = torch.Generator().manual_seed(0)
        normal = lambda *shape: torch.randn(*shape, dtype=DOUBLE, generator=random)
        xs = {"W": normal(6, 2, 2) / 2, "b": normal(6, 2), "n": torch.arange(6)}

        def f(h, x):
            h = torch.tanh(h @ x["W"] + x["b"] + x["n"].double())
            return h, None

        check(f, normal(2, 2), xs, 6, solver=solver)


class TestOutputs:
    @pytest.mark.parametrize("window", [None, 5])
    @pytest.mark.parametrize(
        "output",
        [
            lambda old, new, x: None,
            # Leaves of the new carry alone need no evaluation after the solve.
            lambda old, new, x: {"a": new, "b": (new, None)},
            lambda old, new, x: {
                "old": old,
                "new": new,
                "integer": new.argmax(-1),
                "flags": new > 0,
                "constants": (3, 2.0, None),
                "narrow": new.sum(-1).float(),
                "product": (x * new).sum(-1),
            },
        ],
        ids=["none", "carry", "mixed"],
    )
    def test_of_every_kind(self, output, window):
        problem = cell("tanh", 12)

        def f(old, x):
            new, _ = problem.bind()(old, x)
            return new, output(old, new, x.sum(-1, keepdim=True))

        check(f, problem.init, problem.xs, solver="deer", window=window)

    def test_those_of_the_carry_are_not_computed_again(self):
        problem = cell("tanh", 12)
        counts = {}
        for name, y in (("carry", lambda h: h), ("else", lambda h: h + 1)):
            step = lambda h, x, y=y: (lambda new: (new, y(new)))(
                problem.bind()(h, x)[0]
            )
            counter = CallCounter(step)
            with torch.no_grad():
                scan(counter, problem.init, problem.xs, solver="deer")
            counts[name] = counter.calls
        assert counts["else"] == counts["carry"] + 1


class TestNesting:
    def test_scan_in_scan(self):
        def nested(scan):
            def inner(h, x):
                h = torch.tanh(0.5 * h + x)
                return h, h * x

            def outer(h, x):
                h, ys = scan(inner, h, x)
                return 0.5 * h, ys.sum(0)

            xs = torch.sin(torch.arange(24.0, dtype=DOUBLE)).reshape(4, 3, 2)
            xs.requires_grad_()
            h = torch.tensor([0.3, 0.1], dtype=DOUBLE, requires_grad=True)
            carry, ys = scan(outer, h, xs)
            return carry, ys, torch.autograd.grad((ys**2).sum(), (h, xs))

        deer = lambda *arguments: scan(*arguments, solver="deer")
        loop = lambda *arguments: scan(*arguments, solver="sequential")
        expected = nested(loop)
        outer_only = lambda f, h, xs: deer(f, h, xs) if len(xs) == 4 else loop(f, h, xs)
        inner_only = lambda f, h, xs: deer(f, h, xs) if len(xs) == 3 else loop(f, h, xs)
        assert_close(nested(outer_only), expected)
        assert_close(nested(inner_only), expected)
        assert_close(nested(deer), expected)


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
        assert (solution.stats["num_steps"] == 1).all()

    def test_an_awful_one_does_no_harm(self):
        problem = cell("tanh", 20)
        f, init, xs = problem.bind(), problem.init, problem.xs
        expected = reference_scan(f, init, xs)[:2]
        for bad in (torch.nan, torch.inf, 1e300, -1e-300):
            guess = torch.full((20, 2, 3), bad, dtype=DOUBLE)
            assert_close(scan(f, init, xs, solver="deer", guess=guess), expected)

    def test_the_value_of_an_earlier_solution_serves(self):
        first = self.solve(lambda exact: None, solver="deer")
        again = self.solve(lambda exact: first.value, solver="deer", window=7)
        assert (again.stats["num_steps"] == 3).all()

    def test_of_a_carry_with_a_counter(self):
        def f(carry, x):
            h = torch.tanh(0.5 * carry["h"] + x)
            return {"h": h, "n": carry["n"] + 1}, h

        init = {"h": torch.zeros(1, 2, dtype=DOUBLE), "n": torch.tensor([0])}
        xs = torch.ones(5, 1, 2, dtype=DOUBLE)
        *expected, carries = reference_scan(f, init, xs)
        actual, solution = scan(
            f, init, xs, solver="deer", guess=carries, return_solution=True
        )
        assert_close(actual, tuple(expected))
        assert solution.stats["num_steps"] == 1

    def test_a_sequential_solve_does_not_need_one(self):
        problem = cell("tanh", 5)
        f, init, xs = problem.bind(), problem.init, problem.xs
        guess = torch.zeros(5, 2, 3, dtype=DOUBLE)
        actual = scan(f, init, xs, solver="sequential", guess=guess)
        assert_identical(actual, reference_scan(f, init, xs)[:2])


class TestSolvers:
    def test_objects_stand_for_names(self):
        problem = cell("gru", 30)
        arguments = problem.bind(), problem.init, problem.xs
        tolerances = {"rtol": 1e-8, "atol": 1e-9}
        for name, made in (("deer", DEER), ("jacobi", Jacobi)):
            by_name, first = scan(
                *arguments, solver=name, return_solution=True, **tolerances
            )
            by_object, second = scan(
                *arguments, solver=made(**tolerances), return_solution=True
            )
            assert_identical(by_object, by_name)
            assert_identical(second.stats, first.stats)
        sequential = scan(*arguments, solver=Sequential(1e-8, 1e-8))
        assert_identical(sequential, reference_scan(*arguments)[:2])

    @pytest.mark.parametrize(
        ("inner", "chunk"), [("sequential", 1), ("associative", 7), ("blocked", 100)]
    )
    def test_scans_and_chunks_change_only_rounding(self, inner, chunk):
        problem = cell("gru", 30)
        solver = DEER(rtol=1e-12, atol=1e-12, scan=inner, chunk=chunk)
        check(problem.bind(), problem.init, problem.xs, solver=solver)

    def test_positional_arguments(self):
        problem = cell("gru", 12)
        arguments = problem.bind(), problem.init, problem.xs
        expected = reference_scan(*arguments, reverse=True)[:2]
        assert_identical(scan(*arguments, 12, True, solver="sequential"), expected)
        assert_close(scan(*arguments, 12, True, solver="deer"), expected)


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
        assert all(value.shape == (2,) for value in solution.stats.values())

    def test_of_a_gru(self):
        problem = cell("gru", 40)
        f, init, xs = problem.bind(), problem.init, problem.xs
        for solver in SOLVERS:
            _, solution = scan(f, init, xs, solver=solver, return_solution=True)
            stats = solution.stats
            assert ((stats["residual"] >= 0) & (stats["residual"] <= 1)).all()
            assert (stats["converged_prefix"] == 40).all()
            # A sweep evaluates once; one more certifies, and one is for the growth.
            assert (stats["num_evals"] == stats["num_steps"] + 2).all()
            error = stats["error_estimate"]
            assert ((error > 0) & (error < 1e-14)).all()
        assert (stats["num_linear"] == 6).all()
        assert solution.leaves == ("carry",)

    def test_leaves_are_called_as_the_user_calls_them(self):
        problem = cell("lstm", 5)
        arguments = problem.bind(), problem.init, problem.xs
        _, solution = scan(*arguments, solver="deer", return_solution=True)
        assert solution.leaves == ("carry['c']", "carry['h']")


@pytest.mark.parametrize(("solver", "sweeps"), [("jacobi", 51), ("deer", 2)])
def test_a_linear_recurrence_takes_one_update(solver, sweeps):
    # Jacobi carries a state forward by one time in a sweep; DEER solves it at once.
    matrices = 0.6 * torch.sin(torch.arange(50 * 9.0, dtype=DOUBLE)).reshape(50, 3, 3)

    def f(h, x):
        h = h @ x + 1
        return h, h

    solution = check(f, torch.ones(2, 3, dtype=DOUBLE), matrices, solver=solver)
    assert (solution.stats["num_steps"] <= sweeps).all()


def test_the_logistic_map_by_the_loop():
    init = torch.full((1, 1), 0.3, dtype=DOUBLE)
    out = scan(logistic, init, length=200, solver="sequential")
    assert_identical(out, reference_scan(logistic, init, None, 200)[:2])
