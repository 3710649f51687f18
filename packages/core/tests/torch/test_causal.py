"""Causal problems: every answer is that of accepting one entry after the other."""

import dataclasses

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from parafix.core.testing.torch import assert_close, assert_identical
from parafix.core.torch import (
    AbstractCausalSweep,
    check_causal,
    Newton,
    RESULTS,
    solve_causal,
)


SAMPLES, COUNT, SIZE = 3, 17, 2
MASK = torch.ones(COUNT, COUNT).tril(-1).bool()


def drawn(seed, *shape, dtype=torch.float64):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


WEIGHTS, NOISE = drawn(0, COUNT, COUNT), drawn(1, SAMPLES, COUNT, SIZE)
ZEROS = torch.zeros_like(NOISE)


def network(weights, noise, z):
    # Sums that do not depend on how many samples there are.
    masked = torch.where(MASK, weights, 0)
    return torch.tanh((masked[..., None] * z[..., None, :, :]).sum(-2)) + noise


def loop(weights, noise):
    """With slices, and so of another order of operations."""
    z = []
    for i in range(COUNT):
        before = torch.stack([torch.zeros_like(noise[:, 0]), *z])
        row = torch.cat([torch.zeros(1, dtype=weights.dtype), weights[i, :i]])
        z.append(torch.tanh(torch.einsum("j,jbn->bn", row, before)) + noise[:, i])
    return torch.stack(z, 1)


def solved(weights, noise, z0, solver="jacobi", **options):
    return solve_causal(
        lambda z: network(weights, noise, z), z0, solver=solver, **options
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_are_those_of_one_entry_after_the_other(dtype):
    weights, noise = WEIGHTS.to(dtype), NOISE.to(dtype)
    expected = solved(weights, noise, torch.zeros_like(noise), "sequential")
    for scale in (0.0, 1.0, 1e4):
        start = scale * drawn(2, *noise.shape, dtype=dtype)
        solution = solved(weights, noise, start)
        assert_identical(solution.value, expected.value)
        assert (solution.result == RESULTS.successful).all()
        assert (solution.stats["exact_prefix"] == COUNT).all()
        assert (solution.stats["residual"] == 0).all()
    if dtype == torch.float64:
        assert_close(expected.value, loop(weights, noise), 1e-12)
    # Alone as in the batch.
    alone = solved(weights, noise[1:2], start[1:2])
    assert_identical(alone.value, solution.value[1:2])


def by_sweeps(weights, noise):
    return solved(weights, noise, torch.zeros_like(noise)).value


def test_derivatives_are_those_of_the_loop():
    probe = torch.cos(torch.arange(COUNT * SIZE, dtype=torch.float64))
    probe = probe.reshape(COUNT, SIZE)
    v = drawn(3, COUNT, COUNT)

    def loss(run):
        return lambda weights: (probe * run(weights, NOISE) ** 2).sum()

    def gradient(run):
        weights = WEIGHTS.clone().requires_grad_()
        noise = NOISE.clone().requires_grad_()
        out = (probe * run(weights, noise) ** 2).sum()
        return torch.autograd.grad(out, (weights, noise))

    def second(run):
        weights = WEIGHTS.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(run)(weights), weights, create_graph=True)
        return torch.autograd.grad((g * v).sum(), weights)[0]

    for transform in (
        gradient,
        second,
        lambda run: torch.func.grad(loss(run))(WEIGHTS),
        lambda run: torch.func.jvp(loss(run), (WEIGHTS,), (v,))[1],
    ):
        assert_close(transform(by_sweeps), transform(loop), 1e-11)
    pairs = torch.stack([WEIGHTS, 0.1 * WEIGHTS])
    mapped = torch.func.vmap(torch.func.grad(loss(by_sweeps)))(pairs)
    for weights, found in zip(pairs, mapped, strict=True):
        assert_close(found, torch.func.grad(loss(loop))(weights), 1e-11)
    guess = torch.ones_like(NOISE, requires_grad=True)
    weights = WEIGHTS.clone().requires_grad_()
    solved(weights, NOISE, guess).value.sum().backward()
    assert guess.grad is None or not guess.grad.any()


@pytest.mark.parametrize("depth", [1, 3, COUNT])
def test_sweeps_are_the_depth_and_one_that_confirms(depth):
    # Every entry needs the one before it, but for `depth` of them the chain is cut.
    starts = (torch.arange(COUNT) % depth == 0)[:, None]

    def f(z):
        return torch.where(starts, 0.0, torch.sin(before(z))) + NOISE

    stats = solve_causal(f, torch.full_like(NOISE, 9.0)).stats
    assert (stats["num_steps"] == depth + 1).all()
    assert (stats["num_evals"] == depth + 1).all()


def before(z):
    return torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)


def test_an_easy_and_a_hard_sample_side_by_side():
    weights = torch.stack([0 * WEIGHTS, WEIGHTS, WEIGHTS])
    weights[2, 5, 3] = torch.nan
    weights.requires_grad_()
    solution = solved(weights, NOISE, ZEROS, throw=False)
    steps = solution.stats["num_steps"]
    assert steps[0] == 2
    assert steps[0] < steps[1] <= COUNT + 1
    assert (solution.result == RESULTS.nonfinite).tolist() == [False, False, True]
    # What the neighbours hold changes no bit.
    others = torch.stack([WEIGHTS.T, WEIGHTS, WEIGHTS])
    assert_identical(solved(others, NOISE, ZEROS).value[1], solution.value[1].detach())
    solution.value[:2].sum().backward()
    assert weights.grad is not None
    assert torch.isfinite(weights.grad[:2]).all()


def _with_nan(z):
    bad = (torch.arange(COUNT) == 9)[:, None]
    return torch.sin(before(z)) + torch.where(bad, torch.nan, NOISE)


def test_a_nan_is_where_the_sequential_program_has_it():
    solution = solve_causal(_with_nan, ZEROS, throw=False)
    expected = solve_causal(_with_nan, ZEROS, solver="sequential", throw=False)
    assert_identical(solution.value, expected.value)
    assert torch.isnan(solution.value[:, 9:]).all()
    assert (solution.stats["num_steps"] <= COUNT + 1).all()
    assert (solution.result == RESULTS.nonfinite).all()
    assert (expected.result == RESULTS.nonfinite).all()
    assert "First bad position: 9" in solution.message(1)
    with pytest.raises(RuntimeError, match="First bad position: 9"):
        solve_causal(_with_nan, ZEROS)


def test_an_overflow_ahead_does_no_harm():
    # A masked product is 0 * inf where an iterate overflows, also in finished entries.
    weights = 1e200 * MASK.double()
    weights[:, 3:] = 0

    def f(z):
        products = (weights * z[:, None]).sum(2)
        here = torch.arange(COUNT) < 3
        return torch.where(here, 0.0, torch.exp(-(products**2))) + 1

    start = torch.full((2, COUNT), 1e308, dtype=torch.float64)
    solution = solve_causal(f, start, check=False)
    expected = solve_causal(f, start, solver="sequential", check=False)
    assert_identical(solution.value, expected.value)
    start = torch.full_like(start, torch.inf)
    assert_identical(solve_causal(f, start).value, solution.value)


def _overflowing_inside(z):
    # From zero to 800 in a sweep, and with the first entry to 0: but exp(800) times a
    # masked zero is NaN in all entries.
    first = torch.arange(COUNT) == 0
    mixed = (torch.where(MASK, 1e-3, 0.0).double() * torch.exp(z)[:, None]).sum(2)
    return torch.where(first, 1.0, 800 * (1 - z[:, :1])) + mixed


def test_an_overflow_inside_of_the_function_does_no_harm():
    start = torch.zeros(2, COUNT, dtype=torch.float64)
    solution = solve_causal(_overflowing_inside, start, check=False)
    expected = solve_causal(
        _overflowing_inside, start, solver="sequential", check=False
    )
    assert torch.isfinite(expected.value).all()
    assert_identical(solution.value, expected.value)
    assert (solution.stats["num_steps"] <= COUNT + 1).all()


@pytest.mark.parametrize("spots", [(0,), (3, 4, 11), (16,), tuple(range(17))])
def test_many_nan_take_no_more_sweeps(spots):
    # Entries that do not see them remain finite, and are ahead when they are accepted.
    noise = NOISE[:, :, 0].clone()
    noise[0, list(spots)] = torch.nan
    starts = torch.arange(COUNT) % 5 == 0

    def f(z):
        return torch.where(starts, 0.0, torch.sin(before(z))) + noise

    ones = torch.ones_like(noise)
    solution = solve_causal(f, ones, throw=False)
    expected = solve_causal(f, ones, solver="sequential", throw=False)
    assert_identical(solution.value, expected.value)
    nonfinite = solution.result == RESULTS.nonfinite
    assert nonfinite.tolist() == [True, False, False]
    assert (solution.stats["num_steps"] <= COUNT + 1).all()
    assert (solution.stats["num_steps"][1:] == 6).all()


def test_tokens_and_trees():
    table = torch.as_tensor(np.random.default_rng(5).integers(0, 7, (COUNT, 7)))
    bias = drawn(6, COUNT)

    def f(z):
        token, score, flag = z
        new = table[torch.arange(COUNT), before(token)]
        moved = 0.5j * before(score) + 1j * bias + new
        return new, moved, torch.where(before(flag), moved.real > 0, new > 3)

    start = (
        torch.zeros(2, COUNT, dtype=torch.int64),
        torch.zeros(2, COUNT, dtype=torch.complex128),
        torch.zeros(2, COUNT, dtype=torch.bool),
    )
    solution = solve_causal(f, start)
    expected = solve_causal(f, start, solver="sequential")
    for leaf, other in zip(solution.value, expected.value, strict=True):
        assert_identical(leaf, other)
    token = 0
    for i in range(COUNT):
        token = int(table[i, token])
        assert solution.value[0][0, i] == token


def test_floats_beside_tokens_have_derivatives():
    start = (torch.zeros(2, COUNT, dtype=torch.int64), ZEROS[:2, :, 0])

    def run(weight):
        def f(z):
            token, score = z
            new = (before(score) > 0.5).long()
            return new, torch.sin(weight * before(score)) + 0.3 + 0.2 * before(token)

        return solve_causal(f, start).value[1].sum()

    weight = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(run(weight), weight)
    with torch.no_grad():
        expected = (run(weight + 1e-6) - run(weight - 1e-6)) / 2e-6
    assert_close(found, expected, 1e-7)


def test_modes():
    exact = solved(WEIGHTS, NOISE, ZEROS)
    start = exact.value + 1e-9
    loose = solved(WEIGHTS, NOISE, start, mode="tolerance", rtol=1e-6, atol=1e-6)
    assert (loose.result == RESULTS.successful).all()
    assert (loose.stats["num_steps"] == 1).all()
    assert (loose.stats["exact_prefix"] < COUNT).all()
    assert (loose.stats["converged_prefix"] == COUNT).all()
    assert (loose.stats["residual"] <= 1).all()
    assert_close(loose.value, exact.value, 1e-8)
    for k in (1, 4):
        short = solved(WEIGHTS, NOISE, ZEROS, mode="budget", max_steps=k)
        assert (short.result == RESULTS.max_steps_reached).all()
        prefix = int(short.stats["exact_prefix"].min())
        assert k <= prefix < COUNT
        assert_identical(short.value[:, :prefix], exact.value[:, :prefix])
        assert (short.stats["num_evals"] == k).all()
        with pytest.raises(RuntimeError, match="used up `max_steps`"):
            solved(WEIGHTS, NOISE, ZEROS, max_steps=k)
    enough = solved(WEIGHTS, NOISE, start, mode="budget", max_steps=COUNT + 1)
    assert (enough.result == RESULTS.successful).all()


@pytest.mark.parametrize("shape", [(2, 0, 3), (2, 1, 3), (0, 4, 3)])
def test_short_ones(shape):
    solution = solve_causal(lambda z: 0 * z + 1, torch.zeros(shape))
    assert_identical(solution.value, torch.ones(shape))
    assert (solution.result == RESULTS.successful).all()
    assert (solution.stats["exact_prefix"] == shape[1]).all()
    assert solution.stats["exact_prefix"].shape == shape[:1]


@dataclasses.dataclass(frozen=True)
class _Wild(AbstractCausalSweep):
    """Proposes what it likes."""

    seed: int = 0

    def init_memory(self, z):
        return self.seed

    def propose(self, z, f, prefix, memory):
        return [1e3 * drawn(memory, *x.shape) for x in z], memory + 1


@given(st.integers(0, 1000))
def test_the_answer_is_right_whatever_a_sweep_proposes(seed):
    expected = solved(WEIGHTS, NOISE, ZEROS)
    solution = solved(WEIGHTS, NOISE, ZEROS, _Wild(1e-9, 1e-9, seed))
    assert_identical(solution.value, expected.value)
    assert (solution.stats["num_steps"] == COUNT + 1).all()


def test_a_tolerance_holds_for_what_is_returned():
    exact = solved(WEIGHTS, NOISE, ZEROS).value
    solver = _Wild(1e-6, 1e-6)
    solution = solved(WEIGHTS, NOISE, exact + 1e-9, solver, mode="tolerance")
    assert_close(solution.value, exact, 1e-8)


def test_as_many_sweeps_as_entries_are_enough():
    short = solved(WEIGHTS, NOISE, ZEROS, _Wild(1e-9, 1e-9), max_steps=COUNT)
    assert_identical(short.value, solved(WEIGHTS, NOISE, ZEROS).value)
    assert (short.result == RESULTS.successful).all()


def test_the_finest_leaf_sets_the_tolerance():
    def f(z):
        coarse, fine = z
        shifted = torch.cat([torch.ones_like(fine[:, :1]), fine[:, :-1]], 1)
        return 0 * coarse + 1, 0.5 * shifted

    start = (torch.ones(1, 30, dtype=torch.bfloat16), torch.zeros(1, 30).double())
    fine = solve_causal(f, start, mode="tolerance").value[1]
    expected = 0.5 ** torch.arange(1, 31, dtype=torch.float64)
    assert_close(fine[0], expected, 1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    weights, noise = WEIGHTS.to(dtype), NOISE.to(dtype)
    zeros = torch.zeros_like(noise)
    for options in ({}, {"mode": "tolerance"}):
        solution = solved(weights, noise, zeros, **options)
        assert solution.value.dtype == dtype
        assert (solution.result == RESULTS.successful).all()
    expected = solved(weights, noise, zeros, "sequential")
    assert_identical(solved(weights, noise, zeros).value, expected.value)


def test_what_is_not_causal_is_seen():
    zeros = torch.zeros(2, COUNT)
    with pytest.raises(ValueError, match="not causal: entries 0 .* mask and the shift"):
        solve_causal(lambda z: z.cumsum(1), zeros)

    def peeks(z):
        out = NOISE[:2, :, 0].clone()
        out[:, 8] = z[:, 12]
        return out

    found = check_causal(peeks, ZEROS[:2, :, 0], num_cuts=COUNT)
    assert found is not None
    assert (found.verdict, found.entries, found.causal) == ("not causal", (8,), False)
    assert found.cause is not None
    assert 8 <= found.cause <= 12
    # What the look does not get to see, the solve does.
    f = lambda z: torch.sin(z.flip(1) + 1)
    solution = solve_causal(f, zeros, check=False, throw=False)
    assert (solution.result == RESULTS.not_causal).all()
    assert "no sequential program" in solution.message(0)


def test_what_is_causal_to_rounding():
    kernel = NOISE[0, :, 0].clone()
    kernel[0] = 0

    def f(z):
        product = torch.fft.rfft(z, 2 * COUNT) * torch.fft.rfft(kernel, 2 * COUNT)
        return torch.tanh(torch.fft.irfft(product, 2 * COUNT)[:, :COUNT]) + 1

    zeros = torch.zeros(2, COUNT, dtype=torch.float64)
    with pytest.raises(ValueError, match='mode="tolerance"'):
        solve_causal(f, zeros)
    solution = solve_causal(f, zeros, mode="tolerance")
    z = np.zeros(COUNT)
    for i in range(COUNT):
        z[i] = np.tanh(sum(kernel[i - j].item() * z[j] for j in range(i))) + 1
    assert_close(solution.value[0], torch.as_tensor(z), 1e-9)


def test_randomness_is_seen():
    with pytest.raises(ValueError, match="not deterministic.*Draw all noise before"):
        solve_causal(torch.nn.Dropout(0.5), torch.ones(2, COUNT))


class _unchecked:
    """Without the checks of annotations, to see what users see."""

    def __enter__(self):
        jaxtyping.config.update("jaxtyping_disable", True)

    def __exit__(self, *error):
        jaxtyping.config.update("jaxtyping_disable", False)


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
    with pytest.raises(error, match=match), _unchecked():
        solve_causal(lambda z: 0 * z, torch.zeros(1, 3), **options)


@pytest.mark.parametrize(
    ("f", "z0", "match"),
    [
        (lambda z: z[:, 1:], torch.zeros(1, 3), "must return what it takes"),
        (lambda z: z > 0, torch.zeros(1, 3), "must return what it takes"),
        (lambda z: z, torch.zeros(3), r"One sample is `z0\[None\]`"),
        (lambda z: z, (torch.zeros(1, 3), torch.zeros(1, 4)), "same number"),
        (lambda z: z, (), "tensor or a tuple"),
        (lambda z: z, [1.0], "tensor or a tuple"),
    ],
)
def test_bad_problems(f, z0, match):
    with pytest.raises((ValueError, TypeError), match=match), _unchecked():
        solve_causal(f, z0)
