"""The sweeps: how many evaluations they take, options, what they are given."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import parafix.core
from parafix.core.jax import Jacobi, RESULTS
from parafix.core.testing.jax import assert_identical
from parafix.feedforward.jax import (
    GSJacobi,
    JacobiGS,
    solve_causal,
    TriangularAnderson,
)


def simulated(table, z0, moves):
    """How many evaluations are made, with plain loops over integers."""
    count, tokens = table.shape
    z, prefix, steps = list(z0), 0, 0
    while True:
        f = [table[i, z[i - 1] if i else 0] for i in range(count)]
        steps += 1
        apart = [i for i in range(prefix, count) if f[i] != z[i]]
        if not apart:
            return steps
        prefix = apart[0] + 1
        taken = [i < prefix or moves(i, prefix, steps - 1) for i in range(count)]
        z = [f[i] if taken[i] else z[i] for i in range(count)]


def in_turn(length):
    return lambda i, prefix, step: i % length == step % length


def sliding(window):
    return lambda i, prefix, step: i < prefix + window


def in_blocks(window):
    return lambda i, prefix, step: i < prefix // window * window + window


def counted(solver, tables, starts):
    """For each of several tables, in one program."""

    def one(table, z0):
        def f(z):
            before = jnp.concatenate([jnp.zeros_like(z[:1]), z[:-1]])
            return table[jnp.arange(len(z)), before]

        return solve_causal(f, z0, solver=solver)

    solution = jax.vmap(one)(jnp.asarray(tables), jnp.asarray(starts))
    for table, value in zip(tables.tolist(), solution.value.tolist(), strict=True):
        expected = [0]
        for row in table:
            expected.append(row[expected[-1]])
        assert value == expected[1:]
    return solution.stats["num_evals"].tolist()


def drawn(count, several=12):
    # Few tokens: then tables are often constant, and paths short.
    random = np.random.default_rng(count)
    tables = random.integers(0, 2, (several, count, 2))
    return tables, random.integers(0, 2, (several, count))


# Blocks that do not divide the entries, and more of them than there are.
@pytest.mark.parametrize("size", [None, 50])
def test_evaluations_are_those_of_the_method(size):
    tables, starts = drawn(17)
    known = size or 5
    for solver, moves in (
        (JacobiGS(0.0, 0.0, size), in_turn(-(-17 // known))),
        (GSJacobi(0.0, 0.0, size), sliding(known)),
        (GSJacobi(0.0, 0.0, size, sliding=False), in_blocks(known)),
    ):
        expected = [
            simulated(*each, moves) for each in zip(tables, starts, strict=True)
        ]
        assert counted(solver, tables, starts) == expected
        assert max(expected) <= 18
        if size == 50:
            assert counted(Jacobi(0.0, 0.0), tables, starts) == expected


def test_a_window_slides_for_every_sample_by_itself():
    # The chain of the first sample is cut everywhere, that of the second nowhere.
    gain, noise = jnp.array([0.0, 1.0]), jnp.linspace(0.1, 1, 20)

    def one(gain):
        def f(z):
            before = jnp.concatenate([jnp.zeros_like(z[:1]), z[:-1]])
            return jnp.sin(gain * before) + noise

        return solve_causal(f, jnp.zeros(20), solver=GSJacobi(0.0, 0.0, 4))

    # One entry final and four in the window, every time; and the one that confirms.
    assert jax.vmap(one)(gain).stats["num_steps"].tolist() == [5, 21]


def picard(dtype, count=128):
    """`z' = tanh(A z) - z` on a grid, every state from all before it."""
    random = np.random.default_rng(0)
    a = jnp.asarray(random.normal(size=(4, 4)), dtype)
    z0 = jnp.asarray(random.normal(size=(1, 4)), dtype)

    def f(z):
        slopes = jnp.cumsum(jnp.tanh(z @ a.T) - z, 0) * (5 / count)
        return z0 + jnp.concatenate([jnp.zeros_like(z[:1]), slopes[:-1]])

    return f, jnp.broadcast_to(z0, (count, 4))


@pytest.mark.parametrize(
    "dtype", [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.slow)]
)
def test_anderson_takes_fewer_sweeps(dtype):
    f, start = picard(dtype)
    tolerance = 1e-8 if dtype == jnp.float64 else 1e-5
    steps = {}
    for solver in (Jacobi, TriangularAnderson):
        solution = solve_causal(
            f,
            start,
            solver=solver(tolerance, tolerance),
            mode="tolerance",
            check=False,
        )
        assert solution.result == RESULTS.successful
        # At what is returned, whatever was evaluated on the way.
        z = solution.value
        residual = abs(f(z) - z) / (tolerance + tolerance * abs(z))
        assert residual.max() <= 1.001
        steps[solver] = int(solution.stats["num_steps"])
    assert steps[TriangularAnderson] <= 0.8 * steps[Jacobi], steps


def proposals(solver, images, prefix):
    """What is proposed after some evaluations, with the iterates drawn at random."""
    random = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype)
    memory = solver.init_memory(jax.tree.map(jnp.zeros_like, images[0]))
    propose = jax.jit(lambda *inputs: solver.propose(*inputs))
    for f in images:
        out, memory = propose(jax.tree.map(draw, f), f, prefix, memory)
    return out


def test_anderson_looks_back_only():
    random = np.random.default_rng(2)
    solver, prefix = TriangularAnderson(0.0, 0.0), jnp.array(2)

    def images():
        shapes = ((float, (9, 3)), (jnp.complex64, (9,)))
        return [jnp.asarray(random.normal(size=s), dtype) for dtype, s in shapes]

    first = [images() for _ in range(4)]
    # Entries from 6 on are others, and not all finite.
    second = [
        [jnp.concatenate([x[:6], y[6:]]) for x, y in zip(*pair, strict=True)]
        for pair in zip(first, [images() for _ in range(4)], strict=True)
    ]
    second[2][0] = second[2][0].at[7].set(jnp.inf)
    found, other = (proposals(solver, x, prefix) for x in (first, second))
    assert [x.dtype for x in found] == [jnp.float64, jnp.complex64]
    for x, y in zip(found, other, strict=True):
        assert_identical(x[:6], y[:6])
        assert (x != y).any()
    # And it does something, where the residual did not grow.
    assert any((x != y).any() for x, y in zip(found, first[-1], strict=True))


def test_anderson_takes_the_plain_step_where_its_own_is_not_finite():
    solver = TriangularAnderson(0.0, 0.0)
    huge = [[jnp.full((5, 2), x, jnp.float32)] for x in (3e38, 2.5e38, -2e38)]
    found = proposals(solver, huge, jnp.array(0))
    assert_identical(found[0], huge[-1][0])


@pytest.mark.slow
def test_half_precision():
    f, start = picard(jnp.float64, 16)
    g = lambda z: f(z.astype(float)).astype(z.dtype)
    start = start.astype(jnp.bfloat16)
    expected = solve_causal(g, start, solver="sequential").value
    for solver in (
        GSJacobi(0.0, 0.0),
        JacobiGS(0.0, 0.0),
        TriangularAnderson(0.1, 0.1),
    ):
        assert_identical(solve_causal(g, start, solver=solver).value, expected)


NAMES = {
    "gs-jacobi": GSJacobi,
    "jacobi-gs": JacobiGS,
    "triangular-anderson": TriangularAnderson,
}


@pytest.mark.parametrize("name", NAMES)
def test_registered_names(name):
    assert parafix.core.get("rootfinder", name, backend="jax") is NAMES[name]
    f, start = picard(jnp.float64, 16)
    solution = solve_causal(f, start, solver=name, rtol=1e-6)
    assert_identical(solution.value, solve_causal(f, start).value)


@pytest.mark.parametrize("count", [0, 1])
def test_short_ones(count):
    for solver in (
        GSJacobi(0.0, 0.0),
        JacobiGS(0.0, 0.0),
        TriangularAnderson(0.0, 0.0),
    ):
        solution = solve_causal(
            lambda z: 0 * z + 1, jnp.zeros((count, 3)), solver=solver
        )
        assert_identical(solution.value, jnp.ones((count, 3)))
        assert solution.stats["num_steps"] == 2 * count


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: JacobiGS(0.0, 0.0, blocks=0),
            ValueError,
            "`blocks` must be at least 1",
        ),
        (
            lambda: JacobiGS(0.0, 0.0, blocks=2.0),
            TypeError,
            "`blocks` must be an integer",
        ),
        (
            lambda: GSJacobi(0.0, 0.0, window=-1),
            ValueError,
            "`window` must be at least 1",
        ),
        (lambda: GSJacobi(-1.0, 0.0), ValueError, "`rtol` must be non-negative"),
        (
            lambda: TriangularAnderson(0.0, 0.0, 0),
            ValueError,
            "`history` must be at least",
        ),
        (
            lambda: TriangularAnderson(0.0, 0.0, ridge=-1.0),
            ValueError,
            "`ridge` must be",
        ),
    ],
)
def test_bad_options(make, error, match):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(error, match=match):
            make()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
