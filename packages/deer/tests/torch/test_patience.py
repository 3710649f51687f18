"""Sweeps are given up where they will not pay, and a loop goes on."""

import pytest
import torch

from parafix.core.testing.torch import gru, logistic, reference_scan
from parafix.core.torch import RESULTS
from parafix.deer.torch import choose, scan


LENGTH, PATIENCE = 200, 10
SAFE = {
    "solver": "deer",
    "fallback": "sequential",
    "patience": PATIENCE,
    "throw": False,
    "return_solution": True,
}
DOUBLE = torch.float64


def assert_near(actual, expected, tolerance=1e-11):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def gain(*factors, length=LENGTH, size=8):
    """Networks of tanh units, whose iterates saturate if the gain is large."""
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(size, size, generator=draw, dtype=DOUBLE) / size**0.5
    xs = 0.1 * torch.randn(length, 1, size, generator=draw, dtype=DOUBLE)
    factor = torch.tensor(factors, dtype=DOUBLE)[:, None]

    def f(carry, x):
        # A factor for each sample, which is a part of its state.
        h, factor = carry
        h = torch.tanh(factor * (h @ W.T) + x)
        return (h, factor), h

    init = (torch.full((len(factors), size), 0.1, dtype=DOUBLE), factor)
    return f, init, xs.expand(-1, len(factors), -1)


def lorenz(z, _):
    x, y, w = z.unbind(-1)
    slope = torch.stack([10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w], -1)
    z = z + 0.01 * slope
    return z, z


CHAOTIC = {
    "logistic": (logistic, torch.tensor([0.3], dtype=DOUBLE), None),
    "lorenz": (lorenz, torch.ones(1, 3, dtype=DOUBLE), None),
    "gain 2": gain(2.0),
}


@pytest.mark.parametrize("name", CHAOTIC)
def test_errors_that_grow_end_the_sweeps(name):
    f, init, xs = CHAOTIC[name]
    out, solution = scan(f, init, xs, LENGTH, **SAFE)
    assert_near(out, reference_scan(f, init, xs, LENGTH)[:2])
    stats = solution.stats
    assert (solution.result == RESULTS.successful).all()
    assert (stats["num_steps"] == PATIENCE).all()
    assert (stats["sequential_from"] < LENGTH // 4).all()


def test_auto_has_it():
    f, init, xs = CHAOTIC["lorenz"]
    length = 1000
    assert choose(length, 3, "cpu").solver == "deer"
    out, solution = scan(f, init, xs, length, return_solution=True)
    assert_near(out, reference_scan(f, init, xs, length)[:2], 0)
    assert solution.result == RESULTS.successful
    assert solution.stats["num_steps"] == 10


def test_contracting_chains_are_looked_at_and_left_alone():
    problem = gru(2, LENGTH)
    (out, solution), (plain, expected) = (
        scan(problem.bind(), problem.init, problem.xs, **{**SAFE, "patience": patience})
        for patience in (4, None)
    )
    assert_near(out, plain, 0)
    for name in ("num_steps", "num_evals", "sequential_from", "residual"):
        assert_near(solution.stats[name], expected.stats[name], 0)
    assert (solution.stats["num_steps"] > 4).all()
    assert (solution.stats["sequential_from"] == LENGTH).all()


def test_each_sample_by_itself():
    (_, ys), solution = scan(*gain(0.5, 2.0), **SAFE)
    starts = solution.stats["sequential_from"]
    assert (solution.result == RESULTS.successful).all()
    assert starts[0] == LENGTH
    assert starts[1] < LENGTH
    assert solution.stats["num_steps"][1] == PATIENCE
    # The other is not there to change a bit of it.
    (_, alone), calm = scan(*gain(0.5, 0.4), **SAFE)
    assert_near(ys[:, 0], alone[:, 0], 0)
    assert solution.stats["num_steps"][0] == calm.stats["num_steps"][0]


def test_gradients_are_those_of_the_loop():
    f, (h, factor), xs = gain(2.0)
    h = h.clone().requires_grad_()
    options = {**SAFE, "return_solution": False}
    found = [
        torch.autograd.grad((run[1] ** 2).sum(), h)[0]
        for run in (
            scan(f, (h, factor), xs, **options),
            reference_scan(f, (h, factor), xs),
        )
    ]
    assert_near(*found, 1e-9)


def test_without_a_fallback_it_is_an_error():
    f, init, xs = gain(0.5, length=5)
    for solver in ("deer", "sequential"):
        with pytest.raises(ValueError, match="`patience`.*fallback"):
            scan(f, init, xs, solver=solver, patience=3)
    with pytest.raises(ValueError, match="`patience` must be at least 1"):
        scan(f, init, xs, solver="deer", fallback="sequential", patience=0)
    scan(f, init, xs, patience=3)
