"""Causal problems: every answer is that of accepting one entry after the other."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax import lax

from parafix.core.jax import (
    AbstractCausalSweep,
    check_causal,
    Newton,
    RESULTS,
    solve_causal,
)
from parafix.core.testing.jax import assert_close, assert_identical


COUNT, SIZE = 17, 2
MASK = np.tril(np.ones((COUNT, COUNT), bool), -1)
WEIGHTS = jax.random.normal(jax.random.key(0), (COUNT, COUNT))
NOISE = jax.random.normal(jax.random.key(1), (COUNT, SIZE))


def network(weights, noise, z):
    return jnp.tanh(jnp.where(MASK, weights, 0) @ z) + noise


def loop(weights, noise):
    """With slices, and so of another order of operations."""

    def body(z, i):
        z = z.at[i].set(jnp.tanh(jnp.where(MASK, weights, 0)[i] @ z) + noise[i])
        return z, None

    return lax.scan(body, jnp.zeros_like(noise), jnp.arange(COUNT))[0]


@eqx.filter_jit
def solved(weights, noise, z0, solver="jacobi", **options):
    f = ft.partial(network, weights, noise)
    return solve_causal(f, z0, solver=solver, **options)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_bits_are_those_of_one_entry_after_the_other(dtype):
    weights, noise = WEIGHTS.astype(dtype), NOISE.astype(dtype)
    expected = solved(weights, noise, jnp.zeros_like(noise), "sequential")
    for scale in (0.0, 1.0, 1e4):
        start = scale * jax.random.normal(jax.random.key(2), noise.shape, dtype)
        solution = solved(weights, noise, start)
        assert_identical(solution.value, expected.value)
        assert solution.result == RESULTS.successful
        assert solution.stats["exact_prefix"] == COUNT
        assert solution.stats["residual"] == 0
    if dtype == jnp.float64:
        assert_close(expected.value, loop(weights, noise), 1e-12)


def test_derivatives_are_those_of_the_loop():
    probe = jnp.cos(jnp.arange(COUNT * SIZE, dtype=float)).reshape(COUNT, SIZE)
    by_sweeps = lambda *point: solved(*point, jnp.zeros((COUNT, SIZE))).value

    def gradient(run):
        return jax.grad(lambda *point: (probe * run(*point) ** 2).sum(), (0, 1))

    point = (WEIGHTS, NOISE)
    batch = (jnp.stack([WEIGHTS, 0.1 * WEIGHTS]), NOISE)
    for transform, inputs in (
        (gradient, point),
        (lambda run: lambda *p: jax.jvp(run, p, p)[1], point),
        (lambda run: lambda *p: jax.jvp(gradient(run), p, p)[1], point),
        (lambda run: jax.vmap(gradient(run), (0, None)), batch),
    ):
        expected = jax.jit(transform(loop))(*inputs)
        assert_close(jax.jit(transform(by_sweeps))(*inputs), expected, 1e-11)
    guess = jax.grad(lambda z0: solved(*point, z0).value.sum())(jnp.ones((COUNT, SIZE)))
    assert_identical(guess, jnp.zeros_like(guess))


@pytest.mark.parametrize("depth", [1, 3, COUNT])
def test_sweeps_are_the_depth_and_one_that_confirms(depth):
    # Every entry needs the one before it, but for `depth` of them the chain is cut.
    starts = jnp.arange(COUNT) % depth == 0

    def f(z):
        before = jnp.concatenate([jnp.zeros((1, SIZE)), z[:-1]])
        return jnp.where(starts[:, None], 0.0, jnp.sin(before)) + NOISE

    stats = solve_causal(f, jnp.full((COUNT, SIZE), 9.0)).stats
    assert stats["num_steps"] == depth + 1
    assert stats["num_evals"] == depth + 1


def test_an_easy_and_a_hard_sample_side_by_side():
    weights = jnp.stack([0 * WEIGHTS, WEIGHTS, WEIGHTS.at[5, 3].set(jnp.nan)])
    run = jax.vmap(ft.partial(solved, throw=False), (0, None, None))
    zeros = jnp.zeros((COUNT, SIZE))
    solution = run(weights, NOISE, zeros)
    steps = solution.stats["num_steps"]
    assert steps[0] == 2
    assert steps[0] < steps[1] <= COUNT + 1
    assert (solution.result == RESULTS.nonfinite).tolist() == [False, False, True]
    # What the neighbours hold changes no bit.
    other = run(weights.at[0].set(WEIGHTS.T), NOISE, zeros)
    assert_identical(other.value[1], solution.value[1])
    gradients = jax.grad(lambda w: run(w, NOISE, zeros).value[:2].sum())(weights)
    assert jnp.isfinite(gradients[:2]).all()


def _with_nan(z):
    before = jnp.concatenate([jnp.zeros((1, SIZE)), z[:-1]])
    return (
        jnp.sin(before) + NOISE + jnp.where(jnp.arange(COUNT) == 9, jnp.nan, 0)[:, None]
    )


def test_a_nan_is_where_the_sequential_program_has_it():
    zeros = jnp.zeros((COUNT, SIZE))
    solution = solve_causal(_with_nan, zeros, throw=False)
    expected = solve_causal(_with_nan, zeros, solver="sequential", throw=False)
    assert_identical(solution.value, expected.value)
    assert jnp.isnan(solution.value[9:]).all()
    assert solution.stats["num_steps"] <= COUNT + 1
    assert solution.result == expected.result == RESULTS.nonfinite
    assert "First bad position: 9" in solution.message()
    with pytest.raises(eqx.EquinoxRuntimeError, match="First bad position: 9"):
        solve_causal(_with_nan, zeros)


def test_an_overflow_ahead_does_no_harm():
    # A masked product is 0 * inf where an iterate overflows, also in finished entries.
    weights = 1e200 * jnp.asarray(MASK, float).at[:, 3:].set(0)

    def f(z):
        return jnp.where(jnp.arange(COUNT) < 3, 0.0, jnp.exp(-((weights @ z) ** 2))) + 1

    start = jnp.full(COUNT, 1e308)
    solution = solve_causal(f, start, check=False)
    assert_identical(solution.value, solve_causal(f, start, solver="sequential").value)
    start = jnp.full(COUNT, jnp.inf).at[0].set(jnp.nan)
    assert_identical(solve_causal(f, start).value, solution.value)


def _overflowing_inside(z):
    # From zero to 800 in a sweep, and with the first entry to 0: but exp(800) times a
    # masked zero is NaN in all entries.
    first = jnp.arange(COUNT) == 0
    mixed = jnp.where(MASK, 1e-3, 0) @ jnp.exp(z)
    return jnp.where(first, 1.0, 800 * (1 - z[0])) + mixed


def test_an_overflow_inside_of_the_function_does_no_harm():
    start = jnp.zeros(COUNT)
    solution = solve_causal(_overflowing_inside, start, check=False)
    expected = solve_causal(
        _overflowing_inside, start, solver="sequential", check=False
    )
    assert jnp.isfinite(expected.value).all()
    assert_identical(solution.value, expected.value)
    assert solution.stats["num_steps"] <= COUNT + 1


@pytest.mark.parametrize("spots", [(0,), (3, 4, 11), (16,), tuple(range(17))])
def test_many_nan_take_no_more_sweeps(spots):
    # Entries that do not see them remain finite, and are ahead when they are accepted.
    noise = NOISE[:, 0].at[np.array(spots)].set(jnp.nan)
    starts = jnp.arange(COUNT) % 5 == 0

    def f(z):
        before = jnp.concatenate([jnp.zeros(1), z[:-1]])
        return jnp.where(starts, 0.0, jnp.sin(before)) + noise

    solution = solve_causal(f, jnp.ones(COUNT), throw=False)
    expected = solve_causal(f, jnp.ones(COUNT), solver="sequential", throw=False)
    assert_identical(solution.value, expected.value)
    assert solution.result == RESULTS.nonfinite
    assert solution.stats["num_steps"] <= COUNT + 1


def test_tokens_and_trees():
    table = jax.random.randint(jax.random.key(5), (COUNT, 7), 0, 7)
    bias = jax.random.normal(jax.random.key(6), (COUNT,))

    def f(z):
        token, score, flag = z
        shift = lambda x: jnp.concatenate([jnp.zeros(1, x.dtype), x[:-1]])
        new = table[jnp.arange(COUNT), shift(token)]
        new = new.astype(token.dtype)
        moved = 0.5j * shift(score) + lax.complex(0 * bias, bias) + new.astype(complex)
        return new, moved, jnp.where(shift(flag), moved.real > 0, new > 3)

    start = (jnp.zeros(COUNT, int), jnp.zeros(COUNT, complex), jnp.zeros(COUNT, bool))
    solution = solve_causal(f, start)
    expected = solve_causal(f, start, solver="sequential")
    for leaf, other in zip(solution.value, expected.value, strict=True):
        assert_identical(leaf, other)
    token = 0
    for i in range(COUNT):
        token = int(table[i, token])
        assert solution.value[0][i] == token


def test_leaves_that_are_reached_by_others_alone():
    # `angle` of the weight by way of `score`, and in another dtype.
    def f(weight, z):
        angle, score = z
        before = lambda x: jnp.concatenate([jnp.ones_like(x[:1]), x[:-1]])
        turned = lax.complex(jnp.zeros(COUNT), before(angle).astype(float))
        new = weight * before(score) * jnp.exp(turned)
        return jnp.sin(before(score).real).astype(angle.dtype), new

    start = (jnp.zeros(COUNT, jnp.float32), jnp.zeros(COUNT, complex))

    def loss(weight):
        value = solve_causal(ft.partial(f, weight), start).value
        return value[0].astype(float).sum() + (value[1] * (1 - 2j)).real.sum()

    weight = jnp.array(0.7)
    expected = (loss(weight + 1e-4) - loss(weight - 1e-4)) / 2e-4
    _, tangent = jax.jvp(loss, (weight,), (jnp.array(1.0),))
    for found in (jax.grad(loss)(weight), tangent):
        np.testing.assert_allclose(found, expected, 1e-2)
    np.testing.assert_allclose(jax.grad(loss)(weight), tangent, 1e-6)


def test_modes():
    f = ft.partial(network, WEIGHTS, NOISE)
    exact = solve_causal(f, jnp.zeros((COUNT, SIZE)))
    start = exact.value + 1e-9
    loose = solve_causal(f, start, mode="tolerance", rtol=1e-6, atol=1e-6)
    assert loose.result == RESULTS.successful
    assert loose.stats["num_steps"] == 1
    assert loose.stats["exact_prefix"] < COUNT == loose.stats["converged_prefix"]
    assert 0 < loose.stats["residual"] <= 1
    assert_close(loose.value, exact.value, 1e-8)
    for k in (1, 4):
        short = solve_causal(f, 0 * start, mode="budget", max_steps=k)
        assert short.result == RESULTS.max_steps_reached
        prefix = int(short.stats["exact_prefix"])
        assert k <= prefix < COUNT
        assert_identical(short.value[:prefix], exact.value[:prefix])
        assert short.stats["num_evals"] == k
        with pytest.raises(eqx.EquinoxRuntimeError, match="used up `max_steps`"):
            solve_causal(f, 0 * start, max_steps=k)
    enough = solve_causal(f, start, mode="budget", max_steps=COUNT + 1)
    assert enough.result == RESULTS.successful


@pytest.mark.parametrize("count", [0, 1])
def test_short_ones(count):
    solution = solve_causal(lambda z: 0 * z + 1, jnp.zeros((count, 3)))
    assert_identical(solution.value, jnp.ones((count, 3)))
    assert solution.result == RESULTS.successful
    assert solution.stats["exact_prefix"] == count


class _Wild(AbstractCausalSweep):
    """Proposes what it likes."""

    rtol: float
    atol: float
    key: jax.Array

    def init_memory(self, z):
        return self.key

    def propose(self, z, f, prefix, memory):
        key, now = jax.random.split(memory)
        noise = lambda x: 1e3 * jax.random.normal(now, x.shape, x.dtype)
        return jax.tree.map(noise, z), key


@given(st.integers(0, 10))
def test_the_answer_is_right_whatever_a_sweep_proposes(seed):
    expected = solved(WEIGHTS, NOISE, jnp.zeros((COUNT, SIZE)))
    solver = _Wild(1e-9, 1e-9, jax.random.key(seed))
    solution = solved(WEIGHTS, NOISE, jnp.zeros((COUNT, SIZE)), solver)
    assert_identical(solution.value, expected.value)
    assert solution.stats["num_steps"] == COUNT + 1


def test_a_tolerance_holds_for_what_is_returned():
    exact = solved(WEIGHTS, NOISE, jnp.zeros((COUNT, SIZE))).value
    solver = _Wild(1e-6, 1e-6, jax.random.key(0))
    solution = solved(WEIGHTS, NOISE, exact + 1e-9, solver, mode="tolerance")
    assert_close(solution.value, exact, 1e-8)


def test_as_many_sweeps_as_entries_are_enough():
    solver = _Wild(1e-9, 1e-9, jax.random.key(0))
    short = solved(WEIGHTS, NOISE, jnp.zeros((COUNT, SIZE)), solver, max_steps=COUNT)
    expected = solved(WEIGHTS, NOISE, jnp.zeros((COUNT, SIZE)))
    assert_identical(short.value, expected.value)
    assert short.result == RESULTS.successful


def test_the_finest_leaf_sets_the_tolerance():
    def f(z):
        coarse, fine = z
        before = jnp.concatenate([jnp.ones(1), fine[:-1]])
        return (coarse / 2 * 0 + 1).astype(coarse.dtype), 0.5 * before

    start = (jnp.ones(30, jnp.bfloat16), jnp.zeros(30))
    fine = solve_causal(f, start, mode="tolerance").value[1]
    assert_close(fine, 0.5 ** jnp.arange(1, 31.0), 1e-11)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype):
    weights, noise = WEIGHTS.astype(dtype), NOISE.astype(dtype)
    zeros = jnp.zeros_like(noise)
    for options in ({}, {"mode": "tolerance"}):
        solution = solved(weights, noise, zeros, **options)
        assert solution.value.dtype == dtype
        assert solution.result == RESULTS.successful
    expected = solved(weights, noise, zeros, "sequential")
    assert_identical(solved(weights, noise, zeros).value, expected.value)


def test_what_is_not_causal_is_seen():
    zeros = jnp.zeros(COUNT)
    with pytest.raises(ValueError, match="not causal: entries 0 .* mask and the shift"):
        solve_causal(jnp.cumsum, zeros)
    found = check_causal(lambda z: NOISE[:, 0].at[8].set(z[12]), zeros, num_cuts=COUNT)
    assert found is not None
    assert (found.verdict, found.entries, found.causal) == ("not causal", (8,), False)
    assert 8 <= found.cause <= 12
    # What the look does not get to see, the solve does.
    f = lambda z: jnp.sin(jnp.flip(z) + 1)
    for solution in (
        solve_causal(f, zeros, check=False, throw=False),
        jax.jit(lambda z: solve_causal(f, z, throw=False))(zeros),
    ):
        assert solution.result == RESULTS.not_causal
        assert "no sequential program" in solution.message()


def test_what_is_causal_to_rounding():
    kernel = jnp.fft.rfft(jnp.concatenate([jnp.zeros(1), NOISE[1:, 0]]), 2 * COUNT)

    def f(z):
        product = jnp.fft.rfft(z, 2 * COUNT) * kernel
        return jnp.tanh(jnp.fft.irfft(product, 2 * COUNT)[:COUNT]) + 1

    with pytest.raises(ValueError, match='mode="tolerance"'):
        solve_causal(f, jnp.zeros(COUNT))
    solution = solve_causal(f, jnp.zeros(COUNT), mode="tolerance")
    z = np.zeros(COUNT)
    for i in range(COUNT):
        z[i] = np.tanh(sum(NOISE[i - j, 0] * z[j] for j in range(i))) + 1
    assert_close(solution.value, jnp.asarray(z), 1e-9)


def test_randomness_is_seen():
    draw = np.random.default_rng(0)

    def f(z):
        shape = jax.ShapeDtypeStruct(z.shape, z.dtype)
        return jax.pure_callback(lambda: draw.standard_normal(z.shape), shape)

    with pytest.raises(ValueError, match="not deterministic.*Draw all noise before"):
        solve_causal(f, jnp.zeros(COUNT))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"mode": "fast"}, ValueError, '"exact", "tolerance" or "budget"'),
        ({"mode": "budget"}, ValueError, "needs `max_steps`"),
        ({"max_steps": -1}, ValueError, "at least 1"),
        ({"rtol": -1.0}, ValueError, "non-negative"),
        ({"solver": "newton"}, TypeError, "does not solve causal problems"),
        ({"solver": "jacobbi"}, LookupError, "jacobi"),
        ({"solver": Newton(1e-3, 1e-3), "rtol": 1.0}, ValueError, "has its own"),
        ({"solver": 3}, TypeError, "name of a registered rootfinder"),
    ],
)
def test_bad_options(options, error, match):
    with (
        pytest.raises(error, match=match),
        _unchecked(),
    ):
        solve_causal(lambda z: 0 * z, jnp.zeros(3), **options)


@pytest.mark.parametrize(
    ("f", "z0", "match"),
    [
        (lambda z: z[1:], jnp.zeros(3), "must return what it takes"),
        (lambda z: z > 0, jnp.zeros(3), "must return what it takes"),
        (lambda z: z, jnp.zeros(()), "is a scalar"),
        (lambda z: z, (jnp.zeros(3), jnp.zeros(4)), "same number of entries"),
        (lambda z: z, (), "no array"),
        (lambda z: z, jax.random.split(jax.random.key(0), 3), "must hold numbers"),
    ],
)
def test_bad_problems(f, z0, match):
    with pytest.raises((ValueError, TypeError), match=match), _unchecked():
        solve_causal(f, z0)


class _unchecked:
    """Without the checks of annotations, to see what users see."""

    def __enter__(self):
        jaxtyping.config.update("jaxtyping_disable", True)

    def __exit__(self, *error):
        jaxtyping.config.update("jaxtyping_disable", False)
