"""Packed and padded sequences: as many separate runs, NaN in one of them included."""

import functools as ft

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax

from parafix.core.jax import (
    affine_scan,
    Chain,
    Custom,
    Diagonal,
    RESULTS,
    solve_chain,
)
from parafix.core.testing.jax import assert_close, assert_identical, lstm, tanh_cell
from parafix.deer.jax import DEER, ELK, scan


LENGTH = 12
RESETS = np.isin(np.arange(LENGTH), [4, 9])
# What runs by itself: forward, a segment starts at a reset; reversed, it ends there.
PARTS = {False: ((0, 4), (4, 9), (9, 12)), True: ((0, 5), (5, 10), (10, 12))}


def taken(tree, begin, end):
    return jax.tree.map(lambda x: x[begin:end], tree)


def separate(f, init, xs, reverse=False):
    """The last carry and the outputs of separate runs of `jax.lax.scan`."""
    parts = [
        lax.scan(f, init, taken(xs, begin, end), reverse=reverse)
        for begin, end in PARTS[reverse]
    ]
    ys = jax.tree.map(lambda *x: jnp.concatenate(x), *(ys for _, ys in parts))
    return parts[0 if reverse else -1][0], ys


def shorter(f, init, xs, count, reverse=False):
    """A run of the first `count` steps alone, with zeros for the other outputs."""
    carry, ys = lax.scan(f, init, taken(xs, 0, count), reverse=reverse)
    pad = lambda y: jnp.concatenate([y, jnp.zeros((LENGTH - count, *y.shape[1:]))])
    return carry, jax.tree.map(pad, ys)


def loss_of(out):
    carry, ys = out
    weights = jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)
    return sum(x.sum() for x in jax.tree.leaves(carry)) + (weights * ys**2).sum()


def gradients(run, problem, xs=None):
    def loss(params, init, xs):
        return loss_of(run(problem.bind(params), init, xs))

    xs = problem.xs if xs is None else xs
    return jax.jit(jax.grad(loss, (0, 1, 2)))(problem.params, problem.init, xs)


class TestResets:
    @pytest.mark.parametrize(
        ("make", "solver", "reverse", "window"),
        [
            pytest.param(lstm, "deer", False, None, marks=pytest.mark.slow),
            (tanh_cell, "deer", True, 5),
            pytest.param(tanh_cell, "jacobi", False, 5, marks=pytest.mark.slow),
            (lstm, "sequential", True, None),
        ],
    )
    def test_are_separate_runs(self, make, solver, reverse, window):
        problem = make(jax.random.key(1), LENGTH)
        f, init, xs = problem.bind(), problem.init, problem.xs
        options = {"resets": RESETS, "reverse": reverse, "return_solution": True}
        out, solution = scan(f, init, xs, solver=solver, window=window, **options)
        assert_close(out, separate(f, init, xs, reverse), 1e-9)
        assert solution.result == RESULTS.successful
        assert solution.stats["converged_prefix"] == LENGTH
        last = (
            taken(solution.value, 0, 1) if reverse else taken(solution.value, -1, None)
        )
        assert_identical(jax.tree.map(lambda x: x[0], last), out[0])

    @pytest.mark.parametrize(
        "reverse", [pytest.param(False, marks=pytest.mark.slow), True]
    )
    def test_derivatives_are_those_of_separate_runs(self, reverse):
        problem = tanh_cell(jax.random.key(2), LENGTH)
        packed = ft.partial(scan, solver="deer", resets=RESETS, reverse=reverse)
        apart = ft.partial(separate, reverse=reverse)
        actual = gradients(packed, problem)
        # That of the initial carry is a sum over three segments.
        assert_close(actual, gradients(apart, problem), 1e-9)

    @pytest.mark.slow
    def test_second_derivatives_and_forward_mode(self):
        problem = tanh_cell(jax.random.key(2), LENGTH)
        f, xs = problem.bind(), problem.xs
        actual, expected = (
            jax.jit(jax.hessian(lambda init, run=run: loss_of(run(f, init, xs))))(
                problem.init
            )
            for run in (ft.partial(scan, solver="deer", resets=RESETS), separate)
        )
        assert_close(actual, expected, 1e-9)

    @pytest.mark.slow
    def test_drivers_start_over_too(self):
        def f(carry, x):
            h, n, key = carry
            noise = jax.random.normal(jax.random.fold_in(key, n), h.shape)
            h = jnp.tanh(0.5 * h + x + 0.1 * noise)
            return (h, n + 1, jax.random.fold_in(key, 1)), (h, n)

        init = (jnp.zeros(2), jnp.array(0), jax.random.key(3))
        xs = jnp.linspace(-1, 1, 2 * LENGTH).reshape(LENGTH, 2)
        for reverse in (False, True):
            (carry, ys) = scan(
                f, init, xs, solver="deer", resets=RESETS, reverse=reverse
            )
            expected = separate(f, init, xs, reverse)
            assert_close((carry[:2], ys), (expected[0][:2], expected[1]), 1e-9)
            assert (carry[2] == expected[0][2]).all()

    def test_every_step_and_none(self):
        problem = tanh_cell(jax.random.key(4), LENGTH)
        f, init, xs = problem.bind(), problem.init, problem.xs
        ys = scan(f, init, xs, solver="deer", resets=np.ones(LENGTH, bool))[1]
        assert_close(ys, jax.vmap(lambda x: f(init, x)[1])(xs), 1e-12)
        none = scan(f, init, xs, solver="deer", resets=np.zeros(LENGTH, bool))
        assert_close(none, lax.scan(f, init, xs), 1e-12)
        nothing = taken(xs, 0, 0)
        carry, ys = scan(f, init, nothing, solver="deer", resets=np.zeros(0, bool))
        assert_identical(carry, init)
        assert ys.shape[0] == 0

    @settings(max_examples=10)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_wherever_they_are(self, seed):
        random = np.random.default_rng(seed)
        resets = random.random(LENGTH) < random.random()
        weight, init = random.normal(size=(2, 2)), random.normal(size=2)
        xs = random.normal(size=(LENGTH, 2))
        expected, z = [], init
        for reset, x in zip(resets, xs, strict=True):
            z = np.tanh(weight @ (init if reset else z) + x)
            expected.append(z)
        ys = _tanh_run(weight, init, xs, resets)
        np.testing.assert_allclose(ys, expected, atol=1e-9)

    @pytest.mark.slow
    def test_a_batch_packed_in_its_own_way(self):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        f, init, xs = problem.bind(), problem.init, problem.xs
        resets = np.stack([RESETS, np.zeros(LENGTH, bool)])
        run = lambda xs, resets: scan(f, init, xs, solver="deer", resets=resets)
        both = jnp.stack([xs, xs])
        carry, ys = jax.vmap(run)(both, resets)
        expected = [separate(f, init, xs), lax.scan(f, init, xs)]
        for i, (last, outputs) in enumerate(expected):
            assert_close((carry[i], ys[i]), (last, outputs), 1e-9)
        # A neighbour that turns bad changes no bit.
        other, again = jax.vmap(
            lambda xs, resets: scan(
                f, init, xs, solver="deer", resets=resets, throw=False
            )
        )(both.at[1, 6].set(jnp.nan), resets)
        assert_identical((other[0], again[0]), (carry[0], ys[0]))


@jax.jit
def _tanh_run(weight, init, xs, resets):
    def f(h, x):
        h = jnp.tanh(weight @ h + x)
        return h, h

    return scan(f, init, xs, solver="deer", resets=resets)[1]


class TestBadSegments:
    """A NaN gets as far as the next reset."""

    @pytest.mark.parametrize(
        ("solver", "reverse"),
        [
            ("deer", False),
            ("deer", True),
            pytest.param("jacobi", True, marks=pytest.mark.slow),
            pytest.param("quasi-deer", False, marks=pytest.mark.slow),
            ("elk", False),
            ("sequential", False),
        ],
    )
    def test_the_others_are_right(self, solver, reverse):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        f, init = problem.bind(), problem.init
        xs = problem.xs.at[6].set(jnp.nan)
        (_, ys), solution = scan(
            f,
            init,
            xs,
            solver=solver,
            resets=RESETS,
            reverse=reverse,
            window=7 if solver == "deer" and reverse else None,
            throw=False,
            return_solution=True,
        )
        _, expected = separate(f, init, xs, reverse)
        np.testing.assert_array_equal(np.isnan(ys), np.isnan(expected))
        np.testing.assert_allclose(ys, expected, atol=1e-9)
        assert np.isfinite(ys[0]).all()
        assert np.isfinite(ys[-1]).all()
        assert solution.result == RESULTS.nonfinite
        assert solution.position == 6
        assert "First bad position: 6" in solution.message()

    def test_two_of_them_and_an_infinity(self):
        def f(h, x):
            h = h * h + x
            return h, h

        xs = np.zeros(LENGTH)
        # Squares overflow in the segment from 4, not before and not after.
        xs[4], xs[10] = 1e200, np.nan
        _, ys = scan(f, jnp.array(0.1), xs, solver="deer", resets=RESETS, throw=False)
        _, expected = separate(f, jnp.array(0.1), jnp.asarray(xs))
        good = np.isfinite(expected)
        assert list(np.flatnonzero(~good)) == [5, 6, 7, 8, 10, 11]
        np.testing.assert_allclose(ys[good], expected[good], atol=1e-9)
        assert np.isnan(ys[~good]).all()
        with pytest.raises(Exception, match="First bad position: 5"):
            scan(f, jnp.array(0.1), xs, solver="deer", resets=RESETS)

    @pytest.mark.parametrize(
        "reverse", [pytest.param(False, marks=pytest.mark.slow), True]
    )
    def test_gradients_do_not_get_past_a_reset_either(self, reverse):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        xs = problem.xs.at[6].set(jnp.nan)
        packed = ft.partial(
            scan, solver="deer", resets=RESETS, reverse=reverse, throw=False
        )
        actual = gradients(packed, problem, xs)
        expected = gradients(ft.partial(separate, reverse=reverse), problem, xs)
        good = [0, 1, 2, 3, 10, 11]
        assert np.isfinite(expected[2][np.array(good)]).all()
        assert_close(actual[2][np.array(good)], expected[2][np.array(good)], 1e-9)
        # And what the bad segment contributes to is as bad as it is in the loop.
        for x, y in zip(
            jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
        ):
            assert (np.isnan(x) | ~np.isnan(y)).all()
        assert np.isnan(actual[1]).all()

    def test_a_filter_forgets_it(self):
        problem = tanh_cell(jax.random.key(1), 60)

        @jax.jit
        def sweeps(xs, radius):
            options = {"resets": np.arange(60) == 5, "throw": False}
            options["solver"] = ELK(1e-11, 1e-11, radius=radius)
            options["return_solution"] = True
            run = scan(problem.bind(), problem.init, xs, **options)
            return run[1].stats["num_steps"]

        for radius in (100.0, np.inf):
            bad = sweeps(problem.xs.at[2].set(jnp.nan), radius)
            assert bad <= sweeps(problem.xs, radius) < 20

    def test_what_runs_away_on_the_way_only_costs_sweeps(self):
        # Newton's iterates overflow; the states do not.
        def f(h, x):
            h = jnp.where(jnp.abs(h) > 1.5, -0.1 * h, h**5 - h**3 + x)
            return h, h

        xs = jnp.sin(jnp.arange(float(LENGTH)))
        guess = jnp.full(LENGTH, 1e180)
        out = scan(f, jnp.array(0.5), xs, solver="deer", resets=RESETS, guess=guess)
        assert_close(out, separate(f, jnp.array(0.5), xs), 1e-9)


class TestLengths:
    @pytest.mark.parametrize(
        ("make", "solver", "reverse", "window", "count"),
        [
            pytest.param(tanh_cell, "deer", False, None, 7, marks=pytest.mark.slow),
            (tanh_cell, "deer", True, 5, 7),
            pytest.param(lstm, "jacobi", False, 5, LENGTH, marks=pytest.mark.slow),
            (tanh_cell, "sequential", True, None, 7),
            pytest.param(lstm, "sequential", False, None, 7, marks=pytest.mark.slow),
            (tanh_cell, "deer", False, None, 0),
        ],
    )
    def test_are_shorter_runs(self, make, solver, reverse, window, count):
        problem = make(jax.random.key(1), LENGTH)
        f, init = problem.bind(), problem.init
        # Whatever the padding holds.
        xs = problem.xs.at[count:].set(jnp.nan)
        out, solution = scan(
            f,
            init,
            xs,
            solver=solver,
            reverse=reverse,
            window=window,
            lengths=count,
            return_solution=True,
        )
        expected = shorter(f, init, xs, count, reverse)
        assert_close(out, expected, 1e-9)
        assert not np.any(out[1][count:])
        assert solution.result == RESULTS.successful
        held = init if reverse else expected[0]
        for x, y in zip(
            jax.tree.leaves(solution.value), jax.tree.leaves(held), strict=True
        ):
            np.testing.assert_allclose(x[count:], np.tile(y, (LENGTH - count, 1)))

    @pytest.mark.parametrize(
        ("reverse", "solver"),
        [
            (True, "deer"),
            (False, "sequential"),
            pytest.param(False, "deer", marks=pytest.mark.slow),
            pytest.param(True, "sequential", marks=pytest.mark.slow),
        ],
    )
    def test_derivatives_are_those_of_shorter_runs(self, solver, reverse):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        xs = problem.xs.at[7:].set(jnp.nan)
        padded = ft.partial(scan, solver=solver, lengths=7, reverse=reverse)
        actual = gradients(padded, problem, xs)
        expected = gradients(
            lambda f, init, xs: shorter(f, init, xs, 7, reverse), problem, xs
        )
        assert_close(actual[:2], expected[:2], 1e-9)
        assert_close(actual[2][:7], expected[2][:7], 1e-9)
        assert not np.any(actual[2][7:])

    def test_one_for_each_sample_of_a_batch(self):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        f, init = problem.bind(), problem.init
        counts = jnp.array([0, 3, 7, LENGTH])
        batch = jnp.stack([problem.xs.at[n:].set(jnp.nan) for n in counts])

        @jax.jit
        def run(xs, counts):
            one = lambda xs, n: scan(f, init, xs, solver="deer", lengths=n)
            return jax.vmap(one)(xs, counts)

        carry, ys = run(batch, counts)
        for i, n in enumerate(counts):
            expected = shorter(f, init, batch[i], int(n))
            assert_close((carry[i], ys[i]), expected, 1e-9)
        with pytest.raises(Exception, match="`lengths` must be between 0 and 12"):
            jax.block_until_ready(run(batch, counts.at[1].set(LENGTH + 1)))

    def test_with_resets(self):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        f, init, xs = problem.bind(), problem.init, problem.xs
        options = {"resets": RESETS, "lengths": 8}
        deer = scan(f, init, xs, solver="deer", **options)
        assert_close(deer, scan(f, init, xs, solver="sequential", **options), 1e-9)
        assert_close(deer[1][4:8], lax.scan(f, init, xs[4:8])[1], 1e-9)
        assert_close(deer[0], lax.scan(f, init, xs[4:8])[0], 1e-9)


class TestAffineScan:
    @pytest.mark.parametrize("scan", ["sequential", "associative", "blocked", "auto"])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_starts_over(self, scan, reverse):
        random = np.random.default_rng(0)
        a = random.normal(size=(LENGTH, 2, 2))
        b, init = random.normal(size=(LENGTH, 2)), random.normal(size=2)
        b[6, 1] = np.nan
        run = ft.partial(affine_scan, reverse=reverse, scan=scan, resets=RESETS)
        expected, x = np.zeros((LENGTH, 2)), init
        for t in reversed(range(LENGTH)) if reverse else range(LENGTH):
            x = b[t] if RESETS[t] else a[t] @ x + b[t]
            expected[t] = x
        np.testing.assert_allclose(run(a, b, init), expected, atol=1e-12)
        good = np.isfinite(expected).all(1)
        assert 4 < good.sum() < LENGTH
        # Cotangents run the other way, and no further.
        gradient = jax.grad(lambda b: run(a, b, init)[~good].sum())(b)
        fine = 9 if reverse else 4
        assert not np.any(gradient[fine + 1 :] if reverse else gradient[:fine])

    def test_resets_that_do_not_fit(self):
        a = b = np.ones((5, 2))
        with pytest.raises(TypeError, match="`resets` must be booleans"):
            affine_scan(a, b, resets=np.zeros(5, int))
        with pytest.raises(ValueError, match=r"`resets` must have shape \(5,\)"):
            affine_scan(a, b, resets=np.zeros(4, bool))


def test_a_chain_with_an_origin_of_its_own():
    step = lambda z, x: 0.5 * z + x
    init, origin = jnp.array([1.0]), jnp.array([3.0])
    xs = jnp.zeros((4, 1))
    resets = jnp.array([False, False, True, False])

    @jax.jit
    def last(init, origin):
        problem = Chain(step, init, xs, 4, resets=resets, origin=origin)
        return solve_chain(problem, solver="deer", window=3).value[:, 0]

    np.testing.assert_allclose(last(init, origin), [0.5, 0.25, 1.5, 0.75])
    of_init, of_origin = jax.jit(jax.jacfwd(last, (0, 1)))(init, origin)
    np.testing.assert_allclose(of_init[:, 0], [0.5, 0.25, 0, 0])
    np.testing.assert_allclose(of_origin[:, 0], [0, 0, 0.5, 0.25])
    with pytest.raises(ValueError, match="`origin`"):
        _unchecked(lambda: Chain(step, init, xs, 4, origin=jnp.zeros(2)))


def test_a_structure_serves_as_well():
    step = lambda z, x: jnp.tanh(0.7 * z + x)
    f = lambda z, x: (step(z, x),) * 2
    xs = jnp.sin(jnp.arange(2.0 * LENGTH)).reshape(LENGTH, 2).at[6].set(jnp.nan)
    _, ys = scan(
        f,
        jnp.zeros(2),
        xs,
        solver=DEER(1e-12, 1e-12, chunk=5),
        structure=Diagonal(),
        resets=RESETS,
        throw=False,
    )
    np.testing.assert_allclose(ys, separate(f, jnp.zeros(2), xs)[1], atol=1e-9)


@pytest.mark.parametrize(("count", "reverse"), [(7, False), (7, True), (0, False)])
def test_a_jacobian_that_is_supplied_is_not_that_of_padding(count, reverse):
    f = lambda z, x: (jnp.tanh(0.7 * z + x),) * 2
    slope = lambda z, x: 0.7 * (1 - jnp.tanh(0.7 * z + x) ** 2)
    xs = jnp.sin(jnp.arange(2.0 * LENGTH)).reshape(LENGTH, 2)
    options = {"structure": Custom(slope, Diagonal()), "lengths": count}
    out = scan(f, jnp.zeros(2), xs, solver="deer", reverse=reverse, **options)
    assert_close(out, shorter(f, jnp.zeros(2), xs, count, reverse), 1e-9)


@pytest.mark.parametrize("solver", ["deer", "sequential"])
def test_padding_is_run_where_the_sample_is(solver):
    # From zero the root of the first input has no derivative; but of a reversed run
    # that input is the last.
    def loss(weight, run):
        f = lambda z, x: (jnp.sqrt(weight * z + x),) * 2
        return run(f, jnp.array(0.0), jnp.array([0.0, 1.0, 1.0]))[1].sum()

    padded = ft.partial(scan, solver=solver, lengths=2, reverse=True)
    alone = lambda f, init, xs: lax.scan(f, init, xs[:2], reverse=True)
    assert_close(*(jax.grad(loss)(1.0, run) for run in (padded, alone)), 1e-9)


def _unchecked(call):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return call()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("solver", ["deer", "sequential"])
class TestBadInput:
    def fails(self, error, match, solver, **options):
        f = lambda h, x: (jnp.tanh(h + x),) * 2
        with pytest.raises(error, match=match):
            scan(f, jnp.zeros(2), jnp.ones((5, 2)), solver=solver, **options)

    @pytest.mark.parametrize("shape", [(4,), (6,), (), (5, 1)])
    def test_resets_of_the_wrong_shape(self, solver, shape):
        match = r"`resets` must have shape \(5,\)"
        self.fails(ValueError, match, solver, resets=np.zeros(shape, bool))

    def test_resets_that_are_no_booleans(self, solver):
        for resets in (np.zeros(5), np.array([0, 1, 0, 0, 1])):
            self.fails(TypeError, "`resets` must be booleans", solver, resets=resets)

    @pytest.mark.parametrize("lengths", [-1, 6])
    def test_lengths_out_of_range(self, solver, lengths):
        match = f"`lengths` must be between 0 and 5, .* got {lengths}"
        self.fails(ValueError, match, solver, lengths=lengths)

    def test_lengths_that_are_none(self, solver):
        self.fails(TypeError, "`lengths` must be an integer", solver, lengths=2.0)
        self.fails(ValueError, "jax.vmap", solver, lengths=np.array([2, 3]))
