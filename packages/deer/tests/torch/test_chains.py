"""Chains that are no recurrent networks: a sampler, a deep stack; and long ones."""

import functools as ft

import pytest
import torch

from parafix.core.testing.torch import assert_close, assert_identical, reference_scan
from parafix.core.torch import RESULTS
from parafix.deer.torch import scan


DOUBLE = torch.float64


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=DOUBLE, generator=generator)


def solve(solver, f, init, xs):
    """Outputs and solution; those of the loop if `solver` is `None`."""
    if solver is None:
        return *reference_scan(f, init, xs)[:2], None
    out, solution = scan(f, init, xs, solver=solver, throw=False, return_solution=True)
    return *out, solution


def langevin(target, z, luck):
    """A step of the Metropolis-adjusted Langevin algorithm, its luck drawn beforehand.

    Its target are two normal distributions of equal weight around `mean` and `-mean`.
    Roberts and Tweedie, "Exponential convergence of Langevin distributions and their
    discrete approximations", Bernoulli 1996, section 1.4.
    """
    (mean, correlation), (noise, log_uniform), size = target, luck, 0.6
    one = torch.ones_like(correlation)
    covariance = torch.stack([one, correlation, correlation, one]).reshape(2, 2)
    precision = torch.linalg.inv(covariance)

    def log_density(z):
        inner = z @ precision @ mean
        return torch.logaddexp(inner, -inner) - (z @ precision * z).sum(-1) / 2

    def drift(z):
        inner = z @ precision @ mean
        return z + size * (inner.tanh()[..., None] * mean - z) @ precision

    forth = (2 * size) ** 0.5 * noise
    proposal = drift(z) + forth
    back = z - drift(proposal)
    ratio = log_density(proposal) - log_density(z)
    ratio = ratio + ((forth**2).sum(-1) - (back**2).sum(-1)) / (4 * size)
    accepted = log_uniform < ratio
    z = torch.where(accepted[..., None], proposal, z)
    return z, (z, accepted)


@ft.cache
def expectation(solver):
    """An expectation over two runs, its gradient in the target, and the runs."""
    length, samples = 400, 2
    uniform = torch.rand(
        length, samples, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)
    )
    luck = normal(0, length, samples, 2), uniform.log()
    target = [torch.tensor([1.0, 0.5], dtype=DOUBLE), torch.tensor(0.5, dtype=DOUBLE)]
    target = [x.requires_grad_() for x in target]
    init = torch.zeros(samples, 2, dtype=DOUBLE)
    f = ft.partial(langevin, target)
    _, (z, accepted), solution = solve(solver, f, init, luck)
    mean = (z[..., 0] * z[..., 1] + z[..., 0] ** 2).mean()
    gradient = torch.autograd.grad(mean, target)
    return (mean, z), accepted, gradient, solution


@pytest.mark.parametrize(("solver", "most"), [("deer", 30), ("quasi-deer", 150)])
def test_a_markov_chain_is_its_sequential_run(solver, most):
    values, accepted, gradient, solution = expectation(solver)
    expected, decisions, expected_gradient, _ = expectation(None)
    # There is something to decide, and the sampler sees both of its modes.
    acceptance = decisions.double().mean(0)
    assert ((acceptance > 0.6) & (acceptance < 0.9)).all()
    first = expected[1][..., 0]
    assert ((first[1:] * first[:-1] < 0).sum(0) > 20).all()
    assert_identical(accepted, decisions)
    assert_close(values, expected, 1e-9)
    assert_close(gradient, expected_gradient, 1e-9)
    assert gradient[0].abs().min() > 0.1
    assert (solution.result == RESULTS.successful).all()
    assert (solution.stats["lyapunov_exponent"] < 0).all()
    assert (solution.stats["num_steps"] < most).all()


class TestDecisions:
    """A step may jump, and a state may lie on the other side than the one before it."""

    TOLERANCE = 1e-2

    def test_between_the_last_two_iterates(self):
        # Loose tolerances leave room between the two. Thresholds all around the values
        # of `h` where it is looked at, of which some lie there: a sample for each.
        inputs = torch.sin(0.7 * torch.arange(60, dtype=DOUBLE))
        zero = torch.zeros(1, dtype=DOUBLE)

        def plain(h, x):
            return torch.tanh(1.5 * h + x), h

        _, h, _ = reference_scan(plain, zero, inputs)
        around = torch.linspace(-2, 2, 41, dtype=DOUBLE) * self.TOLERANCE
        thresholds = (h[inputs > 0.9] + around).ravel()

        def f(carry, x):
            h, s = carry
            above = torch.where(h > thresholds, 1.0, -1.0).double()
            s = 0.5 * s + torch.where(x > 0.9, above, 0.0)
            return (torch.tanh(1.5 * h + x), s), s

        init = (torch.zeros_like(thresholds),) * 2
        xs = inputs[:, None].expand(-1, len(thresholds))
        (_, ys), solution = scan(
            f,
            init,
            xs,
            solver="deer",
            rtol=self.TOLERANCE,
            atol=self.TOLERANCE,
            throw=False,
            return_solution=True,
        )
        assert (solution.result == RESULTS.successful).all()
        assert (solution.stats["residual"] <= 1).all()
        assert_close(ys, reference_scan(f, init, xs)[1], 10 * self.TOLERANCE)


class TestResidualStack:
    """Depth as time, and the weights of a layer as the input at that time."""

    DEPTH, SIZE, SAMPLES = 1000, 8, 2

    def layer(self, h, weights):
        matrix, bias = weights
        product = (matrix @ h[..., None])[..., 0]
        return h + torch.tanh(product + bias) / self.DEPTH**0.5, None

    @pytest.mark.parametrize("solver", ["deer", "picard"])
    def test_values_and_the_gradients_of_all_layers(self, solver):
        # Each sample has weights of its own: time, sample, then what a layer has.
        shape = self.DEPTH, self.SAMPLES, self.SIZE
        matrices, biases = normal(0, *shape, self.SIZE), normal(1, *shape)
        init = normal(2, self.SAMPLES, self.SIZE)
        leaves = [x.requires_grad_() for x in (matrices, biases, init)]

        def gradient(solver):
            last, _, solution = solve(solver, self.layer, init, (matrices, biases))
            loss = last.sin().sum()
            return (loss, last), torch.autograd.grad(loss, leaves), solution

        values, actual, solution = gradient(solver)
        expected_values, expected, _ = gradient(None)
        assert_close(values, expected_values, 1e-9)
        # The share of a layer is small: compared in units of its own size.
        units = [x.abs().max() for x in expected]
        scaled = lambda grads: [x / u for x, u in zip(grads, units, strict=True)]
        assert_close(scaled(actual), scaled(expected), 1e-9)
        assert (solution.result == RESULTS.successful).all()
        steps = solution.stats["num_steps"]
        assert (steps < (10 if solver == "deer" else 60)).all()


def long_gradient(cell, head, xs, solver):
    """The mean of a function of all outputs, its gradient, outputs and solution.

    By the kernel of `torch.nn.GRU` if `solver` is `None`.
    """
    init = torch.zeros(1, cell.hidden_size, dtype=xs.dtype)
    solution = None
    if solver is None:
        kernel = torch.nn.GRU(cell.input_size, cell.hidden_size, dtype=xs.dtype)
        names = [name for name, _ in cell.named_parameters()]
        weights = {f"{name}_l0": getattr(cell, name) for name in names}
        h, _ = torch.func.functional_call(kernel, weights, (xs, init[None]))
    else:
        f = lambda h, x: (cell(x, h),) * 2
        (_, h), solution = scan(f, init, xs, solver=solver, return_solution=True)
    mean = torch.sin(2 * h @ head).mean()
    gradient = torch.autograd.grad(mean, [*cell.parameters(), head])
    return (mean, h, list(gradient)), solution


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (DOUBLE, 1e-9)]
)
def test_a_long_sequence(dtype, tolerance):
    length, size = 127_323, 4
    torch.manual_seed(0)
    cell, head = torch.nn.GRUCell(2, size), torch.randn(size, requires_grad=True)
    xs = torch.randn(length, 1, 2)
    wide = cell.double(), head.detach().double().requires_grad_(), xs.double()
    expected, _ = long_gradient(*wide, None)
    narrow = cell.to(dtype), head.detach().to(dtype).requires_grad_(), xs.to(dtype)
    for solver, most in (("deer", 20), ("quasi-deer", 50)):
        (mean, h, gradient), solution = long_gradient(*narrow, solver)
        assert solution.result == RESULTS.successful
        assert solution.stats["num_steps"] < most
        found = mean.double(), h.double(), [x.double() for x in gradient]
        assert_close(found, expected, tolerance)
