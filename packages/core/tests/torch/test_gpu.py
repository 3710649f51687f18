"""On an accelerator, against float64 on the CPU. `nox -s gpu` runs these."""

import numpy as np
import pytest
import torch

from parafix.core.testing.torch import assert_close
from parafix.core.torch import affine_scan, TritonScan


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


LENGTHS = (1, 2, 3, 63, 64, 65, 1000, 4097, 100_003)


@pytest.fixture
def _poisoned(monkeypatch):
    """Memory that nobody has written to is full of NaN."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)

        def spoilt(*args, make=make, **kwargs):
            x = make(*args, **kwargs)
            return x.fill_(torch.nan) if x.is_floating_point() or x.is_complex() else x

        monkeypatch.setattr(torch, name, spoilt)


def kernel_case(length, batch, dtype, lead=None, seed=0):
    """`a`, `b`, `init` and cotangents, as float64 knows them and as `dtype` does."""
    random = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(shape, dtype=dtype, generator=random)
    lead = (length, *batch[:-1]) if lead is None else lead
    # Decays up to 1, so that states reach far over the blocks.
    a = make(*lead, batch[-1])
    a = a / a.abs().clamp(min=1) * (1 - 1 / (10 + length))
    return a, make(length, *batch), make(*batch), make(length, *batch)


def states_and_gradients(scan, a, b, init, g, reverse):
    leaves = [x.clone().requires_grad_() for x in (a, b, init)]
    x = affine_scan(*leaves, reverse=reverse, scan=scan)
    return [x.detach(), *torch.autograd.grad(x, leaves, g)]


def compare_kernel(arguments, reverse):
    dtype = arguments[0].dtype
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = states_and_gradients(
        "sequential", *(x.to(wide) for x in arguments), reverse
    )
    on_device = [x.cuda() for x in arguments]
    found = states_and_gradients("triton", *on_device, reverse)
    again = states_and_gradients("triton", *on_device, reverse)
    for x, y in zip(found, again, strict=True):
        # The order of the operations is fixed: the same bits.
        assert torch.equal(
            torch.view_as_real(x) if dtype.is_complex else x,
            torch.view_as_real(y) if dtype.is_complex else y,
        )
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-4
    assert_close([x.cpu().to(wide) for x in found], expected, tolerance)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str
)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_kernel(length, dtype, reverse):
    compare_kernel(kernel_case(length, (3, 37), dtype), reverse)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("lead", [(1, 5), (3000, 1), (1, 1)], ids=str)
def test_the_kernel_with_axes_that_broadcast(lead):
    for batch in ((5, 40), (5, 4000)):
        compare_kernel(kernel_case(3000, batch, torch.float32, lead), False)


@pytest.mark.usefixtures("_poisoned")
def test_the_kernel_with_many_lanes():
    compare_kernel(kernel_case(1000, (8, 1536), torch.float32), False)


@pytest.mark.usefixtures("_poisoned")
def test_the_kernel_with_millions_of_steps():
    a, b, init, g = kernel_case(1_048_576, (2, 64), torch.float32)
    compare_kernel((a, b, init, g), True)


def test_the_kernel_does_not_hang_when_many_run_at_once():
    a, b, init, _ = (x.cuda() for x in kernel_case(50_000, (64,), torch.float32))
    streams = [torch.cuda.Stream() for _ in range(8)]
    torch.cuda.synchronize()
    found = []
    for stream in streams * 4:
        with torch.cuda.stream(stream):
            found.append(affine_scan(a, b, init, scan=TritonScan()))
    torch.cuda.synchronize()
    for x in found[1:]:
        assert torch.equal(x, found[0])


def test_auto_takes_the_kernel():
    from parafix.core.torch._affine_scan import automatic_choice

    assert automatic_choice() == "auto takes 'triton' for diagonal matrices on cuda"
