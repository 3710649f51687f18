"""Initial value problems: the numbers and derivatives of a loop over the times."""

import functools as ft

import jaxtyping
import numpy as np
import pytest
import scipy.integrate
import torch
from hypothesis import given, strategies as st
from torch.utils import _pytree as pytree

from parafix.core.testing.torch import assert_close
from parafix.core.torch import Custom, Diagonal, Jacobi, RESULTS
from parafix.deer.torch import Heun, solve_ivp


func = torch.func
float64 = {"dtype": torch.float64}
STEPS = 30
TIMES = torch.linspace(0, 3, STEPS + 1, **float64) ** 1.5
deer = ft.partial(solve_ivp, solver="deer")


def loop(f, y0, t, **options):
    """The 3/8 rule as one writes it down, with what `f` sees in a loop."""
    assert not options
    add = lambda y, h, *pairs: pytree.tree_map(
        lambda y, *k: y + h * sum(c * k for (c, _), k in zip(pairs, k, strict=True)),
        y,
        *(k for _, k in pairs),
    )
    y, ys = y0, [y0]
    for t0, t1 in zip(t[:-1], t[1:], strict=True):
        h = t1 - t0
        k1 = f(t0, y)
        k2 = f(t0 + h / 3, add(y, h, (1 / 3, k1)))
        k3 = f(t0 + 2 * h / 3, add(y, h, (-1 / 3, k1), (1, k2)))
        k4 = f(t1, add(y, h, (1, k1), (-1, k2), (1, k3)))
        y = add(y, h, (1 / 8, k1), (3 / 8, k2), (3 / 8, k3), (1 / 8, k4))
        ys.append(y)
    return pytree.tree_map(lambda *ys: torch.stack(ys), *ys)


def weighted(tree):
    """A number that depends on every float of a tree, in no symmetric way."""
    leaves = [
        torch.view_as_real(x) if x.is_complex() else x for x in pytree.tree_leaves(tree)
    ]
    return sum(
        (x**2 * torch.arange(x.numel(), dtype=x.dtype).cos().reshape(x.shape)).sum()
        for x in leaves
    )


def network(t, y, weights):
    one, two = weights
    return torch.tanh(y @ one + torch.sin(t)) @ two - 0.3 * y


def problem(samples=2, size=3):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, **float64)
    return (draw(size, 5), draw(5, size)), draw(samples, size), TIMES.clone()


# What one may call `odeint` with: a shape, or shapes.
SHAPES = {
    "a number": ((), None),
    "a vector": ((3,), None),
    "samples": ((2, 3), None),
    "one system of a matrix": ((2, 3), False),
    "images": ((2, 1, 2, 2), None),
    "a tuple": (((2, 3), (2, 1)), None),
    "a tuple with numbers": (((2, 3), (2,)), None),
    "the same, with samples": (((2, 3), (2,)), True),
}


@pytest.mark.parametrize("solver", ["deer", "sequential", "auto"])
@pytest.mark.parametrize("case", SHAPES)
def test_states_of_every_shape(case, solver):
    shapes, batched = SHAPES[case]
    single = not shapes or isinstance(shapes[0], int)
    trees = (shapes,) if single else shapes
    torch.manual_seed(0)
    y0 = tuple(torch.rand(shape, **float64) for shape in trees)
    seen = set()

    def f(t, y):
        leaves = (y,) if single else y
        seen.update((t.dtype, t.shape, x.dtype, x.shape) for x in leaves)
        slopes = tuple(torch.sin(t + x) - 0.5 * x for x in leaves)
        return slopes[0] if single else slopes

    y0 = y0[0] if single else y0
    ys = solve_ivp(f, y0, TIMES, solver=solver, batched=batched)
    for _, shape, _, leaf in seen:
        assert shape == ()
        assert leaf in trees
    assert {x for x, _, y, _ in seen for x in (x, y)} == {torch.float64}
    assert_close(ys, loop(f, y0, TIMES), 1e-12)
    first = pytree.tree_map(lambda x: x[0], ys)
    assert_close(first, y0, 0)


def test_a_system_whose_rows_mix():
    """As the bodies of a problem of several: axis 0 counts no samples."""
    y0 = torch.tensor([[0.0, 1.0], [2.0, -1.0]], **float64)
    f = lambda t, y: torch.sin(y.flip(0)) - 0.1 * y
    ys = deer(f, y0, TIMES, batched=False)
    assert_close(ys, loop(f, y0, TIMES), 1e-12)
    for adjoint in ("deer", "sequential"):
        with pytest.raises(ValueError, match="`func` mixes samples.*`batched=False`"):
            solve_ivp(f, y0.requires_grad_(), TIMES, solver=adjoint, adjoint="implicit")
    assert_close(
        solve_ivp(f, y0, TIMES, solver="sequential"), loop(f, y0, TIMES), 1e-12
    )


def test_complex_and_mixed_precision():
    f = lambda t, y: (1j * y[0] * torch.cos(t), torch.sin(y[1]) - y[1])
    y0 = (torch.ones(2, 2, dtype=torch.complex128), torch.ones(2, 1))
    ys = deer(f, y0, TIMES)
    expected = loop(f, y0, TIMES)
    assert [x.dtype for x in ys] == [torch.complex128, torch.float32]
    torch.testing.assert_close(ys[0], expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(ys[1], expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_precision_of_times_and_states(dtype):
    """`func` sees times in the precision of states, and modules of it can take them."""
    layer = torch.nn.Linear(3, 2, dtype=dtype)
    seen = set()

    def f(t, y):
        seen.add(t.dtype)
        t = t.expand(y.shape[0], 1)
        return torch.tanh(layer(torch.cat([y, t], -1)))

    y0 = torch.ones(2, 2, dtype=dtype)
    found = [
        solve_ivp(f, y0, TIMES + 100, solver=solver).float()
        for solver in ("deer", "sequential")
    ]
    assert seen == {dtype}
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)


PLACES = (0, 1, 2)


@pytest.mark.parametrize("solver", ["deer", "sequential"])
def test_derivatives_of_every_kind(solver):
    """To weights, `y0` and `t`, against the loop."""
    point = problem()
    ours = ft.partial(solve_ivp, solver=solver, adjoint="implicit")

    def loss(run, weights, y0, t):
        return weighted(run(lambda t, y: network(t, y, weights), y0, t))

    gradient = lambda run: func.grad(ft.partial(loss, run), PLACES)
    for transform in (
        lambda run: ft.partial(loss, run),
        gradient,
        lambda run: lambda *p: func.jvp(ft.partial(loss, run), p, p)[1],
        lambda run: func.grad(lambda *p: weighted(gradient(run)(*p)), PLACES),
    ):
        actual, expected = (transform(run)(*point) for run in (ours, loop))
        assert_close(actual, expected, 1e-10)


def test_weights_of_a_module_by_backward():
    torch.manual_seed(0)

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
            )
            self.nfe = 0

        def forward(self, t, y):
            self.nfe += 1
            t = torch.ones_like(y[:, :1]) * t
            return self.layers(torch.cat([y, t], -1))

    field = Field().double()
    y0 = torch.randn(2, 2, **float64, requires_grad=True)
    t = TIMES.clone().requires_grad_()
    found = []
    for run in (deer, loop):
        leaves = [y0, t, *field.parameters()]
        found.append(torch.autograd.grad(weighted(run(field, y0, t)), leaves))
    assert_close(*found, 1e-10)


def test_hessian_by_backward_twice():
    weights, y0, t = problem(1, 2)
    leaves = [x.requires_grad_() for x in (*weights, y0, t)]
    found = []
    for run in (deer, loop):
        ys = run(lambda t, y: network(t, y, weights), y0, t)
        first = torch.autograd.grad(weighted(ys), leaves, create_graph=True)
        found.append(torch.autograd.grad(weighted(first), leaves))
    assert_close(*found, 1e-10)


def test_under_vmap():
    weights, y0, t = problem(4, 3)
    run = lambda y0: deer(lambda t, y: network(t, y, weights), y0, t)
    assert_close(func.vmap(run, 0, 1)(y0), run(y0), 1e-12)
    jacobian = func.jacrev(lambda y0: run(y0)[-1])(y0[0])
    expected = func.jacrev(
        lambda y0: loop(lambda t, y: network(t, y, weights), y0, t)[-1]
    )(y0[0])
    assert_close(jacobian, expected, 1e-10)


def test_backward_in_time():
    weights, y0, t = problem()
    f = lambda t, y: network(t, y, weights)
    there = deer(f, y0, t)
    assert_close(deer(f, there[-1], t.flip(0)), loop(f, there[-1], t.flip(0)), 1e-11)
    fine = torch.linspace(0, 3, 401, **float64)
    back = deer(f, deer(f, y0, fine)[-1], fine.flip(0))
    assert_close(back[-1], y0, 1e-7)


@given(
    steps=st.integers(0, 25),
    samples=st.integers(1, 3),
    seed=st.integers(0, 10),
    method=st.sampled_from(["euler", "midpoint", "heun3", "rk4"]),
)
def test_any_grid(steps, samples, seed, method):
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand(steps + 1, generator=generator, **float64).add(0.01).cumsum(0) / 5
    y0 = torch.randn(samples, 2, generator=generator, **float64)
    f = lambda t, y: torch.stack([y[:, 1], torch.sin(t) - torch.sin(y[:, 0])], -1)
    found = [
        solve_ivp(f, y0, t, method=method, solver=solver)
        for solver in ("deer", "sequential")
    ]
    assert found[0].shape == (steps + 1, samples, 2)
    assert_close(*found, 1e-11)


class TestGuesses:
    def solved(self, guess, f=None, **options):
        weights, y0, t = problem()
        f = f or (lambda t, y: network(t, y, weights))
        return deer(f, y0, t, guess=guess, return_solution=True, **options)

    def test_all_lead_to_the_same(self):
        ys, solution = self.solved("coarse")
        assert (solution.result == RESULTS.successful).all()
        assert solution.value is ys
        steps = {}
        for guess in ("init", "step", None, ys, solution):
            name = guess if isinstance(guess, str) else type(guess).__name__
            other, found = self.solved(guess)
            assert_close(other, ys, 1e-11)
            steps[name] = int(found.stats["num_steps"].max())
        assert steps["Tensor"] == steps["Solution"] == 1
        assert int(solution.stats["num_steps"].max()) <= steps["init"]

    def test_a_coarse_one_saves_sweeps(self):
        f = lambda t, y: lotka_volterra(y, torch.stack)
        y0, t = torch.tensor([[10.0, 5.0]], **float64), torch.linspace(0, 4, 1001)
        solve = ft.partial(solve_ivp, f, y0, t, return_solution=True)
        (_, default), (_, coarse) = solve(), solve(solver="deer")
        assert coarse.result == default.result == RESULTS.successful
        assert default.stats["num_steps"] == coarse.stats["num_steps"] < 10
        _, other = solve(solver="deer", guess="init", max_steps=20, throw=False)
        assert other.result == RESULTS.max_steps_reached

    def test_that_a_coarse_loop_explodes_on(self):
        """Euler is stable with these steps, and not with ten times as long ones."""

        def f(t, y):
            distance = y - torch.cos(t)
            return -40 * distance - distance**3

        y0 = torch.full((1, 1), 3.0, **float64)
        t = torch.linspace(0, 4, 401, **float64)
        solve = ft.partial(deer, f, y0, t, method="euler", return_solution=True)
        ys, solution = solve()
        others, other = solve(guess="init")
        assert solution.result == RESULTS.successful
        assert_close(ys, others, 1e-10)
        assert (solution.stats["num_steps"] == other.stats["num_steps"]).all()

    def test_that_do_not_fit(self):
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            ys, _ = self.solved("coarse")
            for wrong in (ys[1:], (ys,), ys[:, :1], 3.0, "fine"):
                with pytest.raises(ValueError, match='`guess` must be "coarse"'):
                    self.solved(wrong)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)


def test_a_sample_that_diverges_does_not_disturb_others():
    f = lambda t, y: y**2 - 0.5 * y
    y0 = torch.tensor([[0.3], [4.0], [-1.0]], **float64, requires_grad=True)
    ys, solution = deer(f, y0, TIMES, throw=False, return_solution=True)
    assert solution.result.tolist() == [0, RESULTS.nonfinite, 0]
    first = int(solution.position[1])
    assert torch.isfinite(ys[: first + 1, 1]).all()
    assert torch.isnan(ys[first + 1 :, 1]).all()
    fine = [0, 2]
    with torch.no_grad():
        calm = y0[[0, 0, 2]]
        assert torch.equal(deer(f, calm, TIMES)[:, fine], ys[:, fine])
    (gradient,) = torch.autograd.grad(ys[-1, fine].sum(), y0)
    alone = y0[fine].detach().requires_grad_()
    (expected,) = torch.autograd.grad(loop(f, alone, TIMES)[-1].sum(), alone)
    assert_close(gradient[fine], expected, 1e-10)
    with pytest.raises(RuntimeError, match=f"First bad position: {first}"):
        deer(f, y0, TIMES)


def test_a_solution_of_one_system():
    y0 = torch.tensor([1.0, 0.0], **float64)
    f = lambda t, y: torch.stack([y[1], -y[0]])
    ys, solution = deer(f, y0, TIMES, return_solution=True)
    assert ys.shape == (STEPS + 1, 2)
    assert solution.value is ys
    assert solution.result.shape == ()
    assert solution.message() == ""
    assert all(x.shape == () for x in solution.stats.values())
    assert solution.stats["converged_prefix"] == STEPS
    # Linear: one update, and a look at it.
    assert solution.stats["num_steps"] <= 2


def test_the_default_takes_what_vmap_cannot():
    def f(t, y):
        return -y if float(t) < 1 else -2 * y

    y0, t = torch.ones(1, 1, **float64), torch.linspace(0, 2, 1001, **float64)
    assert_close(solve_ivp(f, y0, t), loop(f, y0, t), 1e-12)
    with pytest.raises(RuntimeError):
        deer(f, y0, t)


def test_the_default_is_sweeps_where_they_pay():
    calls = []

    def f(t, y):
        calls.append(0)
        return torch.cos(t) - y

    y0, t = torch.ones(1, 1, **float64), torch.linspace(0, 10, 1001, **float64)
    ys = solve_ivp(f, y0, t)
    assert len(calls) < 1000
    calls.clear()
    assert_close(solve_ivp(f, y0, t, solver="sequential"), ys, 1e-10)
    assert len(calls) == 4000


def test_other_solvers_windows_and_steps():
    weights, y0, t = problem()
    f = lambda t, y: network(t, y, weights)
    expected = loop(f, y0, t)
    for options in (
        {"solver": "quasi-deer"},
        {"solver": "elk"},
        {"solver": Jacobi(1e-12, 1e-12)},
        {"solver": "deer", "window": 7},
        {"solver": "deer", "max_steps": 1, "fallback": "sequential"},
    ):
        assert_close(solve_ivp(f, y0, t, **options), expected, 1e-10)
    ys = deer(f, y0, t, max_steps=2, guess="init", throw=False)
    assert_close(ys[:3], expected[:3], 1e-12)


def test_structure():
    f = lambda t, y: torch.sin(3 * t) - y**3
    y0 = torch.rand(2, 4, **float64)
    ys, solution = deer(f, y0, TIMES, structure=Diagonal(), return_solution=True)
    assert_close(ys, loop(f, y0, TIMES), 1e-12)
    steps = solution.stats["num_steps"].max()
    assert solution.stats["num_linear"].max() <= 4 * (steps + 2)
    f.structure = Diagonal()
    assert_close(deer(f, y0, TIMES), ys, 0)
    weights, y0, t = problem()
    with pytest.raises(ValueError, match="structure"):
        deer(lambda t, y: network(t, y, weights), y0, t, structure=Diagonal())
    with pytest.raises(TypeError, match="cannot be `Custom`"):
        deer(f, y0, t, structure=Custom(lambda z, x: z, Diagonal()))


# Fields and initial states of problems that have names, and until when to solve.
def fitzhugh_nagumo(y, array):
    v, w = y[..., 0], y[..., 1]
    return array([v - v**3 / 3 - w + 0.5, 0.08 * (v + 0.7 - 0.8 * w)], -1)


def lotka_volterra(y, array):
    prey, hunters = y[..., 0], y[..., 1]
    return array(
        [prey * (1.5 - hunters), hunters * (prey - 3.0)],
        -1,
    )


def rigid_body(y, array):
    a, b, c = y[..., 0], y[..., 1], y[..., 2]
    return array([-2 * b * c, 1.25 * a * c, -0.5 * a * b], -1)


def henon_heiles(y, array):
    x, y, u, v = (y[..., i] for i in range(4))
    return array([u, v, -x - 2 * x * y, -y - x**2 + y**2], -1)


NAMED = [
    (fitzhugh_nagumo, [-1.0, 1.0], 40.0),
    (lotka_volterra, [10.0, 5.0], 4.0),
    (rigid_body, [1.0, 0.0, 0.9], 12.0),
    (henon_heiles, [0.1, 0.2, 0.3, 0.1], 20.0),
]


@pytest.mark.parametrize(("field", "y0", "end"), NAMED)
def test_named_problems(field, y0, end):
    t = np.linspace(0, end, 401)
    expected = scipy.integrate.solve_ivp(
        lambda t, y: field(y, np.stack),
        (0, end),
        y0,
        "DOP853",
        t,
        rtol=1e-12,
        atol=1e-12,
    ).y.T
    f = lambda t, y: field(y, torch.stack)
    start, t = torch.tensor([y0], **float64), torch.tensor(t)
    ys, solution = deer(f, start, t, return_solution=True)
    assert solution.result == RESULTS.successful
    assert np.abs(ys[:, 0].numpy() - expected).max() < 1e-4 * np.abs(expected).max()
    assert_close(ys, loop(f, start, t), 1e-11)


class TestBadInput:
    @pytest.fixture(autouse=True)
    def unchecked(self):
        # What is wrong is to be found by the library itself.
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)

    def refused(self, error, words, f=None, y0=None, t=None, **options):
        y0 = torch.ones(1, 2) if y0 is None else y0
        t = torch.linspace(0, 1, 5) if t is None else t
        for solver in ("deer", "sequential", "auto"):
            with pytest.raises(error, match=words):
                solve_ivp(
                    f or (lambda t, y: -y), y0, t, **{"solver": solver, **options}
                )

    def test_times(self):
        for t, words in (
            ([0.0, 1.0, 1.0, 2.0], r"strictly.*t\[1\] = 1.0 and t\[2\] = 1.0"),
            ([0.0, 1.0, 0.5], r"t\[1\] = 1.0 and t\[2\] = 0.5"),
            ([0.0, -1.0, 0.5], r"t\[1\] = -1.0 and t\[2\] = 0.5"),
            ([0.0, float("nan"), 1.0], r"t\[0\] = 0.0 and t\[1\] = nan"),
            ([2.0, 2.0], r"t\[0\] = 2.0 and t\[1\] = 2.0"),
            ([], r"at least one time.*\(0,\)"),
            ([[0.0, 1.0]], r"one axis.*\(1, 2\)"),
        ):
            self.refused(ValueError, words, t=torch.tensor(t))
        self.refused(TypeError, r"`t` must be.*int64", t=torch.arange(3))
        self.refused(TypeError, "`t` must be.*complex64", t=1j * torch.ones(3))
        self.refused(TypeError, "`t` must be", t=[0.0, 1.0])

    def test_one_time(self):
        """Nothing to step over; as `odeint` has it."""
        y0 = torch.ones(2, 2)
        for solver in ("deer", "sequential", "auto"):
            ys = solve_ivp(lambda t, y: -y, y0, torch.zeros(1), solver=solver)
            assert torch.equal(ys, y0[None])

    def test_states(self):
        self.refused(TypeError, "`y0` must be a tensor, got 1.0", y0=1.0)
        self.refused(TypeError, r"`y0\[1\]` must be", y0=(torch.ones(2, 2), None))
        self.refused(TypeError, "`y0` must hold", y0=())
        self.refused(TypeError, "of floats, got int64", y0=torch.ones(2, 2).long())
        y0 = (torch.ones(2, 2), torch.ones(3, 2))
        self.refused(TypeError, "as many samples", y0=y0, batched=True)
        self.refused(TypeError, "as many samples", y0=torch.tensor(1.0), batched=True)

    def test_slopes(self):
        for f, words in (
            (lambda t, y: y[:, :1], r"expected float32\[1, 2\], got float32\[1, 1\]"),
            (lambda t, y: y[0], r"got float32\[2\]"),
            (lambda t, y: (y,), "`func` must return dy/dt"),
            (lambda t, y: 0.0, "got 0.0"),
            (lambda t, y: 1j * y, r"got complex64\[1, 2\]"),
        ):
            self.refused(TypeError, words, f=f)

    def test_what_torchdiffeq_has_besides(self):
        self.refused(ValueError, "every step is from", options={"step_size": 0.1})
        self.refused(ValueError, "`event_fn`", event_fn=lambda t, y: y)
        self.refused(ValueError, "chooses its steps", method="dopri5")
        self.refused(ValueError, 'Did you mean "rk4"', method="rk5")
        self.refused(TypeError, "got Heun", method=Heun)
        ys = solve_ivp(
            lambda t, y: -y, torch.ones(1, 2), torch.linspace(0, 1, 5), options={}
        )
        assert ys.shape == (5, 1, 2)

    def test_options_of_the_solve(self):
        self.refused(ValueError, "`rtol`", rtol=-1.0)
        for t in (None, torch.linspace(0, 1, 1101)):
            self.refused(ValueError, "`fallback`", t=t, fallback="loop")
            self.refused(ValueError, "`patience`", t=t, patience=-1)
        self.refused(TypeError, "`structure`", structure="diagonal")
