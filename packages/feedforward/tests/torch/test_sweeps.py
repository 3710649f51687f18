"""The sweeps: how many evaluations they take, options, what they are given."""

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import parafix.core
from parafix.core.testing.torch import assert_identical
from parafix.core.torch import Jacobi, RESULTS
from parafix.feedforward.torch import (
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


def counted(solver, table, z0):
    table = torch.as_tensor(table)

    def f(z):
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
        return table[torch.arange(z.shape[1]), before]

    solution = solve_causal(f, torch.as_tensor(z0)[None], solver=solver, check=False)
    expected = [0]
    for row in table.tolist():
        expected.append(row[expected[-1]])
    assert solution.value[0].tolist() == expected[1:]
    return int(solution.stats["num_evals"][0])


@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 4), st.integers(0, 2**31))
def test_evaluations_are_those_of_the_method(count, size, tokens, seed):
    # Few tokens: then tables are often constant, and paths short.
    random = np.random.default_rng(seed)
    table = random.integers(0, tokens, (count, tokens))
    z0 = random.integers(0, tokens, count)
    if count == 0:
        assert counted(GSJacobi(0.0, 0.0, size), table, z0) == 0
        return
    length = -(-count // size)
    for solver, moves in (
        (JacobiGS(0.0, 0.0, size), in_turn(length)),
        (GSJacobi(0.0, 0.0, size), sliding(size)),
        (GSJacobi(0.0, 0.0, size, sliding=False), in_blocks(size)),
    ):
        steps = counted(solver, table, z0)
        assert steps == simulated(table, z0, moves)
        assert steps <= count + 1
    if size >= count:
        jacobi = counted(Jacobi(0.0, 0.0), table, z0)
        assert counted(JacobiGS(0.0, 0.0, size), table, z0) == jacobi
        assert counted(GSJacobi(0.0, 0.0, size), table, z0) == jacobi
        assert counted(GSJacobi(0.0, 0.0, size, sliding=False), table, z0) == jacobi


def test_default_blocks():
    table = np.random.default_rng(0).integers(0, 3, (17, 3))
    for default, five in (
        (JacobiGS(0.0, 0.0), JacobiGS(0.0, 0.0, 5)),
        (GSJacobi(0.0, 0.0), GSJacobi(0.0, 0.0, 5)),
    ):
        z0 = np.zeros(17, int)
        assert counted(default, table, z0) == counted(five, table, z0)


def test_a_window_slides_for_every_sample_by_itself():
    # The chain of the first sample is cut everywhere, that of the second nowhere.
    gain = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None]
    noise = torch.linspace(0.1, 1, 20, dtype=torch.float64).expand(2, 20)

    def f(gain, noise):
        def image(z):
            before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
            return torch.sin(gain * before) + noise

        return image

    zeros = torch.zeros(2, 20, dtype=torch.float64)
    together = solve_causal(f(gain, noise), zeros, solver=GSJacobi(0.0, 0.0, 4))
    steps = together.stats["num_steps"]
    # One entry final and four in the window, every time; and the one that confirms.
    assert steps.tolist() == [5, 21]
    for i in range(2):
        alone = solve_causal(
            f(gain[i : i + 1], noise[:1]), zeros[:1], solver=GSJacobi(0.0, 0.0, 4)
        )
        assert_identical(alone.value[0], together.value[i])
        assert alone.stats["num_steps"][0] == steps[i]


def picard(dtype, count=128):
    """`z' = tanh(A z) - z` on a grid, every state from all before it."""
    random = np.random.default_rng(0)
    a = torch.as_tensor(random.normal(size=(4, 4)), dtype=dtype)
    z0 = torch.as_tensor(random.normal(size=4), dtype=dtype)

    def f(z):
        slopes = (torch.tanh(z @ a.T) - z).cumsum(1) * (5 / count)
        return z0 + torch.cat([torch.zeros_like(z[:, :1]), slopes[:, :-1]], 1)

    return f, z0.expand(1, count, 4).clone()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_anderson_takes_fewer_sweeps(dtype):
    f, start = picard(dtype)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-5
    steps = {}
    for solver in (Jacobi, TriangularAnderson):
        solution = solve_causal(
            f,
            start,
            solver=solver(tolerance, tolerance),
            mode="tolerance",
            check=False,
        )
        assert (solution.result == RESULTS.successful).all()
        # At what is returned, whatever was evaluated on the way.
        z = solution.value
        residual = abs(f(z) - z) / (tolerance + tolerance * abs(z))
        assert residual.max() <= 1.001
        steps[solver] = int(solution.stats["num_steps"][0])
    assert steps[TriangularAnderson] <= 0.8 * steps[Jacobi], steps


def proposals(solver, images, prefix):
    """What is proposed after some evaluations, with the iterates drawn at random."""
    random = np.random.default_rng(1)
    draw = lambda x: torch.as_tensor(random.normal(size=x.shape)).to(x.dtype)
    memory = solver.init_memory(tuple(torch.zeros_like(x) for x in images[0]))
    for f in images:
        z = tuple(map(draw, f))
        out, memory = solver.propose(z, f, prefix, memory)
    return out


def test_anderson_looks_back_only():
    random = np.random.default_rng(2)
    solver, prefix = TriangularAnderson(0.0, 0.0), torch.tensor([2, 5])

    def images():
        shapes = ((torch.float64, (2, 9, 3)), (torch.complex64, (2, 9)))
        return tuple(
            torch.as_tensor(random.normal(size=shape)).to(dtype)
            for dtype, shape in shapes
        )

    first = [images() for _ in range(4)]
    # Entries from 6 on are others, and not all finite.
    second = [
        tuple(torch.cat([x[:, :6], y[:, 6:]], 1) for x, y in zip(*pair, strict=True))
        for pair in zip(first, [images() for _ in range(4)], strict=True)
    ]
    second[2][0][:, 7] = torch.inf
    found, other = (proposals(solver, x, prefix) for x in (first, second))
    assert [x.dtype for x in found] == [torch.float64, torch.complex64]
    for x, y in zip(found, other, strict=True):
        assert_identical(x[:, :6], y[:, :6])
        assert not torch.equal(x, y)
    # And it does something, where the residual did not grow.
    assert any(not torch.equal(x, y) for x, y in zip(found, first[-1], strict=True))


def test_anderson_takes_the_plain_step_where_its_own_is_not_finite():
    solver = TriangularAnderson(0.0, 0.0)
    huge = [(torch.full((1, 5, 2), x),) for x in (3e38, 2.5e38, -2e38)]
    found = proposals(solver, huge, torch.zeros(1, dtype=torch.int64))
    assert_identical(found[0], huge[-1][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    f, start = picard(torch.float64, 16)
    g = lambda z: f(z.double()).to(dtype)
    expected = solve_causal(g, start.to(dtype), solver="sequential").value
    for solver in (
        GSJacobi(0.0, 0.0),
        JacobiGS(0.0, 0.0),
        TriangularAnderson(1e-2, 1e-2),
    ):
        assert_identical(
            solve_causal(g, start.to(dtype), solver=solver).value, expected
        )


NAMES = {
    "gs-jacobi": GSJacobi,
    "jacobi-gs": JacobiGS,
    "triangular-anderson": TriangularAnderson,
}


@pytest.mark.parametrize("name", NAMES)
def test_registered_names(name):
    assert parafix.core.get("rootfinder", name, backend="torch") is NAMES[name]
    f, start = picard(torch.float64, 16)
    solution = solve_causal(f, start, solver=name, rtol=1e-6)
    assert_identical(solution.value, solve_causal(f, start).value)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_short_ones(count):
    for solver in (
        GSJacobi(0.0, 0.0),
        JacobiGS(0.0, 0.0),
        TriangularAnderson(0.0, 0.0),
    ):
        solution = solve_causal(
            lambda z: 0 * z + 1, torch.zeros(2, count, 3), solver=solver
        )
        assert_identical(solution.value, torch.ones(2, count, 3))
        assert (solution.stats["num_steps"] == min(2, count * 2)).all()


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
