"""One-step maps: their order and numbers, what they keep, and where there is none."""

import math

import pytest
import torch
from scipy.optimize import brentq

from parafix.core.torch import GMRES, RESULTS
from parafix.deer.torch import AbstractOneStep, ImplicitMidpoint, solve_ivp
from parafix.deer.torch._one_step import as_one_step, METHODS


ORDERS = {
    "euler": 1,
    "midpoint": 2,
    "heun": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "classical_rk4": 4,
    "implicit_midpoint": 2,
}
float64 = {"dtype": torch.float64}


def test_every_method_is_tested():
    assert set(ORDERS) == set(METHODS)


@pytest.mark.parametrize("method", ORDERS)
def test_order(method):
    """Of `y' = -2 t y^2`, `y(0) = 1`, that is `y = 1 / (1 + t^2)`."""
    errors = []
    for count in (16, 32, 64):
        t = torch.linspace(0, 1, count + 1, **float64)
        y = solve_ivp(
            lambda t, y: -2 * t * y**2,
            torch.ones(1, 1, **float64),
            t,
            method=method,
            solver="deer",
        )
        errors.append(abs(y[-1].item() - 0.5))
    for before, after in zip(errors, errors[1:], strict=False):
        assert abs(math.log2(before / after) - ORDERS[method]) < 0.25


# `odeint` of torchdiffeq 0.2.5 with these names: `y' = sin(3 t) - y^3 + t`, from .4 at
# t = 0, .3, .7, the states at .3 and .7.
TORCHDIFFEQ = {
    "euler": (0.3808, 0.7920430478061933),
    "midpoint": (0.557639148054169, 0.9947947058194413),
    "heun2": (0.5446161429273225, 0.8892401379703563),
    "heun3": (0.5443422978827946, 0.9277435218536869),
    "rk4": (0.5433293165691686, 0.9412216748698485),
}


@pytest.mark.parametrize("method", TORCHDIFFEQ)
def test_numbers_of_torchdiffeq(method):
    y = solve_ivp(
        lambda t, y: torch.sin(3 * t) - y**3 + t,
        torch.full((1, 1), 0.4, **float64),
        torch.tensor([0.0, 0.3, 0.7], **float64),
        method=method,
    )
    torch.testing.assert_close(
        y[1:].flatten(),
        torch.tensor(TORCHDIFFEQ[method], **float64),
        rtol=0,
        atol=1e-15,
    )


def test_classical_rk4_as_in_textbooks():
    f = lambda t, y: math.sin(3 * t) - y**3 + t
    t, h, y = 0.2, 0.3, 0.4
    k1 = f(t, y)
    k2 = f(t + h / 2, y + h * k1 / 2)
    k3 = f(t + h / 2, y + h * k2 / 2)
    k4 = f(t + h, y + h * k3)
    expected = y + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6
    actual = solve_ivp(
        lambda t, y: torch.sin(3 * t) - y**3 + t,
        torch.full((1, 1), y, **float64),
        torch.tensor([t, t + h], **float64),
        method="classical_rk4",
    )
    assert abs(actual[1].item() - expected) < 1e-15


class TestImplicitMidpoint:
    @pytest.mark.parametrize("solver", ["deer", "sequential"])
    def test_one_step(self, solver):
        f = lambda t, y: math.sin(3 * t) - y**3 + t
        t, h, y = 0.2, 0.7, 0.4
        m = brentq(lambda m: m - y - h / 2 * f(t + h / 2, m), -5, 5, xtol=1e-15)
        actual = solve_ivp(
            lambda t, y: torch.sin(3 * t) - y**3 + t,
            torch.full((1, 1), y, **float64),
            torch.tensor([t, t + h], **float64),
            method="implicit_midpoint",
            solver=solver,
        )
        assert abs(actual[1].item() - (2 * m - y)) < 1e-14

    @pytest.mark.parametrize("linear_solver", [None, GMRES()])
    def test_of_a_linear_equation(self, linear_solver):
        """`(I - h/2 A)^-1 (I + h/2 A)`, and all that is differentiated through it."""
        method = "implicit_midpoint"
        if linear_solver is not None:
            method = ImplicitMidpoint(linear_solver=linear_solver)
        torch.manual_seed(0)
        matrix = torch.randn(3, 3, **float64) - 2 * torch.eye(3, **float64)
        y0, t = torch.randn(2, 3, **float64), torch.linspace(0, 2, 6, **float64)

        def parallel(matrix, y0, t):
            f = lambda t, y: y @ matrix.T
            return solve_ivp(f, y0, t, method=method, solver="deer")

        def by_algebra(matrix, y0, t):
            one, ys = torch.eye(3, **float64), [y0]
            for h in t.diff():
                solved = torch.linalg.solve(one - h / 2 * matrix, one + h / 2 * matrix)
                ys.append(ys[-1] @ solved.T)
            return torch.stack(ys)

        point = [x.requires_grad_() for x in (matrix, y0, t)]
        found = []
        for run in (parallel, by_algebra):
            ys = run(*point)
            loss = (ys * torch.arange(ys.numel(), **float64).cos().view_as(ys)).sum()
            first = torch.autograd.grad(loss, point, create_graph=True)
            second = torch.autograd.grad(sum((g**2).sum() for g in first), point)
            found.append((ys, *first, *second))
        for actual, expected in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)

    def test_keeps_the_energy_of_an_oscillator(self):
        f = lambda t, y: torch.stack([y[:, 1], -y[:, 0]], -1)
        y0 = torch.tensor([[1.0, 0.0], [0.3, -2.0]], **float64)
        t = torch.linspace(0, 40, 201, **float64)
        y = solve_ivp(f, y0, t, method="implicit_midpoint", solver="deer")
        energy = (y**2).sum(-1)
        assert (energy / energy[0] - 1).abs().max() < 1e-12

    def test_keeps_the_invariants_of_a_rigid_body(self):
        weights = torch.tensor([1 / 2, 1 / 1, 2 / 3], **float64)

        def f(t, y):
            return torch.linalg.cross(y, weights * y)

        y0 = torch.tensor([[math.cos(1.1), 0.0, math.sin(1.1)]], **float64)
        t = torch.linspace(0, 20, 101, **float64)
        y = solve_ivp(f, y0, t, method="implicit_midpoint", solver="deer")
        for invariant in ((y**2).sum(-1), (weights * y**2).sum(-1)):
            assert (invariant / invariant[0] - 1).abs().max() < 1e-12
        # Which is no matter of course.
        y = solve_ivp(f, y0, t, method="rk4", solver="deer")
        invariant = (y**2).sum(-1)
        assert (invariant / invariant[0] - 1).abs().max() > 1e-8

    @pytest.mark.parametrize("solver", ["deer", "sequential"])
    def test_where_there_is_no_step(self, solver):
        """`m = y + h/2 (1 + m^2)` has a real solution only if `1 >= h (2 y + h)`."""
        f = lambda t, y: 1 + y**2
        y0 = torch.tensor([[0.0], [-3.0]], **float64, requires_grad=True)
        t = torch.linspace(0, 1.6, 9, **float64)
        ys, solution = solve_ivp(
            f,
            y0,
            t,
            method="implicit_midpoint",
            solver=solver,
            throw=False,
            return_solution=True,
        )
        assert solution.result.tolist() == [RESULTS.nonfinite, RESULTS.successful]
        y, first = 0.0, 0
        while 0.2 * (2 * y + 0.2) <= 1:
            m = 5 - math.sqrt(25 - 10 * y - 1)
            y, first = 2 * m - y, first + 1
        assert 3 < first < 8
        assert solution.position[0] == first
        finite = torch.isfinite(ys[:, 0, 0])
        assert finite.tolist() == [i <= first for i in range(9)]
        assert abs(ys[first, 0, 0].item() - y) < 1e-10
        # The neighbour is what it is alone, gradient included.
        (gradient,) = torch.autograd.grad(ys[-1, 1, 0], y0)
        alone = y0[1:].detach().requires_grad_()
        (y,) = solve_ivp(f, alone, t, method="implicit_midpoint", solver=solver)[-1]
        (expected,) = torch.autograd.grad(y, alone)
        torch.testing.assert_close(gradient[1:], expected, rtol=1e-12, atol=0)

    def test_where_there_is_no_step_is_an_error(self):
        with pytest.raises(RuntimeError, match="position: 0"):
            solve_ivp(
                lambda t, y: 1 + y**2,
                torch.ones(1, 1, **float64),
                torch.tensor([0.0, 2.0, 3.0], **float64),
                method="implicit_midpoint",
                solver="deer",
            )


def test_a_method_of_ones_own():
    class Exponential(AbstractOneStep):
        """Exact for `y' = -y + g(t)` with a constant `g` in each step."""

        def __call__(self, func, t0, h, y):
            return torch.exp(-h) * y - torch.expm1(-h) * (func(t0, y) + y)

    t = torch.linspace(0, 3, 7, **float64)
    y = solve_ivp(
        lambda t, y: 2 - y, torch.zeros(1, 1, **float64), t, method=Exponential()
    )
    torch.testing.assert_close(y.flatten(), 2 - 2 * torch.exp(-t))


def test_unknown_methods():
    for name, words in (
        ("rk5", 'Did you mean "rk4"'),
        ("Euler", 'Did you mean "euler"'),
        ("dopri5", "chooses its steps by the solution"),
        ("implicit_adams", "several states before a step"),
    ):
        with pytest.raises(ValueError, match=words):
            as_one_step(name)
    for wrong in (None, ImplicitMidpoint, 4):
        with pytest.raises(TypeError, match="`method` must be a name"):
            as_one_step(wrong)
