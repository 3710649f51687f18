"""Packed and padded sequences: as many separate runs, NaN in one of them included."""

import jaxtyping
import numpy as np
import pytest
import torch

from parafix.core.torch import RESULTS
from parafix.deer.torch import scan


LENGTH, SAMPLES, SIZE = 12, 3, 2
RESETS = torch.zeros(LENGTH, SAMPLES, dtype=torch.bool)
RESETS[4], RESETS[9, [0, 2]], RESETS[6, 2] = True, True, True
COUNTS = torch.tensor([0, 5, LENGTH])


def problem():
    """A step of two leaves, and the tensors that want gradients."""
    made = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=made, dtype=torch.float64)
    weight = (0.6 * draw(SIZE, SIZE)).requires_grad_()
    init = (draw(SAMPLES, SIZE).requires_grad_(), draw(SAMPLES, 1).requires_grad_())
    xs = draw(LENGTH, SAMPLES, SIZE).requires_grad_()

    def f(carry, x):
        h, c = carry
        h = torch.tanh(h @ weight.T + 0.3 * c + x)
        c = torch.complex(0.5 * c, 0.1 * h[:, :1]).abs()
        return (h, c), 2 * h

    return f, weight, init, xs


def loop(f, init, xs, resets=None, counts=None, reverse=False):
    carry, ys = init, [None] * LENGTH
    for t in reversed(range(LENGTH)) if reverse else range(LENGTH):
        before = carry
        if resets is not None:
            reset = resets[t].expand(SAMPLES)[:, None]
            pairs = zip(init, carry, strict=True)
            before = tuple(torch.where(reset, x, y) for x, y in pairs)
        new, y = f(before, xs[t])
        if counts is not None:
            valid = (t < counts)[:, None]
            pairs = zip(new, carry, strict=True)
            new = tuple(torch.where(valid, x, y) for x, y in pairs)
            y = torch.where(valid, y, 0)
        carry, ys[t] = new, y
    return carry, torch.stack(ys)


def gradients(out, *tensors):
    (h, c), ys = out
    weights = torch.cos(torch.arange(ys.numel()).double()).reshape(ys.shape)
    return torch.autograd.grad(h.sum() + c.sum() + (weights * ys**2).sum(), tensors)


def assert_near(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("solver", "window"),
    [("deer", None), ("deer", 5), ("jacobi", 5), ("sequential", 1)],
)
class TestSegments:
    def test_are_separate_runs(self, solver, window, reverse):
        f, weight, init, xs = problem()
        for options in (
            {"resets": RESETS},
            {"lengths": COUNTS},
            {"resets": RESETS[:, 0], "lengths": COUNTS},
        ):
            out, solution = scan(
                f,
                init,
                xs,
                reverse=reverse,
                solver=solver,
                window=window,
                return_solution=True,
                **options,
            )
            resets, counts = options.get("resets"), options.get("lengths")
            if resets is not None and resets.ndim == 1:
                resets = resets[:, None]
            expected = loop(f, init, xs, resets, counts, reverse)
            assert_near(out, expected)
            given = (weight, *init, xs)
            assert_near(gradients(out, *given), gradients(expected, *given))
            assert (solution.result == RESULTS.successful).all()
            last = 0 if reverse else -1
            assert_near(tuple(x[last] for x in solution.value), out[0], 0)

    def test_padding_may_hold_anything(self, solver, window, reverse):
        f, weight, init, xs = problem()
        bad = torch.where((torch.arange(LENGTH)[:, None] < COUNTS)[..., None], xs, 0)
        clean = loop(f, init, bad, None, COUNTS, reverse)
        padded = xs.detach().clone()
        padded[torch.arange(LENGTH)[:, None] >= COUNTS] = torch.nan
        options = {"solver": solver, "window": window, "reverse": reverse}
        out = scan(f, init, padded, lengths=COUNTS, **options)
        assert_near(out, clean)
        assert_near(gradients(out, weight, *init), gradients(clean, weight, *init))
        assert not out[1][:, 0].any()


class TestBadSegments:
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("solver", ["deer", "jacobi", "sequential"])
    def test_the_others_are_right(self, solver, reverse):
        f, weight, init, xs = problem()
        with torch.no_grad():
            xs[1, 0], xs[6, 0], xs[5, 1] = torch.nan, torch.nan, torch.nan
        out, solution = scan(
            f,
            init,
            xs,
            resets=RESETS,
            solver=solver,
            reverse=reverse,
            throw=False,
            return_solution=True,
        )
        expected = loop(f, init, xs, RESETS, reverse=reverse)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-9, equal_nan=True)
        assert solution.result.tolist() == [RESULTS.nonfinite, RESULTS.nonfinite, 0]
        assert solution.position[:2].tolist() == ([6, 5] if reverse else [1, 5])
        prefix = [5, 6] if reverse else [1, 5]
        assert solution.stats["converged_prefix"].tolist() == [*prefix, LENGTH]
        # Gradients: right wherever those of the loop are finite.
        actual = torch.autograd.grad((out[1] ** 2).sum(), (weight, *init, xs))
        wanted = torch.autograd.grad((expected[1] ** 2).sum(), (weight, *init, xs))
        for x, y in zip(actual, wanted, strict=True):
            fine = torch.isfinite(y)
            assert_near(x[fine], y[fine])
        assert torch.isfinite(wanted[3][:, 2]).all()
        assert torch.isfinite(wanted[3]).all(-1).sum() > LENGTH
        # What the bad segments contribute to is never a number.
        assert torch.isnan(actual[0]).all()
        for x, y in zip(actual, wanted, strict=True):
            assert torch.isnan(x[torch.isnan(y)]).all()
        assert torch.isnan(actual[3][6, 0]).all()

    def test_raises_where_a_failure_is_to_raise(self):
        f, _, init, xs = problem()
        with torch.no_grad():
            xs[6, 0] = torch.nan
        with pytest.raises(RuntimeError, match="First bad position: 6"):
            scan(f, init, xs, resets=RESETS, solver="deer")

    def test_counters_count_on(self):
        def f(carry, x):
            h, n = carry
            h = torch.tanh(0.5 * h + x)
            return (h, n + 1), n

        init = torch.zeros(1, 1).double(), torch.zeros(1, dtype=torch.long)
        xs = torch.ones(8, 1, 1).double()
        xs[2] = torch.nan
        options = {"resets": torch.arange(8) == 5, "throw": False}
        (_, ys), solution = scan(
            f, init, xs, solver="deer", return_solution=True, **options
        )
        assert ys[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
        assert solution.value[1][:, 0].tolist() == [1, 2, 3, 4, 5, 1, 2, 3]

    def test_padding_has_no_resets(self):
        xs = torch.ones(6, 1, 1).double()
        xs[2], xs[3:] = torch.nan, 5.0
        resets = torch.tensor([0, 0, 1, 0, 1, 0], dtype=torch.bool)
        found = []
        for solver in ("deer", "sequential"):
            xs_ = xs.clone().requires_grad_()
            (carry, ys), solution = scan(
                lambda h, x: (torch.tanh(0.5 * h + x),) * 2,
                torch.zeros(1, 1).double(),
                xs_,
                resets=resets,
                lengths=torch.tensor([3]),
                solver=solver,
                throw=False,
                return_solution=True,
            )
            (gradient,) = torch.autograd.grad(ys[:2].sum() + 0 * ys.sum(), xs_)
            found.append((carry, ys, solution.value, gradient))
        torch.testing.assert_close(*found, rtol=0, atol=1e-9, equal_nan=True)
        carry, _, _, gradient = found[0]
        assert torch.isnan(carry).all()
        # That of the sequence before is a number.
        assert torch.isfinite(gradient[:2]).all()

    def test_members_of_a_vmap(self):
        f = lambda h, x: (torch.tanh(0.5 * h + x),) * 2
        xs = torch.linspace(-1, 1, 12).double().reshape(2, 6, 1, 1)
        run = lambda xs, solver: scan(
            f, xs[0], xs, resets=torch.arange(6) == 3, solver=solver
        )[1]
        actual = torch.func.vmap(run, (0, None))(xs, "deer")
        assert_near(actual, torch.stack([run(x, "sequential") for x in xs]))


@pytest.mark.parametrize("solver", ["deer", "sequential"])
def test_padding_is_run_where_the_sample_is(solver):
    # From zero the root of the first input has no derivative; but of a reversed run
    # that input is the last.
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    xs = torch.tensor([0.0, 1.0, 1.0]).double()[:, None]
    f = lambda z, x: (torch.sqrt(weight * z + x),) * 2
    options = {"solver": solver, "reverse": True}
    padded = scan(f, xs[0], xs, lengths=torch.tensor([2]), **options)[1]
    alone = scan(f, xs[0], xs[:2], **options)[1]
    assert_near(*(torch.autograd.grad(ys.sum(), weight) for ys in (padded, alone)))


@pytest.mark.parametrize("solver", ["deer", "sequential"])
def test_the_exponent_is_that_of_the_steps_that_are_run(solver):
    f = lambda h, x: (0.5 * h + x,) * 2
    xs = torch.ones(20, 1, 1).double()
    for options in (
        {},
        {"resets": torch.arange(20) % 5 == 3},
        {"lengths": torch.tensor([7])},
    ):
        solution = scan(f, xs[0], xs, solver=solver, return_solution=True, **options)[1]
        exponent = solution.stats["lyapunov_exponent"]
        torch.testing.assert_close(exponent, torch.tensor([0.5]).double().log())


def test_mixed_samples_are_seen_before_the_first_reset():
    f = lambda h, x: (torch.tanh(h.mean(0, keepdim=True) + x),) * 2
    with pytest.raises(ValueError, match="mixes samples"):
        scan(
            f,
            torch.zeros(2, 1),
            torch.ones(5, 2, 1),
            solver="deer",
            resets=torch.ones(5, dtype=torch.bool),
        )


def test_drivers_start_over_too():
    def f(carry, x):
        h, n = carry
        return (torch.tanh(0.5 * h + x + 0.1 * n[:, None]), n + 1), n

    init = (torch.zeros(SAMPLES, 1).double(), torch.zeros(SAMPLES, dtype=torch.long))
    xs = torch.linspace(-1, 1, LENGTH).double()[:, None, None].expand(-1, SAMPLES, 1)
    options = {"resets": RESETS, "lengths": COUNTS}
    (h, n), ys = scan(f, init, xs, solver="deer", **options)
    (h_, n_), ys_ = scan(f, init, xs, solver="sequential", **options)
    assert_near(h, h_)
    assert n.tolist() == n_.tolist() == [0, 1, 3]
    assert (ys == ys_).all()
    assert ys[:, 2].tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 1, 2]


@pytest.fixture
def unchecked():
    # What is wrong is to be found by the library itself.
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("solver", ["deer", "sequential", "auto"])
class TestBadInput:
    def fails(self, error, match, solver, **options):
        f = lambda h, x: (torch.tanh(h + x),) * 2
        with pytest.raises(error, match=match):
            scan(f, torch.zeros(2, 2), torch.ones(5, 2, 2), solver=solver, **options)

    @pytest.mark.parametrize("shape", [(4,), (6,), (), (5, 1), (5, 3), (2, 5)])
    def test_resets_of_the_wrong_shape(self, solver, shape):
        resets = torch.zeros(shape, dtype=torch.bool)
        match = r"`resets` must have shape \(5,\) or \(5, 2\)"
        self.fails(ValueError, match, solver, resets=resets)

    def test_resets_that_are_no_booleans(self, solver):
        for resets in (torch.zeros(5), np.zeros(5, int), [0, 1, 0, 0, 1]):
            self.fails(TypeError, "`resets` must be booleans", solver, resets=resets)

    @pytest.mark.parametrize("lengths", [[-1, 2], [2, 6]])
    def test_lengths_out_of_range(self, solver, lengths):
        match = "`lengths` must be between 0 and 5"
        self.fails(ValueError, match, solver, lengths=lengths)

    def test_lengths_that_are_none(self, solver):
        match = "`lengths` must be integers"
        self.fails(TypeError, match, solver, lengths=torch.ones(2))
        match = r"`lengths` must have shape \(2,\)"
        for lengths in (3, [1, 2, 3]):
            self.fails(ValueError, match, solver, lengths=lengths)
