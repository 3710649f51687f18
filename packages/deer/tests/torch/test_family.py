"""The sweeps that differ in their matrices: values, gradients, promises, filters."""

import dataclasses
import functools as ft

import jaxtyping
import numpy as np
import pytest
import torch

import parafix.core
from parafix.core.testing.torch import assert_close, assert_identical, gru
from parafix.core.torch import AbstractSweep, affine_scan, Jacobi, RESULTS
from parafix.deer.torch import (
    AdaptiveDamping,
    DEER,
    ELK,
    GRU,
    Picard,
    QuasiDEER,
    QuasiELK,
    scan,
    TrustRegion,
)
from parafix.deer.torch._trust_region import kalman_gains


DOUBLE = torch.float64
TOLERANCES = {"rtol": 1e-9, "atol": 1e-9}


def registered_sweeps():
    """The names under which sweeps are registered, by whomever."""
    for component in parafix.core.components(kind="rootfinder", backend="torch"):
        target = parafix.core.get("rootfinder", component.name, backend="torch")
        if isinstance(target, type) and issubclass(target, AbstractSweep):
            yield component.name


NAMES = sorted(registered_sweeps())


def test_the_family_is_registered():
    family = {"deer", "elk", "jacobi", "picard", "quasi-deer", "quasi-elk"}
    assert family <= set(NAMES)


# The least and the largest number of sweeps that are expected.
SOLVERS = {
    "deer": (DEER(**TOLERANCES), 4, 10),
    "damped": (DEER(**TOLERANCES, damping="auto"), 4, 14),
    "quasi": (QuasiDEER(**TOLERANCES), 8, 30),
    "probe": (QuasiDEER(**TOLERANCES, probe=True), 10, 60),
    "chunked quasi": (QuasiDEER(**TOLERANCES, chunk=37), 8, 30),
    "elk": (ELK(**TOLERANCES), 4, 10),
    "elk of radius 1": (ELK(**TOLERANCES, radius=1.0), 15, 90),
    "chunked elk": (ELK(**TOLERANCES, chunk=37), 4, 10),
    "quasi-elk": (QuasiELK(**TOLERANCES), 8, 30),
    "jacobi": (Jacobi(**TOLERANCES), 25, 60),
    "picard": (Picard(**TOLERANCES), 60, 200),
}


def loop(f, init, xs):
    """The states and the outputs of a plain loop."""
    carry, outputs, carries = init, [], []
    for x in xs:
        carry, y = f(carry, x)
        outputs.append(y)
        carries.append(carry)
    return torch.stack(outputs), torch.stack(carries)


PROBLEM = gru(0, 200, 4)
EXPECTED = loop(PROBLEM.bind(), PROBLEM.init, PROBLEM.xs)


@pytest.mark.parametrize("name", SOLVERS)
def test_values_and_sweeps(name):
    solver, least, most = SOLVERS[name]
    (_, ys), solution = scan(
        PROBLEM.bind(), PROBLEM.init, PROBLEM.xs, solver=solver, return_solution=True
    )
    assert (solution.result == RESULTS.successful).all()
    assert_close((ys, solution.value), EXPECTED, 1e-9)
    steps = solution.stats["num_steps"]
    assert ((steps >= least) & (steps <= most)).all()
    assert (solution.stats["converged_prefix"] == 200).all()
    assert (solution.stats["lyapunov_exponent"] < 0).all()


def gradients(solve):
    params = {k: v.clone().requires_grad_() for k, v in PROBLEM.params.items()}
    init = PROBLEM.init.clone().requires_grad_()
    xs = PROBLEM.xs.clone().requires_grad_()
    ys = solve(PROBLEM.bind(params), init, xs)
    weights = torch.arange(ys.numel(), dtype=DOUBLE).cos().reshape(ys.shape)
    loss = (weights * ys.sin()).sum()
    return torch.autograd.grad(loss, [*params.values(), init, xs])


@pytest.mark.parametrize("name", ["quasi-deer", "elk", "quasi-elk", "picard"])
def test_gradients_are_those_of_backpropagation_through_time(name):
    actual = gradients(lambda *problem: scan(*problem, solver=name)[1])
    assert_close(actual, gradients(lambda *problem: loop(*problem)[0]), 1e-9)


@pytest.mark.parametrize("name", ["quasi-deer", "elk", "quasi-elk", "picard"])
def test_products_with_the_hessian(name):
    problem = gru(2, 20, 2)

    def product(solve):
        leaves = [*problem.params.values(), problem.init]
        leaves = [x.clone().requires_grad_() for x in leaves]
        params = dict(zip(problem.params, leaves[:-1], strict=True))
        ys = solve(problem.bind(params), leaves[-1], problem.xs)
        weights = torch.arange(ys.numel(), dtype=DOUBLE).cos().reshape(ys.shape)
        loss = (weights * ys.sin()).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        along = sum(
            (g * (2 * x.detach()).cos()).sum()
            for g, x in zip(first, leaves, strict=True)
        )
        return first, torch.autograd.grad(along, leaves)

    actual = product(lambda *problem: scan(*problem, solver=name)[1])
    expected = product(lambda *problem: loop(*problem)[0])
    assert_close(actual, expected, 1e-9)
    assert all(x.abs().max() > 1e-3 for x in expected[1])


def test_a_layer_takes_every_solver():
    torch.manual_seed(0)
    layer = GRU(2, 3, solver=ELK(**TOLERANCES), dtype=DOUBLE)
    xs = torch.randn(40, 2, 2, dtype=DOUBLE)
    expected, _ = torch.nn.GRU.forward(layer, xs)
    for solver in (ELK(**TOLERANCES), QuasiDEER(**TOLERANCES)):
        layer.solver = solver
        assert_close(layer(xs)[0], expected, 1e-9)
        (info,) = layer.info
        # Nobody has asked for it, and it would cost a sweep.
        assert "lyapunov_exponent" not in info.stats


class TestInfiniteRadius:
    @pytest.mark.parametrize(
        ("plain", "filtered"), [(DEER, ELK), (QuasiDEER, QuasiELK)]
    )
    @pytest.mark.parametrize(("radius", "tolerance"), [(torch.inf, 0), (1e9, 1e-11)])
    def test_is_the_plain_solver_sweep_by_sweep(
        self, plain, filtered, radius, tolerance
    ):
        problem = gru(0, 40, 3)

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

        one = two = problem.init.expand(40, 2, 3)
        for _ in range(5):
            one = sweep(plain(**TOLERANCES), one)
            two = sweep(filtered(**TOLERANCES, radius=radius), two)
            assert_close(two, one, tolerance)


def random_matrices(structure, length=9, samples=2):
    """`A_t` that amplify, right-hand sides, and the matrices as dense ones."""
    numbers = np.random.default_rng(3)
    shape = {"diagonal": (4,), "dense": (4, 4), "blocks": (2, 2, 2)}[structure]
    a = numbers.standard_normal((length, samples, *shape)) * 1.2
    a[0] = 0
    r = numbers.standard_normal((length, samples, 4))
    dense = np.zeros((length, samples, 4, 4))
    if structure == "diagonal":
        dense[..., range(4), range(4)] = a
    elif structure == "dense":
        dense[:] = a
    else:
        dense[..., :2, :2], dense[..., 2:, 2:] = a[:, :, 0], a[:, :, 1]
    return torch.tensor(a), torch.tensor(r), dense


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
        expected = np.stack(
            [
                gaussian_predictions(dense[:, b], r[:, b].numpy(), radius)
                for b in (0, 1)
            ],
            1,
        )
        region = TrustRegion(radius)
        # In two chunks, with what is carried from one to the other.
        first, held = region.damp(a[:5], 0, None, region.start(a[0]))
        rest, _ = region.damp(a[5:], 5, None, held)
        held_back = torch.cat([first, rest])
        if structure == "blocks":
            d = affine_scan(held_back, r.unflatten(-1, (2, 2))).flatten(-2)
        else:
            d = affine_scan(held_back, r)
        np.testing.assert_allclose(d, expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
    @pytest.mark.parametrize("structure", ["diagonal", "dense", "blocks"])
    def test_the_parallel_filter_is_the_sequential_one(self, structure, length):
        a, _, dense = random_matrices(structure, length + 2)
        before = kalman_gains(a[:2], torch.zeros_like(a[0]), 0.2)[-1]
        actual = kalman_gains(a[2:], before, 0.2)[-1]
        k, unit = np.zeros((2, 4, 4)), np.eye(4)
        for block in dense:
            m = block @ k @ block.swapaxes(-1, -2) + 0.2 * unit
            k = m @ np.linalg.inv(unit + m)
        if structure == "diagonal":
            k = k[..., range(4), range(4)]
        elif structure == "blocks":
            k = np.stack([k[..., :2, :2], k[..., 2:, 2:]], 1)
        np.testing.assert_allclose(actual, k, rtol=1e-10, atol=1e-12)

    def test_the_ends_of_its_range(self):
        a, _, _ = random_matrices("dense")
        start = torch.zeros_like(a[0])
        free, _ = TrustRegion(torch.inf).damp(a, 0, None, start)
        assert_identical(free, a)
        none, _ = TrustRegion(0.0).damp(a, 0, None, start)
        np.testing.assert_allclose(none[1:], 0, atol=1e-14)
        with pytest.raises(ValueError, match="`radius` must be non-negative"):
            ELK(**TOLERANCES, radius=-1.0)
        jaxtyping.config.update("jaxtyping_disable", True)
        for made in (TrustRegion, ft.partial(ELK, 0.1, 0.1)):
            for radius in (torch.ones(3), None):
                with pytest.raises(TypeError, match="`radius` must be a single"):
                    made(radius=radius)
        jaxtyping.config.update("jaxtyping_disable", False)


class TestDamping:
    def test_only_when_the_residual_grows(self):
        problem = gru(0, 200, 4)

        def sweeps(params, damping):
            (_, ys), solution = scan(
                problem.bind(params),
                problem.init,
                problem.xs,
                solver=DEER(**TOLERANCES, damping=damping),
                return_solution=True,
            )
            return ys, solution.stats["num_steps"]

        for scale in (0.5, 3.0):
            params = {k: scale * w for k, w in problem.params.items()}
            expected, _ = loop(problem.bind(params), problem.init, problem.xs)
            plain, without = sweeps(params, None)
            damped, held_back = sweeps(params, "auto")
            assert_close(plain, expected, 1e-9)
            assert_close(damped, expected, 1e-9)
            if scale < 1:
                assert_identical(held_back, without)
            else:
                # Where iterates run away, it pays.
                assert (held_back < without).all()

    def test_every_sample_has_its_own_factor(self):
        problem = gru(0, 60, 3)
        solver = DEER(**TOLERANCES, damping="auto")

        def steps(scales):
            scale = torch.tensor(scales, dtype=DOUBLE)[:, None]

            def f(h, x):
                h = torch.tanh(
                    scale * (h @ problem.params["W"][:3].T) + x.sum(-1, True)
                )
                return h, h

            _, solution = scan(
                f,
                problem.init,
                problem.xs,
                solver=solver,
                throw=False,
                return_solution=True,
            )
            return solution

        calm, mixed = steps([0.5, 0.5]), steps([0.5, 6.0])
        assert calm.stats["num_steps"][0] == mixed.stats["num_steps"][0]
        assert_identical(calm.value[:, 0], mixed.value[:, 0])
        assert mixed.stats["num_steps"][1] > mixed.stats["num_steps"][0]

    def test_the_factor_follows_the_residual(self):
        damping = AdaptiveDamping()
        memory = damping.init(torch.zeros(2, 3, dtype=DOUBLE))
        kept = []
        for residual in (8.0, 9.0, torch.nan, 5.0, 4.0, 3.0, 2.0):
            both = torch.tensor([residual, 1.0], dtype=DOUBLE)
            memory = damping.update(memory, both)
            kept.append(memory[0].tolist())
        expected = [1.0, 0.5, 0.25, 0.5, 1.0, 1.0, 1.0]
        assert kept == [[factor, 1.0] for factor in expected]

    def test_bad_input(self):
        with pytest.raises(TypeError, match='must be None, "auto" or'):
            DEER(**TOLERANCES, damping="sometimes")
        with pytest.raises(ValueError, match="between 0 and 1, got 2"):
            AdaptiveDamping(factor=2.0)


def field(z):
    """Of Lorenz."""
    x, y, w = z.unbind(-1)
    return torch.stack([10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w], -1)


def lorenz(z):
    """A step of the fourth-order Runge-Kutta method, of 0.1 units of time."""
    dt = 0.1
    k1 = field(z)
    k2 = field(z + dt / 2 * k1)
    k3 = field(z + dt / 2 * k2)
    k4 = field(z + dt * k3)
    return z + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


HEAVY = 100 * torch.tensor([[1.0, -2, 0.5], [1.5, 1, -1], [-0.5, 2, 1]], dtype=DOUBLE)
GATED = gru(0, 1, 3, 3)
GATED = GATED.bind({name: 100 * w for name, w in GATED.params.items()})
CASES = {
    "nan": (
        lambda z, t, x: torch.tanh(0.5 * z + x) + torch.where(t == 7, torch.nan, 0.0),
        [0.1, 0.0, -0.2],
    ),
    "squaring": (lambda z, t, x: z * z, [2.0, 0.5, 0.1]),
    "logistic": (lambda z, t, x: 3.9 * z * (1 - z), [0.3, 0.4, 0.6]),
    "heavy": (lambda z, t, x: torch.tanh(z @ HEAVY.T + 100 * x), [0.1, 0.0, -0.2]),
    "gated": (lambda z, t, x: GATED(z, x)[0], [0.1, 0.0, -0.2]),
    "lorenz": (lambda z, t, x: lorenz(z), [1.0, 2.0, 20.0]),
    "easy": (lambda z, t, x: torch.tanh(0.5 * z + x), [0.1, 0.0, -0.2]),
}


class TestNeverAFalseSuccess:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("what", [case for case in CASES if case != "lorenz"])
    def test_on(self, name, what):
        self.check(name, what, 80)

    # An error of rounding takes 300 steps to grow to where it matters.
    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_on_lorenz(self, name):
        self.check(name, "lorenz", 320)

    # Nothing ties it to a trajectory that is known, so it takes some 2000 sweeps.
    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_on_twenty_units_of_time_by_the_method_of_euler(self, name):
        def f(z, _):
            z = z + 0.01 * field(z)
            return z, z

        init = torch.ones(1, 3, dtype=DOUBLE)
        (_, ys), solution = scan(
            f, init, length=2000, solver=name, throw=False, return_solution=True
        )
        expected, _ = loop(f, init, torch.zeros(2000))
        assert solution.result == RESULTS.ill_conditioned
        assert solution.stats["error_estimate"] > 1e-8
        prefix = int(solution.stats["converged_prefix"])
        assert 100 < prefix < 2000
        assert_close(ys[:prefix], expected[:prefix], 1e-10)

    def check(self, name, what, length):
        step, init = CASES[what]
        init = torch.tensor([init], dtype=DOUBLE)
        times = torch.arange(length)[:, None, None]
        phase = 0.3 * times.double() + torch.arange(3.0, dtype=DOUBLE)
        xs = (times, phase.sin())

        def f(z, x):
            z = step(z, *x)
            return z, z

        (_, ys), solution = scan(
            f, init, xs, solver=name, throw=False, return_solution=True
        )
        expected, _ = loop(f, init, list(zip(*xs, strict=True)))
        expected = expected.numpy()
        unit = max(1.0, float(np.nanmax(np.where(np.isinf(expected), 0, expected))))
        deviation = np.abs(ys.numpy() - expected).max() / unit
        successful = bool(solution.result == RESULTS.successful)
        # What is called a success is one.
        assert not successful or deviation < 1e-9, deviation
        assert torch.isfinite(ys).all() or not successful
        prefix = int(solution.stats["converged_prefix"])
        if what == "easy":
            assert successful, solution.message()
            assert solution.stats["lyapunov_exponent"] < 0
        elif what == "nan":
            assert solution.result == RESULTS.nonfinite
            assert prefix == 7
        elif what == "squaring":
            assert solution.result == RESULTS.nonfinite
            assert prefix == np.isfinite(expected).all((1, 2)).sum()
        elif what in ("logistic", "lorenz"):
            assert solution.result == RESULTS.ill_conditioned
            assert solution.stats["lyapunov_exponent"] > 0
            assert "amplifies errors by about" in solution.message()


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_change_no_bit(name):
    def f(z, x):
        z = torch.tanh(z @ HEAVY.T * x[:, :1] + x)
        return z, z

    calm = torch.arange(180.0, dtype=DOUBLE).sin().reshape(60, 1, 3) / 500
    others = [calm, 1000 * calm, torch.full_like(calm, torch.nan)]

    def first(other):
        (_, ys), solution = scan(
            f,
            torch.zeros(2, 3, dtype=DOUBLE),
            torch.cat([calm, other], 1),
            solver=name,
            throw=False,
            return_solution=True,
        )
        assert solution.result[0] == RESULTS.successful
        return ys[:, 0], {key: x[0] for key, x in solution.stats.items()}

    expected, *found = map(first, others)
    for each in found:
        assert_identical(each, expected)


class TestLyapunovExponent:
    def exponent(self, f, init, length, **options):
        _, solution = scan(
            f,
            init,
            length=length,
            solver="deer",
            throw=False,
            return_solution=True,
            **options,
        )
        return solution.stats["lyapunov_exponent"]

    def test_of_linear_maps(self):
        # Of a matrix it is the logarithm of the spectral radius, and neither many steps
        # nor numbers that leave the range of floats on the way matter.
        q = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
        matrix = torch.tensor(q @ np.diag([1e-3, 1e-4, 1e-5]) @ q.T)

        def f(z, _):
            z = z @ matrix.T + 1
            return z, z

        exponent = self.exponent(f, torch.zeros(1, 3, dtype=DOUBLE), 1000)
        np.testing.assert_allclose(exponent, [np.log(1e-3)], rtol=1e-3)

    def test_of_what_remembers_nothing(self):
        def f(z, _):
            z = torch.cos(0 * z)
            return z, z

        assert self.exponent(f, torch.zeros(1, 1, dtype=DOUBLE), 10) == -torch.inf

    @pytest.mark.parametrize("options", [{}, {"window": 20}])
    def test_against_a_sequential_product(self, options):
        problem = gru(4, 57, 3)
        f = problem.bind()
        _, solution = scan(
            f,
            problem.init,
            problem.xs,
            solver="deer",
            return_solution=True,
            **options,
        )
        before = torch.cat([problem.init[None], solution.value[:-1]])
        expected = []
        for b in range(2):
            product = np.eye(3)
            for t in range(57):
                block = torch.func.jacrev(
                    lambda z, x=problem.xs[t, b]: f(z[None], x[None])[0][0]
                )(before[t, b])
                product = block.numpy() @ product
            expected.append(np.log(np.abs(product).max()) / 57)
        actual = solution.stats["lyapunov_exponent"]
        np.testing.assert_allclose(actual, expected, rtol=1e-10)

    def test_up_to_the_prefix_of_each_sample(self):
        # The derivative is 0.5 before time 10, and 0.9 from there on.
        half, most = torch.tensor([0.5, 0.9], dtype=DOUBLE).log()

        def f(z, t):
            z = torch.where(t < 10, half, most).exp() * z
            z = z + torch.where(
                (t == 20) & (torch.arange(2)[:, None] == 1), torch.nan, 0
            )
            return z, z

        times = torch.arange(30)[:, None, None].expand(30, 2, 1)
        _, solution = scan(
            f,
            torch.ones(2, 1, dtype=DOUBLE),
            times,
            solver="jacobi",
            throw=False,
            return_solution=True,
        )
        assert solution.stats["converged_prefix"].tolist() == [30, 20]
        expected = [(10 * half + 20 * most) / 30, (10 * half + 10 * most) / 20]
        np.testing.assert_allclose(
            solution.stats["lyapunov_exponent"], expected, rtol=1e-12
        )

    def test_a_solve_that_raises_says_it(self):
        def f(z, _):
            z = 3.9 * z * (1 - z)
            return z, z

        init = torch.full((1, 1), 0.3, dtype=DOUBLE)
        _, solution = scan(
            f, init, length=100, solver="deer", throw=False, return_solution=True
        )
        factor = float(solution.stats["lyapunov_exponent"].exp())
        # Of this map it is 0.5 in the long run, a factor of 1.6 in each step.
        assert 1.5 < factor < 2
        with pytest.raises(
            RuntimeError, match=f"errors by about {factor:.3g} per step"
        ):
            scan(f, init, length=100, solver="deer")


def test_the_fields_can_be_replaced():
    solver = dataclasses.replace(ELK(**TOLERANCES), radius=3.0)
    assert solver.damping.radius == 3.0
    damped = dataclasses.replace(DEER(**TOLERANCES), damping="auto")
    assert damped.damping == AdaptiveDamping()
    assert not damped.newton
    assert DEER(**TOLERANCES).newton
