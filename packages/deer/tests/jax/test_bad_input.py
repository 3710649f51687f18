"""A careless call gets an error that names the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import parafix.core
from parafix.core.jax import Jacobi, Sequential
from parafix.deer.jax import DEER, scan


XS = jnp.ones((5, 2))
INIT = jnp.zeros(2)


def cell(h, x):
    h = jnp.tanh(0.5 * h + x)
    return h, h


def message_of(error, *args, **options):
    with pytest.raises(error) as caught:
        scan(*args, **options)
    return str(caught.value)


SOLVERS = pytest.mark.parametrize("solver", ["deer", "jacobi", "sequential", "auto"])


@SOLVERS
class TestSequences:
    """Whatever the solver: an error must not depend on where the solve would run."""

    def test_leaves_of_different_length(self, solver):
        xs = {"left": jnp.zeros((5, 2)), "right": jnp.zeros((4, 2))}
        f = lambda h, x: cell(h, x["left"])
        message = message_of(ValueError, f, INIT, xs, solver=solver)
        for word in ("`xs", "left", "right", "5", "4"):
            assert word in message

    def test_a_length_that_does_not_fit(self, solver):
        message = message_of(ValueError, cell, INIT, XS, 6, solver=solver)
        assert "length" in message
        assert "6" in message

    def test_neither_inputs_nor_a_length(self, solver):
        assert "length" in message_of(ValueError, cell, INIT, solver=solver)

    def test_an_input_without_a_time_axis(self, solver):
        xs = {"left": jnp.zeros((5, 2)), "right": jnp.array(1.0)}
        f = lambda h, x: cell(h, x["left"])
        with pytest.raises((ValueError, TypeError), match="xs.*right"):
            scan(f, INIT, xs, solver=solver)

    def test_a_carry_whose_shape_changes(self, solver):
        f = lambda h, x: (jnp.zeros(3), None)
        message = message_of(TypeError, f, INIT, XS, solver=solver)
        assert "carry" in message
        assert "[2]" in message
        assert "[3]" in message

    def test_a_carry_whose_dtype_changes(self, solver):
        f = lambda carry, x: ({"h": carry["h"].astype(jnp.float32)}, None)
        message = message_of(TypeError, f, {"h": INIT}, XS, solver=solver)
        assert "carry['h']" in message
        assert "float32" in message

    def test_a_carry_whose_structure_changes(self, solver):
        f = lambda h, x: ((h, h), None)
        assert "carry" in message_of(TypeError, f, INIT, XS, solver=solver)

    def test_a_step_that_returns_one_thing(self, solver):
        message = message_of(TypeError, lambda h, x: h, INIT, XS, solver=solver)
        assert "pair" in message

    def test_a_step_that_is_no_function(self, solver):
        with pytest.raises(TypeError, match="(?i)callable"):
            scan(3, INIT, XS, solver=solver)

    def test_a_carry_that_is_no_array(self, solver):
        with pytest.raises(TypeError, match="'text'|str|JAX"):
            scan(cell, "text", XS, solver=solver)


class TestSolvers:
    def test_an_unknown_name(self):
        for name in ("der", "newtons", "SEQUENTIAL", ""):
            with pytest.raises(parafix.core.UnknownComponentError) as caught:
                scan(cell, INIT, XS, solver=name)
            assert "solver" in str(caught.value)
        with pytest.raises(parafix.core.UnknownComponentError, match="deer"):
            scan(cell, INIT, XS, solver="der")

    def test_an_unknown_keyword(self):
        assert "windows" in message_of(TypeError, cell, INIT, XS, windows=3)

    def test_options_are_keywords_only(self):
        with pytest.raises(TypeError, match="positional"):
            scan(cell, INIT, XS, 5, False, 1, "deer")

    @pytest.mark.parametrize(
        "solver", [3, None, DEER, object()], ids=["number", "None", "class", "object"]
    )
    def test_something_that_is_no_solver(self, solver):
        assert "solver" in message_of(TypeError, cell, INIT, XS, solver=solver)

    def test_a_solver_of_dense_problems(self):
        import optimistix as optx

        solver = optx.FixedPointIteration(1e-6, 1e-6)
        message = message_of(TypeError, cell, INIT, XS, solver=solver)
        assert "FixedPointIteration" in message
        assert "deer" in message
        assert "Newton" in message_of(TypeError, cell, INIT, XS, solver="newton")

    @pytest.mark.parametrize("made", [DEER, Jacobi, Sequential])
    def test_an_object_and_a_tolerance(self, made):
        for name in ("rtol", "atol"):
            message = message_of(
                ValueError, cell, INIT, XS, solver=made(1e-6, 1e-6), **{name: 1e-6}
            )
            assert f"`{name}`" in message
            assert "solver" in message


class TestNumbers:
    @pytest.mark.parametrize("solver", ["deer", "sequential", "auto"])
    @pytest.mark.parametrize("name", ["rtol", "atol"])
    def test_tolerances_that_are_none(self, name, solver):
        for value in (-1e-3, float("nan"), -np.inf):
            message = message_of(
                ValueError, cell, INIT, XS, solver=solver, **{name: value}
            )
            assert f"`{name}`" in message
        for value in ("small", [1e-3, 1e-4], {}, 1j):
            message = message_of(
                TypeError, cell, INIT, XS, solver=solver, **{name: value}
            )
            assert name in message

    @pytest.mark.parametrize("made", [DEER, Jacobi])
    @pytest.mark.parametrize("name", ["rtol", "atol"])
    def test_tolerances_of_an_object(self, name, made):
        tolerances = {"rtol": 1e-6, "atol": 1e-6, name: -1.0}
        with pytest.raises(ValueError, match=name):
            scan(cell, INIT, XS, solver=made(**tolerances))

    @pytest.mark.parametrize("solver", ["deer", "sequential", "auto"])
    @pytest.mark.parametrize("name", ["max_steps", "window"])
    def test_counts_that_are_none(self, name, solver):
        for value in (0, -3):
            message = message_of(
                ValueError, cell, INIT, XS, solver=solver, **{name: value}
            )
            assert f"`{name}`" in message
        for value in (2.5, "many", True, jnp.ones(2)):
            message = message_of(
                TypeError, cell, INIT, XS, solver=solver, **{name: value}
            )
            assert name in message

    @pytest.mark.parametrize("chunk", [0, -1])
    def test_a_chunk_without_steps(self, chunk):
        with pytest.raises(ValueError, match="chunk"):
            scan(cell, INIT, XS, solver=DEER(1e-6, 1e-6, chunk=chunk))


class TestGuesses:
    @pytest.mark.parametrize("solver", ["deer", "sequential"])
    def test_of_another_structure(self, solver):
        for guess in ({"h": jnp.zeros((5, 2))}, (jnp.zeros((5, 2)),) * 2):
            message = message_of(ValueError, cell, INIT, XS, solver=solver, guess=guess)
            assert "`guess`" in message

    @pytest.mark.parametrize("shape", [(2,), (4, 2), (5, 3), (5,), (5, 2, 1)])
    def test_of_another_shape(self, shape):
        message = message_of(
            ValueError, cell, INIT, XS, solver="deer", guess=jnp.zeros(shape)
        )
        assert "`guess`" in message
        assert "(5, 2)" in message
        assert str(shape) in message

    def test_of_complex_numbers_for_real_ones(self):
        # Dropping the imaginary part in silence would hide a mistake.
        guess = jnp.zeros((5, 2), complex)
        with pytest.raises((TypeError, ValueError), match="guess"):
            scan(cell, INIT, XS, solver="deer", guess=guess)


class TestDrivers:
    """Leaves that are not floats may not depend on floats."""

    def test_an_integer_that_depends_on_floats(self):
        def f(carry, x):
            h = jnp.tanh(carry["h"] + x)
            return {"h": h, "hits": carry["hits"] + (h[0] > 0).astype(int)}, None

        init = {"h": INIT, "hits": jnp.array(0)}
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
            return (jnp.tanh(h + x), h[0] > 0, hits + seen.astype(int)), None

        init = (INIT, jnp.array(False), jnp.array(0))
        message = message_of(TypeError, f, init, XS, solver="deer")
        assert "carry[1]" in message

    def test_a_flag_that_stops_the_recurrence(self):
        def f(carry, x):
            h, done = carry
            h = jnp.where(done, h, h + x)
            return (h, done | (h.sum() > 4)), h

        init = (INIT, jnp.array(False))
        message = message_of(TypeError, f, init, XS, solver="deer")
        assert "carry[1]" in message
        assert "bool" in message
        (_, solution) = scan(f, init, XS, solver="sequential", return_solution=True)
        assert solution.message() == ""

    def test_a_solution_of_a_sequential_solve_says_where_it_turned_bad(self):
        def f(carry, x):
            h, n = carry
            return (jnp.log(h), n + (h[0] > 0).astype(int)), None

        init = (jnp.array([2.0, 3.0]), jnp.array(0))
        _, solution = scan(f, init, XS, solver="sequential", return_solution=True)
        *_, carries = lax.scan(lambda c, x: (f(c, x)[0], f(c, x)[0]), init, XS)
        finite = np.isfinite(carries[0]).all(1)
        assert f"position: {np.argmin(finite)}" in solution.message()


def test_a_step_with_an_error_of_its_own_shows_it():
    def f(h, x):
        raise KeyError("mine")

    for solver in ("deer", "sequential", "auto"):
        with pytest.raises(KeyError, match="mine"):
            scan(f, INIT, XS, solver=solver)


def test_a_leak_is_not_hidden():
    # `f` may close over traced values, and those of another trace are an error.
    kept = []

    @jax.jit
    def keep(x):
        kept.append(x)
        return x

    keep(jnp.ones(2))
    with pytest.raises(jax.errors.UnexpectedTracerError):
        scan(lambda h, x: cell(h, x + kept[0]), INIT, XS, solver="deer")
