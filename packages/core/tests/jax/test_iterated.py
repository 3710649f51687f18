"""Gradients of chains that form no Jacobian: `ChainAdjoint(iterate=True)`."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax import lax

from parafix.core.jax import (
    Blocks,
    Chain,
    ChainAdjoint,
    Custom,
    Dense,
    Diagonal,
    solve_chain,
    Structured,
)
from parafix.core.testing.jax import (
    assert_close,
    assert_identical,
    directional_derivative,
    gru,
    tanh_cell,
    temporary_bytes,
)


LENGTH, SIZE = 40, 6
CELLS = {
    "gru": gru(jax.random.key(0), LENGTH, SIZE),
    "tanh": tanh_cell(jax.random.key(1), LENGTH, SIZE),
}
ITERATED = ChainAdjoint(iterate=True)


def states_by_sweeps(step, init, xs, adjoint=ITERATED, resets=None, **options):
    chain = Chain(step, init, xs, LENGTH, resets=resets)
    return solve_chain(chain, adjoint=adjoint, **options).value


def states_by_loop(step, init, xs, resets=None):
    start = init

    def body(z, elements):
        x, reset = elements
        if reset is not None:
            z = jnp.where(reset, start, z)
        z = step(z, x)
        return z, z

    return lax.scan(body, init, (xs, resets))[1]


def losses(name, states):
    """A function of weights, initial state and inputs."""
    cell = CELLS[name]

    def loss(params, init, xs):
        z = states(lambda z, x: cell.step(params, z, x)[0], init, xs)
        return jnp.sum(jnp.cos(jnp.arange(z.size).reshape(z.shape)) * z**2)

    return loss, (cell.params, cell.init, cell.xs)


@ft.cache
def gradient(states):
    loss, arguments = losses("gru", states)
    return jax.jit(jax.grad(loss, (0, 1, 2)))(*arguments)


def derivatives(name, states):
    loss, arguments = losses(name, states)

    @jax.jit
    def everything(*arguments):
        tangents = jax.tree.map(jnp.sin, arguments)
        gradient = jax.grad(loss, (0, 1, 2))

        def slope(*arguments):
            return jax.jvp(loss, arguments, tangents)[1]

        return {
            "jvp": jax.jvp(loss, arguments, tangents),
            "forward over reverse": jax.jvp(gradient, arguments, tangents),
            "reverse over forward": jax.grad(slope, (0, 1, 2))(*arguments),
        }

    return everything(*arguments)


class TestDerivatives:
    def test_agree_with_the_loop_to_second_order(self):
        actual = derivatives("gru", states_by_sweeps)
        assert_close(actual, derivatives("gru", states_by_loop), 1e-10)

    def test_reverse_over_reverse(self):
        def found(states):
            loss, (params, init, xs) = losses("tanh", states)
            of_init = lambda init: jax.grad(loss, (0, 1))(params, init, xs)
            return jax.jit(lambda init: (of_init(init), jax.jacrev(of_init)(init)))(
                init
            )

        assert_close(found(states_by_sweeps), found(states_by_loop), 1e-10)

    @pytest.mark.parametrize(
        "options",
        [
            {"window": 13, "adjoint": ChainAdjoint(iterate=True, scan="associative")},
            pytest.param(
                {"adjoint": ChainAdjoint(iterate=True, chunk=7)},
                marks=pytest.mark.slow,
            ),
            pytest.param(
                {"adjoint": ChainAdjoint(iterate=False)}, marks=pytest.mark.slow
            ),
        ],
        ids=["windows", "chunks", "dense"],
    )
    def test_agree_however_they_are_solved_for(self, options):
        states = ft.partial(states_by_sweeps, **options)
        assert_close(gradient(states), gradient(states_by_loop), 1e-10)

    def test_agree_with_finite_differences(self):
        loss, arguments = losses("gru", states_by_loop)
        loss = jax.jit(loss)
        direction = jax.tree.map(jnp.cos, arguments)
        expected = directional_derivative(
            lambda x: loss(*x), arguments, direction, 3e-3
        )
        found = jax.tree.leaves(gradient(states_by_sweeps))
        pieces = zip(found, jax.tree.leaves(direction), strict=True)
        assert_close(sum(jnp.vdot(x, y) for x, y in pieces), expected, 1e-9)

    def test_of_blocks(self):
        blocks = jax.random.normal(jax.random.key(2), (2, 3, 3))
        xs = jax.random.normal(jax.random.key(3), (LENGTH, SIZE))

        def gradient(states, structure):
            def loss(blocks, xs):
                step = lambda z, x: jnp.tanh(
                    jnp.einsum("kij,kj->ki", blocks, z.reshape(2, 3)).ravel() + x
                )
                z = states(Structured(step, structure), jnp.ones(SIZE), xs)
                return jnp.sum(jnp.sin(z))

            return jax.jit(jax.grad(loss, (0, 1)))(blocks, xs)

        actual = gradient(states_by_sweeps, Blocks(3))
        assert_close(actual, gradient(states_by_loop, Blocks(3)), 1e-10)


RESETS = jnp.zeros(LENGTH, bool).at[jnp.array([0, 11, 12, 30])].set(True)


@ft.partial(jax.jit, static_argnums=0)
def gradients_with_resets(states, params, init, xs):
    def loss(params, init, xs):
        step = lambda z, x: CELLS["gru"].step(params, z, x)[0]
        return jnp.sum(jnp.sin(states(step, init, xs, resets=RESETS)))

    return jax.grad(loss, (0, 1, 2))(params, init, xs)


def reset_gradients(states, xs):
    return gradients_with_resets(states, CELLS["gru"].params, CELLS["gru"].init, xs)


class TestResets:
    xs = CELLS["gru"].xs
    states = staticmethod(ft.partial(states_by_sweeps, throw=False))

    def test_agree_with_the_loop(self):
        expected = reset_gradients(states_by_loop, self.xs)
        assert_close(reset_gradients(self.states, self.xs), expected, 1e-10)

    def test_a_bad_segment_leaves_the_others(self):
        # The input at time 20 spoils the segment from 12 to 29.
        spoilt = self.xs.at[20].set(jnp.nan)
        found = reset_gradients(self.states, spoilt)[2]
        assert np.isnan(found[12:21]).all()
        good = jnp.array([*range(12), *range(30, LENGTH)])
        expected = reset_gradients(states_by_loop, self.xs)[2]
        assert_close(found[good], expected[good], 1e-10)


def linear_step(z, x):
    matrix, b = x
    return matrix @ z + b


@jax.jit
def cotangents(matrices, b, g):
    """`λ_t = g_t + A_{t+1}^T λ_{t+1}`: the gradient in `b` of `<g, z>`."""

    def loss(b):
        chain = Chain(linear_step, jnp.zeros(b.shape[1]), (matrices, b), len(b))
        adjoint = ChainAdjoint(iterate=True)
        return jnp.vdot(g, solve_chain(chain, adjoint=adjoint, throw=False).value)

    return jax.grad(loss)(b)


def dense_cotangents(matrices, g):
    """By the matrix of the whole system."""
    length, size = g.shape
    whole = np.eye(length * size)
    for t in range(1, length):
        now, before = slice(t * size, (t + 1) * size), slice((t - 1) * size, t * size)
        whole[now, before] = -matrices[t]
    return np.linalg.solve(whole.T, g.ravel()).reshape(g.shape)


class TestLinearChains:
    @given(seed=st.integers(0, 99), scale=st.floats(0, 3), share=st.floats(0, 1))
    def test_agree_with_linear_algebra(self, seed, scale, share):
        random = np.random.default_rng(seed)
        matrices = scale * random.normal(size=(12, 3, 3)) / 3**0.5
        # From dense matrices to diagonal ones.
        matrices = np.where(np.eye(3, dtype=bool), matrices, share * matrices)
        g = random.normal(size=(12, 3))
        expected = dense_cotangents(matrices, g)
        actual = cotangents(jnp.asarray(matrices), jnp.zeros((12, 3)), jnp.asarray(g))
        size = np.abs(expected).max()
        assert_close(actual / size, jnp.asarray(expected / size), 1e-9)

    def test_of_a_chain_that_forgets_nothing(self):
        # Permutations: no diagonal helps, and a sweep carries news by one step.
        matrices = np.tile(np.roll(np.eye(3), 1, 0), (60, 1, 1))
        g = np.random.default_rng(0).normal(size=(60, 3))
        actual = cotangents(jnp.asarray(matrices), jnp.zeros((60, 3)), jnp.asarray(g))
        assert_close(actual, jnp.asarray(dense_cotangents(matrices, g)))

    def test_of_a_chain_of_which_each_entry_remembers_itself(self):
        # Hundreds of steps of memory, and a dozen sweeps: the diagonal is seen.
        random = np.random.default_rng(0)
        matrices = 0.001 * random.normal(size=(300, 3, 3)) + 0.995 * np.eye(3)
        g = random.normal(size=(300, 3))

        def loss(b):
            adjoint = ChainAdjoint(iterate=True, max_steps=12)
            xs = (jnp.asarray(matrices), b)
            chain = Chain(linear_step, jnp.zeros(3), xs, 300)
            solution = solve_chain(chain, adjoint=adjoint, throw=False)
            return jnp.vdot(jnp.asarray(g), solution.value)

        actual = jax.jit(jax.grad(loss))(jnp.zeros((300, 3)))
        expected = dense_cotangents(matrices, g)
        size = np.abs(expected).max()
        assert_close(actual / size, jnp.asarray(expected / size), 1e-11)


@ft.partial(jax.jit, static_argnums=2)
def gradients_of_batch(rate, xs, throw):
    adjoint = ChainAdjoint(iterate=True, max_steps=3)

    def gradient(rate, x):
        def loss(rate, x):
            step = lambda z, x: rate * jnp.roll(jnp.tanh(z), 1) + x
            chain = Chain(step, jnp.zeros(4), x, 30)
            return solve_chain(chain, adjoint=adjoint, throw=throw).value.sum()

        return jax.grad(loss, (0, 1))(rate, x)

    return jax.vmap(gradient)(rate, xs)


class TestBatches:
    xs = jax.random.normal(jax.random.key(0), (3, 30, 4))

    def test_too_few_sweeps_are_no_secret(self):
        rate = jnp.array([1e-9, 0.9, 1e-7])
        of_rate, of_xs = gradients_of_batch(rate, self.xs, False)
        assert np.isnan(of_rate).tolist() == [False, True, False]
        assert np.isnan(of_xs[1]).any()
        assert np.isfinite(of_xs[jnp.array([0, 2])]).all()
        with pytest.raises(Exception, match="linear solve"):
            jax.block_until_ready(gradients_of_batch(rate, self.xs, True))

    def test_a_nan_in_one_sample_changes_no_bit_of_the_others(self):
        rate = jnp.array([1e-9, 1e-8, 1e-7])
        spoilt = self.xs.at[1, 5].set(jnp.nan)
        others = lambda tree: jax.tree.map(lambda x: jnp.delete(x, 1, axis=0), tree)
        good = gradients_of_batch(rate, self.xs, False)
        bad = gradients_of_batch(rate, spoilt, False)
        assert np.isfinite(jnp.concatenate([x.ravel() for x in good])).all()
        assert_identical(others(bad), others(good))
        assert np.isnan(bad[0][1])


@pytest.mark.slow
def test_the_memory_grows_with_the_state_and_not_with_its_square():
    def temporary(size, adjoint):
        params = tanh_cell(jax.random.key(0), 1, size).params

        def loss(init, xs):
            step = lambda z, x: jnp.tanh(params["W"] @ z + params["U"] @ x)
            chain = Chain(step, init, xs, 1000)
            return jnp.sum(solve_chain(chain, adjoint=adjoint).value ** 2)

        return temporary_bytes(jax.grad(loss), jnp.ones(size), jnp.ones((1000, 2)))

    # The certificate of the solve holds blocks for as many times as fit in the cache.
    small, large = (temporary(size, ITERATED) for size in (128, 256))
    assert large < 2.5 * small
    assert large < 1000 * 256**2 * 8 / 4
    dense = ChainAdjoint(iterate=False, chunk=1000)
    assert temporary(256, dense) > 1000 * 256**2 * 8


@pytest.mark.parametrize(
    ("structure", "size", "expected"),
    [
        (Dense(), 128, False),
        (Dense(), 129, True),
        (Diagonal(), 1000, False),
        (Blocks(4), 1000, False),
        (Custom(lambda z, x: jnp.zeros((200, 200))), 200, False),
    ],
)
def test_what_is_decided_if_nobody_says(structure, size, expected):
    chain = Chain(Structured(lambda z, x: z, structure), jnp.ones(size), None, 3)
    assert ChainAdjoint().iterates(chain) == expected
    assert ChainAdjoint(iterate=not expected).iterates(chain) != expected


@pytest.mark.parametrize("options", [{"rtol": -1.0}, {"max_steps": 0}])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ChainAdjoint(**options)
