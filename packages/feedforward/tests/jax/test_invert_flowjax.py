"""`invert` beside the inverses of flowjax."""

import functools

import equinox as eqx
import flowjax.bijections as fb
import flowjax.distributions
import flowjax.flows
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parafix.core.jax import RESULTS
from parafix.feedforward.jax import invert


SIZE, CONDITION, SAMPLES = 10, 3, 4


@pytest.fixture(autouse=True)
def _promotion():
    # flowjax adds integers to floats, and scalars to vectors.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def masked(number, size=SIZE, cond=None):
    key = jax.random.key(number)
    affine = fb.Affine()
    part = fb.MaskedAutoregressive(
        key, transformer=affine, dim=size, cond_dim=cond, nn_width=16, nn_depth=1
    )
    # Larger weights, so that a solve takes more than a few sweeps.
    return jax.tree.map(lambda x: x * 1.5 if eqx.is_inexact_array(x) else x, part)


@functools.cache
def spline_flow():
    base = flowjax.distributions.Normal(jnp.zeros(SIZE))
    return flowjax.flows.masked_autoregressive_flow(
        jax.random.key(1),
        base_dist=base,
        flow_layers=2,
        cond_dim=CONDITION,
        transformer=fb.RationalQuadraticSpline(knots=5, interval=4),
        nn_width=16,
    )


@functools.cache
def chain():
    permutation = jax.random.permutation(jax.random.key(2), SIZE)
    return fb.Chain(
        [masked(3), fb.Permute(permutation), fb.Invert(fb.Invert(masked(4)))]
    )


def side_by_side():
    parts = eqx.filter_vmap(lambda i: masked(i, SIZE // 2))(jnp.arange(2))
    return fb.Reshape(fb.Vmap(parts, in_axes=eqx.if_array(0)), (SIZE,))


def forward_of_inverses():
    # The slow direction of a layer, in the forward direction of a scan.
    layers = eqx.filter_vmap(lambda i: fb.Invert(masked(i)))(jnp.arange(2))
    return fb.Invert(fb.Scan(layers))


# name -> (how to make it, whether it is conditional, transforms that are solved)
CASES = {
    "spline flow": (lambda: fb.Invert(spline_flow().bijection), True, 2),
    "chain": (chain, False, 2),
    "side by side": (side_by_side, False, 2),
    "forward of inverses": (forward_of_inverses, False, 2),
    "nothing autoregressive": (lambda: spline_flow().bijection, True, 0),
}


def drawn():
    y, c = jax.random.split(jax.random.key(7))
    return (
        jax.random.normal(y, (SAMPLES, SIZE)),
        jax.random.normal(c, (SAMPLES, CONDITION)),
    )


@pytest.mark.parametrize("name", CASES)
def test_the_inverse_of_flowjax(name):
    make, conditional, count = CASES[name]
    bijection = make()
    y, c = drawn()
    axes = (0, 0) if conditional else (0, None)
    c = c if conditional else None
    own = jax.jit(jax.vmap(bijection.inverse_and_log_det, axes))(y, c)
    ours = eqx.filter_vmap(lambda y, c: invert(bijection, y, c), in_axes=axes)(y, c)
    x, log_abs_det, solution = ours
    np.testing.assert_allclose(x, own[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_abs_det, own[1], rtol=1e-12, atol=1e-12)
    assert bool((solution.result == RESULTS.successful).all())
    each = solution.stats["num_steps_each"]
    assert each.shape == (SAMPLES, count)
    np.testing.assert_array_equal(each.sum(1), solution.stats["num_steps"])
    assert bool(((each > 1) & (each <= SIZE + 1)).all())
    calls = solution.stats["num_steps"] + count
    np.testing.assert_array_equal(solution.stats["num_evals"], calls)


@pytest.mark.parametrize("name", ["spline flow", "chain"])
def test_gradients_are_those_through_the_scan(name):
    make, conditional, _ = CASES[name]
    bijection = make()
    y, c = (x[0] for x in drawn())

    def loss(inverse):
        def of(arguments):
            bijection, y, c = arguments
            x, log_abs_det = inverse(bijection, y, c if conditional else None)
            return jnp.sin(x) @ jnp.linspace(0.5, 1.5, SIZE) + log_abs_det**2

        return eqx.filter_jit(eqx.filter_grad(of))((bijection, y, c))

    ours = loss(lambda b, y, c: invert(b, y, c)[:2])
    theirs = loss(lambda b, y, c: b.inverse_and_log_det(y, c))
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    assert any(bool(jnp.any(x != 0)) for x in jax.tree.leaves(theirs))
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_the_loop_itself_and_arrays_of_numpy():
    bijection = chain()
    y, _ = drawn()
    x, log_abs_det, _ = invert(bijection, np.asarray(y[0]))
    looped, again, solution = invert(bijection, y[0], solver="sequential")
    np.testing.assert_allclose(looped, x, rtol=1e-14)
    np.testing.assert_allclose(again, log_abs_det, rtol=1e-14)
    assert int(solution.stats["num_steps"]) == 2 * SIZE


def test_failures():
    bijection = chain()
    y = drawn()[0][0].at[3].set(jnp.nan)
    x, _, solution = invert(bijection, y, throw=False)
    # Of the transform that is inverted first.
    assert solution.result == RESULTS.nonfinite
    assert int(solution.position) == 3
    assert "position: 3" in solution.message()
    assert not bool(jnp.isfinite(x).all())
    with pytest.raises(Exception, match="returned NaN or infinity"):
        jax.block_until_ready(invert(bijection, y)[0])


def test_budget():
    y = drawn()[0][0]
    _, _, solution = invert(chain(), y, mode="budget", max_steps=2)
    assert solution.result == RESULTS.max_steps_reached
    assert solution.stats["num_steps_each"].tolist() == [2, 2]


def test_a_distribution():
    with pytest.raises(TypeError, match=r"Invert\(flow.bijection\)"):
        invert(spline_flow(), jnp.zeros(SIZE))
