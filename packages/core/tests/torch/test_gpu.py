"""On an accelerator, against float64 on the CPU. `nox -s gpu` runs these."""

import numpy as np
import pytest
import torch

from parafix.core.testing.torch import assert_close
from parafix.core.torch import affine_scan


pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _accelerator():
    if not torch.cuda.is_available():
        pytest.fail("PyTorch finds no accelerator here")


@pytest.fixture(params=["ieee", "tf32"])
def _precision(request):
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = request.param
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("_precision")
@pytest.mark.parametrize("scan", ["auto", "associative", "blocked", "sequential"])
@pytest.mark.parametrize("lead", [(4097, 16), (1, 16), (4097, 1), (1, 1)])
@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
@pytest.mark.parametrize("reverse", [False, True])
def test_affine_scan_and_its_gradient(scan, lead, dense, reverse):
    length, batch, size = (4097, 16, 4)
    random = np.random.default_rng(0)
    shape = (*lead, size, size) if dense else (*lead, size)
    a = random.uniform(-0.9, 0.9, shape) / (2 if dense else 1)
    b, init = (
        random.normal(size=(length, batch, size)),
        random.normal(size=(batch, size)),
    )

    def both(scan, **options):
        leaves = [torch.tensor(x, requires_grad=True, **options) for x in (a, b, init)]
        x = affine_scan(*leaves, reverse=reverse, scan=scan)
        gradients = torch.autograd.grad((x**2).mean() * b.size, leaves)
        return [z.detach().cpu().double() for z in (x, *gradients)]

    expected = both("associative", dtype=torch.float64, device="cpu")
    found = both(scan, dtype=torch.float32, device="cuda")
    assert_close(found, expected, tolerance=3e-5)
