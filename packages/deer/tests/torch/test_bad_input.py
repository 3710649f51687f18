"""A careless call gets an error that names the argument."""

import jaxtyping
import pytest
import torch

import parafix.core
from parafix.core.torch import Anderson, Jacobi, Sequential
from parafix.deer.torch import DEER, scan


XS = torch.ones(5, 1, 2)
INIT = torch.zeros(1, 2)
ALL = ("deer", "sequential", "auto")


def cell(h, x):
    h = torch.tanh(0.5 * h + x)
    return h, h


def message_of(error, *args, **options):
    with pytest.raises(error) as caught:
        scan(*args, **options)
    return str(caught.value)


@pytest.fixture(autouse=True)
def unchecked():
    # What is wrong is to be found by the library itself.
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class TestInputs:
    @pytest.mark.parametrize("solver", ALL)
    def test_lengths_that_differ(self, solver):
        xs = {"a": torch.ones(5, 1), "b": torch.ones(4, 1)}
        message = message_of(ValueError, cell, INIT, xs, solver=solver)
        for words in ("xs['a']", "5", "xs['b']", "4"):
            assert words in message
        message = message_of(ValueError, cell, INIT, XS, 4, solver=solver)
        assert "`length` is 4" in message

    @pytest.mark.parametrize("solver", ALL)
    def test_no_length(self, solver):
        assert "`length`" in message_of(ValueError, cell, INIT, solver=solver)
        for length in (2.5, "many"):
            message = message_of(TypeError, cell, INIT, None, length, solver=solver)
            assert "`length`" in message
        message = message_of(ValueError, cell, INIT, None, -1, solver=solver)
        assert "`length`" in message

    @pytest.mark.parametrize("solver", ALL)
    def test_that_are_no_tensors_with_time(self, solver):
        message = message_of(ValueError, cell, INIT, torch.tensor(1.0), solver=solver)
        assert "`xs` is a scalar" in message
        message = message_of(TypeError, cell, INIT, [1.0, 2.0], solver=solver)
        assert "`xs[0]`" in message


class TestCarries:
    @pytest.mark.parametrize("solver", ALL)
    def test_that_are_no_tensors_with_samples(self, solver):
        message = message_of(TypeError, cell, {"h": 0.0}, XS, solver=solver)
        assert "`init['h']`" in message
        message = message_of(TypeError, cell, torch.tensor(0.0), XS, solver=solver)
        assert "samples on axis 0" in message
        init = (torch.ones(1, 2), torch.ones(2, 2))
        message = message_of(TypeError, cell, init, XS, solver=solver)
        assert "`init[1]` has 2" in message

    @pytest.mark.parametrize("solver", ALL)
    def test_that_change(self, solver):
        for new, words in (
            (lambda h: h[:, :1], "float32[1, 1]"),
            (lambda h: h.double(), "float64[1, 2]"),
            (lambda h: h > 0, "bool[1, 2]"),
            (lambda h: (h, h), "structure"),
            (lambda h: 1.0, "1.0"),
        ):
            f = lambda h, x, new=new: (new(h), None)
            message = message_of(TypeError, f, INIT, XS, solver=solver)
            assert words in message
            assert "carry" in message


class TestSolvers:
    def test_an_unknown_name(self):
        with pytest.raises(parafix.core.UnknownComponentError, match="deer"):
            scan(cell, INIT, XS, solver="dear")

    def test_one_of_dense_problems(self):
        message = message_of(TypeError, cell, INIT, XS, solver=Anderson(1e-6, 1e-6))
        assert "Anderson" in message
        assert "deer" in message
        assert "Newton" in message_of(TypeError, cell, INIT, XS, solver="newton")

    @pytest.mark.parametrize("made", [DEER, Jacobi, Sequential])
    def test_an_object_and_a_tolerance(self, made):
        for name in ("rtol", "atol"):
            options = {"solver": made(1e-6, 1e-6), name: 1e-6}
            message = message_of(ValueError, cell, INIT, XS, **options)
            assert f"`{name}`" in message
            assert "solver" in message


class TestNumbers:
    @pytest.mark.parametrize("solver", ALL)
    @pytest.mark.parametrize("name", ["rtol", "atol"])
    def test_tolerances_that_are_none(self, name, solver):
        for value in (-1e-3, float("nan"), -torch.inf):
            options = {"solver": solver, name: value}
            assert f"`{name}`" in message_of(ValueError, cell, INIT, XS, **options)
        for value in ("small", {}, 1j):
            options = {"solver": solver, name: value}
            assert name in message_of(TypeError, cell, INIT, XS, **options)

    @pytest.mark.parametrize("solver", ALL)
    @pytest.mark.parametrize("name", ["max_steps", "window"])
    def test_counts_that_are_none(self, name, solver):
        for value in (0, -3):
            options = {"solver": solver, name: value}
            assert f"`{name}`" in message_of(ValueError, cell, INIT, XS, **options)
        for value in (2.5, "many", True):
            options = {"solver": solver, name: value}
            assert name in message_of(TypeError, cell, INIT, XS, **options)

    @pytest.mark.parametrize("chunk", [0, -1])
    def test_a_chunk_without_steps(self, chunk):
        with pytest.raises(ValueError, match="chunk"):
            scan(cell, INIT, XS, solver=DEER(1e-6, 1e-6, chunk=chunk))


class TestGuesses:
    @pytest.mark.parametrize("solver", ["deer", "sequential"])
    def test_of_another_structure(self, solver):
        for guess in ({"h": torch.zeros(5, 1, 2)}, (torch.zeros(5, 1, 2),) * 2):
            message = message_of(ValueError, cell, INIT, XS, solver=solver, guess=guess)
            assert "`guess`" in message

    @pytest.mark.parametrize("shape", [(1, 2), (4, 1, 2), (5, 1, 3), (5,)])
    def test_of_another_shape(self, shape):
        guess = torch.zeros(shape)
        message = message_of(ValueError, cell, INIT, XS, solver="deer", guess=guess)
        assert "`guess`" in message
        assert "(5, 1, 2)" in message
        assert str(shape) in message

    def test_of_complex_numbers_for_real_ones(self):
        guess = torch.zeros(5, 1, 2, dtype=torch.complex64)
        message = message_of(TypeError, cell, INIT, XS, solver="deer", guess=guess)
        assert "`guess`" in message


class TestDrivers:
    """Leaves that are not floats may not depend on floats."""

    def test_an_integer_that_depends_on_floats(self):
        def f(carry, x):
            h = torch.tanh(carry["h"] + x)
            return {"h": h, "hits": carry["hits"] + (h[:, 0] > 0)}, None

        init = {"h": INIT, "hits": torch.tensor([0])}
        for solver in ("deer", "jacobi"):
            message = message_of(TypeError, f, init, XS, solver=solver)
            for words in ("carry['hits']", "carry['h']", 'solver="sequential"', "int"):
                assert words in message
        for solver in ("sequential", "auto"):
            assert scan(f, init, XS, solver=solver)[0]["hits"] == 5

    def test_through_another_integer(self):
        # `hits` depends on `seen`, which depends on `h` one step earlier.
        def f(carry, x):
            h, seen, hits = carry
            return (torch.tanh(h + x), h[:, 0] > 0, hits + seen), None

        init = (INIT, torch.tensor([False]), torch.tensor([0]))
        assert "carry[1]" in message_of(TypeError, f, init, XS, solver="deer")

    def test_one_that_cannot_be_followed(self):
        def f(carry, x):
            h, n = carry
            n = n + 1 if h.sum() > 0 else n
            return (h + x, n), None

        init = (INIT, torch.tensor([0]))
        message = message_of(TypeError, f, init, XS, solver="deer")
        assert "`carry[1]`" in message
        assert "may depend" in message
        for solver in ("sequential", "auto"):
            assert scan(f, init, XS, solver=solver)[0][1] == 4

    def test_a_solution_of_a_sequential_solve_says_where_it_turned_bad(self):
        def f(carry, x):
            h, n = carry
            return (torch.log(h), n + (h[:, 0] > 0)), None

        init = (torch.tensor([[2.0, 3.0]]), torch.tensor([0]))
        _, solution = scan(f, init, XS, solver="sequential", return_solution=True)
        h, bad = init[0], 0
        while torch.log(h).isfinite().all():
            h, bad = torch.log(h), bad + 1
        assert f"position: {bad}" in solution.message()


def test_a_step_with_an_error_of_its_own_shows_it():
    def f(h, x):
        raise KeyError("mine")

    for solver in ALL:
        with pytest.raises(KeyError, match="mine"):
            scan(f, INIT, XS, solver=solver)
        with pytest.raises(KeyError, match="mine"):
            scan(f, (INIT, torch.tensor([0])), XS, solver=solver)
