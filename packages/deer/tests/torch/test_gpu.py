"""On an accelerator, against float64 on the CPU. `nox -s gpu` runs these."""

import dataclasses

import pytest
import torch
from torch.utils import _pytree as pytree

from parafix.core.testing.torch import assert_close, gru, logistic, reference_scan
from parafix.core.torch import Diagonal, RESULTS
from parafix.deer.torch import choose, DiagonalGRUCell, scan


pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _accelerator():
    if not torch.cuda.is_available():
        pytest.fail("PyTorch finds no accelerator here")


def outputs_and_gradient(use, recurrence):
    arguments = recurrence.params, recurrence.init, recurrence.xs
    params, init, xs = pytree.tree_map(lambda x: x.requires_grad_(), arguments)
    _, ys = use(recurrence.bind(params), init, xs)
    leaves = pytree.tree_leaves((params, init, xs))
    gradient = torch.autograd.grad((ys**2).sum(), leaves)
    return [x.detach().cpu().double() for x in (ys, *gradient)]


@pytest.mark.parametrize(
    "solver", ["auto", "deer", "elk", "jacobi", "quasi-deer", "quasi-elk", "sequential"]
)
@pytest.mark.parametrize("window", [None, 300])
def test_scan_and_its_gradient(solver, window):
    recurrence = gru(0, 1000, size=4, samples=3)
    expected = outputs_and_gradient(
        lambda f, init, xs: reference_scan(f, init, xs)[:2], recurrence
    )

    def use(f, init, xs):
        return scan(f, init, xs, solver=solver, window=window)

    moved = {
        name: pytree.tree_map(
            lambda x: x.detach().to("cuda", torch.float32), getattr(recurrence, name)
        )
        for name in ("params", "init", "xs")
    }
    found = outputs_and_gradient(use, dataclasses.replace(recurrence, **moved))
    assert_close(found, expected, 1e-3)


@pytest.mark.parametrize("declared", [None, Diagonal()])
def test_a_diagonal_cell(declared):
    torch.manual_seed(0)
    cell, xs = DiagonalGRUCell(3, 32, dtype=torch.float64), torch.randn(1000, 2, 3)

    def gradient(cell, xs, **options):
        _, ys = scan(cell, cell.initial(2), xs, **options)
        found = torch.autograd.grad((ys**2).sum(), list(cell.parameters()))
        return [x.detach().cpu().double() for x in (ys, *found)]

    expected = gradient(cell, xs.double(), solver="sequential")
    # By its formula, and by pulls.
    found = gradient(
        cell.to("cuda").float(), xs.cuda(), solver="deer", structure=declared
    )
    assert_close(found, expected, 1e-3)


def test_auto_takes_deer_where_sweeps_pay():
    assert choose(10_000, 4, "cuda", 64).solver == "deer"


def test_chaos_is_no_success_and_leaves_others_alone():
    init = torch.tensor([[0.3], [0.0]], device="cuda")
    _, solution = scan(
        logistic, init, length=200, solver="deer", throw=False, return_solution=True
    )
    codes = [RESULTS.ill_conditioned, RESULTS.successful]
    assert solution.result.tolist() == codes
