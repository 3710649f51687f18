"""Gradients of chains that form no Jacobian: `ChainAdjoint(iterate=True)`."""

import functools as ft

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from parafix.core.testing.torch import (
    assert_close,
    assert_identical,
    directional_derivative,
    gru,
    largest_bytes,
    tanh_cell,
)
from parafix.core.torch import (
    Blocks,
    Chain,
    ChainAdjoint,
    Custom,
    Dense,
    Diagonal,
    solve_chain,
    Structured,
)


func = torch.func
DOUBLE = torch.float64
LENGTH, SIZE, SAMPLES = 40, 6, 2
CELLS = {"gru": gru(0, LENGTH, SIZE), "tanh": tanh_cell(1, LENGTH, SIZE)}
ITERATED = ChainAdjoint(iterate=True)


def states_by_sweeps(step, init, xs, adjoint=ITERATED, **options):
    chain = Chain(step, init, xs, len(xs), broadcasts=True)
    return solve_chain(chain, adjoint=adjoint, growth=False, **options).value


def states_by_loop(step, init, xs):
    states = []
    for x in xs:
        init = step(init, x)
        states.append(init)
    return torch.stack(states)


def losses(name, states):
    """A function of weights, initial states and inputs."""
    cell = CELLS[name]
    names = sorted(cell.params)

    def loss(*arguments):
        *weights, init, xs = arguments
        params = dict(zip(names, weights, strict=True))
        z = states(lambda z, x: cell.step(params, z, x)[0], init, xs)
        weights = torch.arange(z.numel(), dtype=DOUBLE).cos().reshape(z.shape)
        return (weights * z**2).sum()

    return loss, (*(cell.params[name] for name in names), cell.init, cell.xs)


def requiring(arguments):
    return tuple(x.clone().requires_grad_() for x in arguments)


def gradient(states, name="gru"):
    loss, arguments = losses(name, states)
    variables = requiring(arguments)
    return torch.autograd.grad(loss(*variables), variables, materialize_grads=True)


class TestDerivatives:
    @pytest.mark.parametrize("name", CELLS)
    def test_agree_with_the_loop_in_every_mode(self, name):
        def found(states):
            loss, arguments = losses(name, states)
            tangents = tuple(x.sin() for x in arguments)
            variables = requiring(arguments)
            first = torch.autograd.grad(
                loss(*variables), variables, create_graph=True, materialize_grads=True
            )
            slope = sum((x * t).sum() for x, t in zip(first, tangents, strict=True))
            of_init = lambda init: loss(*arguments[:-2], init, arguments[-1])
            inits = torch.stack([arguments[-2], -arguments[-2]])
            return {
                "grad": gradient(states, name),
                "backward of backward": torch.autograd.grad(
                    slope, variables, materialize_grads=True
                ),
                "jvp": func.jvp(loss, arguments, tangents),
                "forward over reverse": func.jvp(
                    func.grad(loss, tuple(range(len(arguments)))), arguments, tangents
                ),
                "vmap of grad": func.vmap(func.grad(of_init))(inits),
            }

        assert_close(found(states_by_sweeps), found(states_by_loop), 1e-10)

    @pytest.mark.parametrize(
        "options",
        [
            {"window": 13},
            {"adjoint": ChainAdjoint(iterate=True, chunk=7, scan="associative")},
            {"adjoint": ChainAdjoint(iterate=False)},
        ],
        ids=["windows", "chunks", "dense"],
    )
    def test_agree_however_they_are_solved_for(self, options):
        states = ft.partial(states_by_sweeps, **options)
        assert_close(gradient(states), gradient(states_by_sweeps), 1e-10)

    def test_agree_with_finite_differences(self):
        loss, arguments = losses("gru", states_by_sweeps)
        direction = tuple(x.cos() for x in arguments)
        expected = directional_derivative(
            lambda x: loss(*x), arguments, direction, 3e-3
        )
        pieces = zip(gradient(states_by_sweeps), direction, strict=True)
        assert_close(sum((x * y).sum() for x, y in pieces), expected, 1e-9)

    def test_of_a_step_with_a_formula(self):
        # It stays one: the products are those of the step.
        weights = torch.tensor(np.random.default_rng(0).normal(size=(SIZE, SIZE)) / 3)
        step = lambda weights, z, x: torch.tanh(z @ weights.T + x)

        def formula(weights, z, x):
            f = step(weights, z, x)
            return f, (1 - f**2).unsqueeze(-1) * weights

        def found(solve):
            variables = requiring((weights, torch.ones(SAMPLES, SIZE, dtype=DOUBLE)))
            z = solve(*variables)
            return torch.autograd.grad(torch.sin(z).sum(), variables)

        def by_sweeps(weights, init):
            chain = Chain(
                ft.partial(step, weights),
                init,
                torch.ones(LENGTH, 1, 1, dtype=DOUBLE),
                LENGTH,
                broadcasts=True,
                linearised=ft.partial(formula, weights),
            )
            return solve_chain(chain, adjoint=ITERATED).value

        def by_loop(weights, init):
            xs = torch.ones(LENGTH, 1, 1, dtype=DOUBLE)
            return states_by_loop(ft.partial(step, weights), init, xs)

        assert_close(found(by_sweeps), found(by_loop), 1e-10)

    def test_of_blocks(self):
        random = np.random.default_rng(2)
        blocks = torch.tensor(random.normal(size=(2, 3, 3)))
        xs = torch.tensor(random.normal(size=(LENGTH, SAMPLES, SIZE)))

        def found(states):
            variables = requiring((blocks, xs))

            def step(z, x):
                parts = z.unflatten(-1, (2, 3))
                return torch.tanh((variables[0] @ parts[..., None]).flatten(-3) + x)

            init = torch.ones(SAMPLES, SIZE, dtype=DOUBLE)
            z = states(Structured(step, Blocks(3)), init, variables[1])
            return torch.autograd.grad(torch.sin(z).sum(), variables)

        assert_close(found(states_by_sweeps), found(states_by_loop), 1e-10)


def linear_step(z, x):
    matrices, b = x
    return (matrices @ z[..., None])[..., 0] + b


def cotangents(matrices, g, max_steps=None):
    """`λ_t = g_t + A_{t+1}^T λ_{t+1}`: the gradient in `b` of `<g, z>`."""
    matrices, g = (torch.tensor(x)[:, None] for x in (matrices, g))
    b = torch.zeros_like(g, requires_grad=True)
    chain = Chain(
        linear_step, torch.zeros_like(g[0]), (matrices, b), len(g), broadcasts=True
    )
    adjoint = ChainAdjoint(iterate=True, max_steps=max_steps)
    z = solve_chain(chain, adjoint=adjoint, throw=False, growth=False).value
    return torch.autograd.grad((g * z).sum(), b)[0][:, 0]


def dense_cotangents(matrices, g):
    """By the matrix of the whole system."""
    length, size = g.shape
    whole = np.eye(length * size)
    for t in range(1, length):
        now, before = slice(t * size, (t + 1) * size), slice((t - 1) * size, t * size)
        whole[now, before] = -matrices[t]
    return torch.tensor(np.linalg.solve(whole.T, g.ravel()).reshape(g.shape))


class TestLinearChains:
    @given(seed=st.integers(0, 99), scale=st.floats(0, 3), share=st.floats(0, 1))
    def test_agree_with_linear_algebra(self, seed, scale, share):
        random = np.random.default_rng(seed)
        matrices = scale * random.normal(size=(12, 3, 3)) / 3**0.5
        # From dense matrices to diagonal ones.
        matrices = np.where(np.eye(3, dtype=bool), matrices, share * matrices)
        g = random.normal(size=(12, 3))
        expected = dense_cotangents(matrices, g)
        size = expected.abs().max()
        assert_close(cotangents(matrices, g) / size, expected / size, 1e-9)

    def test_of_a_chain_that_forgets_nothing(self):
        # Permutations: no diagonal helps, and a sweep carries news by one step.
        matrices = np.tile(np.roll(np.eye(3), 1, 0), (60, 1, 1))
        g = np.random.default_rng(0).normal(size=(60, 3))
        assert_close(cotangents(matrices, g), dense_cotangents(matrices, g))

    def test_of_a_chain_of_which_each_entry_remembers_itself(self):
        # Hundreds of steps of memory, and a dozen sweeps: the diagonal is seen.
        random = np.random.default_rng(0)
        matrices = 0.001 * random.normal(size=(300, 3, 3)) + 0.995 * np.eye(3)
        g = random.normal(size=(300, 3))
        expected = dense_cotangents(matrices, g)
        size = expected.abs().max()
        assert_close(cotangents(matrices, g, 12) / size, expected / size, 1e-11)


def gradients_of_batch(rate, xs, throw):
    rate, xs = requiring((rate, xs))
    step = lambda z, x: rate * torch.tanh(z).roll(1, -1) + x
    init = torch.zeros(xs.shape[1:], dtype=DOUBLE)
    adjoint = ChainAdjoint(iterate=True, max_steps=3)
    z = states_by_sweeps(step, init, xs, adjoint, throw=throw)
    return torch.autograd.grad(z.sum(), (rate, xs))


class TestBatches:
    xs = torch.tensor(np.random.default_rng(0).normal(size=(30, 3, 4)))

    def test_too_few_sweeps_are_no_secret(self):
        rate = torch.tensor([[1e-9], [0.9], [1e-7]], dtype=DOUBLE)
        of_rate, of_xs = gradients_of_batch(rate, self.xs, False)
        assert of_rate.isnan()[:, 0].tolist() == [False, True, False]
        assert of_xs[:, 1].isnan().any()
        assert of_xs[:, [0, 2]].isfinite().all()
        with pytest.raises(RuntimeError, match="sample 1: .*linear solve"):
            gradients_of_batch(rate, self.xs, True)

    def test_a_nan_in_one_sample_changes_no_bit_of_the_others(self):
        rate = torch.tensor([[1e-9], [1e-8], [1e-7]], dtype=DOUBLE)
        spoilt = self.xs.clone()
        spoilt[5, 1] = torch.nan
        good = gradients_of_batch(rate, self.xs, False)
        bad = gradients_of_batch(rate, spoilt, False)
        assert all(x.isfinite().all() for x in good)
        assert bad[0][1].isnan()
        others = lambda pair: (pair[0][[0, 2]], pair[1][:, [0, 2]])
        assert_identical(others(bad), others(good))


def test_no_tensor_of_the_gradient_is_of_the_size_of_the_jacobians():
    size, length = 32, 50
    params = tanh_cell(0, 1, size).params

    def largest(adjoint):
        init = torch.ones(1, size, dtype=DOUBLE, requires_grad=True)
        xs = torch.ones(length, 1, 2, dtype=DOUBLE)
        step = lambda z, x: torch.tanh(z @ params["W"].T + x @ params["U"].T)
        z = states_by_sweeps(step, init, xs, adjoint)
        return largest_bytes(lambda: torch.autograd.grad(z.sum(), init))

    states = 8 * length * size
    # The products of all probes.
    assert largest(ITERATED) <= 8 * states
    assert largest(ChainAdjoint(iterate=False)) >= size * states


def test_autocast_does_not_keep_it_going():
    # Products that are rounded to 8 bits are still linear enough to converge.
    params = gru(0, 1, 16, dtype=torch.float32).params

    def gradient(adjoint):
        xs = torch.ones(100, 2, 2, requires_grad=True)
        step = lambda z, x: gru(0, 1, 16).step(params, z, x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            z = states_by_sweeps(step, torch.zeros(2, 16), xs, adjoint, throw=False)
        return torch.autograd.grad(z.float().sum(), xs)[0]

    found = gradient(ChainAdjoint(iterate=True, max_steps=40))
    assert_close(found, gradient(ChainAdjoint(iterate=False)), 0.1)


@pytest.mark.parametrize(
    ("structure", "size", "expected"),
    [
        (Dense(), 64, False),
        (Dense(), 65, True),
        (Diagonal(), 1000, False),
        (Blocks(4), 1000, False),
        (Custom(lambda z, x: z), 100, False),
    ],
)
def test_what_is_decided_if_nobody_says(structure, size, expected):
    step = Structured(lambda z, x: z, structure)
    chain = Chain(step, torch.ones(1, size), None, 3)
    assert ChainAdjoint().iterates(chain) == expected
    assert ChainAdjoint(iterate=not expected).iterates(chain) != expected


@pytest.mark.parametrize("options", [{"rtol": -1.0}, {"max_steps": 0}])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ChainAdjoint(**options)
