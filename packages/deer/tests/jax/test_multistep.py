"""Linear multistep methods, beside a loop in NumPy."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parafix.core.jax import RESULTS
from parafix.core.testing.jax import assert_close, assert_identical
from parafix.deer.jax import multistep


# dy/dt = field(y, x): two angles that pull at each other.
def field(y, x, np=jnp):
    return np.stack([y[1], -np.sin(y[0]) - 0.2 * y[1] + x])


def ab2(ys, x, h):
    x1, x2 = x
    return ys[0] + h * (1.5 * field(ys[0], x1) - 0.5 * field(ys[1], x2))


def ab3(ys, x, h):
    f1, f2, f3 = (field(y, x) for y, x in zip(ys, x, strict=True))
    return ys[0] + h * (23 * f1 - 16 * f2 + 5 * f3) / 12


def bdf2(ys, x, h):
    y, y1, y2 = ys
    return (1.5 * y - 2 * y1 + 0.5 * y2) / h - field(y, x)


METHODS = {"ab2": (ab2, 2, 2), "ab3": (ab3, 3, 3), "bdf2": (bdf2, 2, 2)}


def exact(ts):
    """A solution made up beforehand, and the input that makes it one."""
    angle, speed = np.sin(ts), np.cos(ts)
    x = -np.sin(ts) + np.sin(angle) + 0.2 * speed
    return np.stack([angle, speed], 1), x


def grid(name, length):
    """`(y0s, xs, h)`, and the solution at the times of the steps."""
    _, order, _ = METHODS[name]
    h = 2.0 / length
    ys, x = exact(h * np.arange(length + 1))
    if name == "bdf2":
        xs = jnp.asarray(x[order:])
    else:
        xs = tuple(jnp.asarray(x[order - 1 - k : len(x) - 1 - k]) for k in range(order))
    return (jnp.asarray(ys[:order]), xs, jnp.asarray(h)), ys[order:]


def numpy_loop(name, y0s, xs, h):
    _, order, _ = METHODS[name]
    ys = [np.asarray(y) for y in y0s]
    f = ft.partial(field, np=np)
    h = float(h)
    for t in range(len(jax.tree.leaves(xs)[0])):
        x = jax.tree.map(lambda x, t=t: float(x[t]), xs)
        if name == "ab2":
            y = ys[-1] + h * (1.5 * f(ys[-1], x[0]) - 0.5 * f(ys[-2], x[1]))
        elif name == "ab3":
            slopes = [f(y, x) for y, x in zip(ys[:-4:-1], x, strict=True)]
            y = ys[-1] + h / 12 * (23 * slopes[0] - 16 * slopes[1] + 5 * slopes[2])
        else:
            y = ys[-1]
            for _ in range(30):
                r = 1.5 * y - 2 * ys[-1] + 0.5 * ys[-2] - h * f(y, x)
                j = np.array([[1.5, -h], [h * np.cos(y[0]), 1.5 + 0.2 * h]])
                y = y - np.linalg.solve(j, r)
        ys.append(y)
    return np.stack(ys[order:])


def solve(name, *args, **options):
    return multistep(METHODS[name][0], *args, implicit=name == "bdf2", **options)


@pytest.mark.parametrize("name", METHODS)
class TestMethods:
    def test_a_loop_in_numpy_says_the_same(self, name):
        args, _ = grid(name, 50)
        ys, solution = solve(name, *args, return_solution=True)
        assert_close(ys, numpy_loop(name, *args), 1e-11)
        assert_identical(solution.value, ys)
        assert solution.result == RESULTS.successful
        assert solution.stats["num_steps"] <= 8

    def test_order(self, name):
        errors = []
        for length in (100, 200):
            args, expected = grid(name, length)
            ys = solve(name, *args, solver="sequential")
            errors.append(np.abs(ys - expected).max())
        slope = np.log2(errors[0] / errors[1])
        assert abs(slope - METHODS[name][2]) < 0.15


@pytest.mark.parametrize(
    "name", [*(pytest.param(x, marks=pytest.mark.slow) for x in ("ab2", "ab3")), "bdf2"]
)
def test_derivatives(name, check_derivatives):
    args, _ = grid(name, 12)
    check_derivatives(ft.partial(solve, name), args, 1e-7)


@pytest.mark.slow
def test_second_derivatives_of_an_implicit_method():
    (y0s, xs, h), _ = grid("bdf2", 5)
    loss = jax.jit(lambda h: (solve("bdf2", y0s, xs, h) ** 2).sum())
    gradient = jax.jit(jax.grad(loss))
    expected = (gradient(h + 1e-4) - gradient(h - 1e-4)) / 2e-4
    for derivative in (jax.grad, jax.jacfwd):
        assert_close(jax.jit(derivative(jax.grad(loss)))(h), expected, 1e-6)


def test_guesses():
    args, _ = grid("ab3", 50)
    ys, solution = solve("ab3", *args, return_solution=True)
    for guess in (ys, solution):
        _, again = solve("ab3", *args, guess=guess, return_solution=True)
        assert again.stats["num_steps"] == 1
    with pytest.raises(ValueError, match="`guess` must have shape"):
        solve("ab3", *args, guess=ys[:, :1])
    with pytest.raises(ValueError, match='`guess` must be "init", "step", states'):
        solve("ab3", *args, guess="nothing")


@pytest.mark.slow
def test_guesses_of_an_implicit_method():
    args, _ = grid("bdf2", 50)
    ys, solution = solve("bdf2", *args, return_solution=True)
    steps = []
    for guess in ("init", "step", ys, solution):
        again, other = solve("bdf2", *args, guess=guess, return_solution=True)
        assert_close(again, ys, 1e-11)
        steps.append([int(other.stats[k]) for k in ("num_guess_steps", "num_steps")])
    (improved, _), (none, sweeps), (few, _), (again, _) = steps
    assert improved > few == again == 1
    assert none == 0
    assert sweeps > 1


@pytest.mark.parametrize(
    "implicit", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_pytrees(implicit):
    def explicit(ys, x, a):
        (y1, z1), (y2, _) = ys
        return 0.5 * y1 + a * y2 + x, jnp.tanh(z1 + y2.sum())

    def residual(ys, x, a):
        (y, z), *lags = ys
        new = explicit(lags, x, a)
        return 2 * (y - new[0]), z - new[1]

    y0s = (jnp.arange(4.0).reshape(2, 2), jnp.array([0.0, 1.0]))
    xs = jnp.linspace(-1, 1, 9)
    f = residual if implicit else explicit
    ys = multistep(f, y0s, xs, 0.3, implicit=implicit)
    lags = [jax.tree.map(lambda y, i=i: y[i], y0s) for i in (1, 0)]
    expected = []
    for x in xs:
        lags = [explicit(lags, x, 0.3), lags[0]]
        expected.append(lags[0])
    assert_close(ys, jax.tree.map(lambda *y: jnp.stack(y), *expected), 1e-12)


@pytest.mark.slow
def test_an_equation_without_a_solution_is_no_success():
    def f(ys, x, params):
        y, last = ys
        return y**2 + 0.1 * last - (2.5 - x)

    args = (f, jnp.ones((1, 1)), jnp.arange(6.0))
    ys, solution = multistep(*args, implicit=True, return_solution=True, throw=False)
    # A square is not negative, and from t = 3 on it would have to be.
    assert solution.result == RESULTS.nonfinite
    assert solution.position == 3
    assert np.isfinite(ys[:3]).all()
    assert np.isnan(ys[3:]).all()
    with pytest.raises(Exception, match="First bad position: 3"):
        multistep(*args, implicit=True)


@pytest.mark.parametrize("y0s", [jnp.zeros(()), jnp.zeros((0, 2)), ()])
def test_states_before_the_first_step(y0s):
    with pytest.raises(ValueError, match="`y0s` must have one first axis"):
        multistep(ab2, y0s, jnp.zeros((3, 2)), 0.1)


def test_an_implicit_step_of_integers():
    with pytest.raises(TypeError, match="must be real floats, got int64"):
        multistep(bdf2, jnp.zeros((2, 2), int), jnp.zeros(3), 0.1, implicit=True)


@pytest.mark.parametrize("implicit", [False, True])
def test_an_output_of_another_shape(implicit):
    with pytest.raises(ValueError, match="`f` must return .* of a state of `y0s`"):
        multistep(
            lambda ys, x, p: ys[0][:1],
            jnp.zeros((2, 2)),
            jnp.zeros(3),
            None,
            implicit=implicit,
        )
