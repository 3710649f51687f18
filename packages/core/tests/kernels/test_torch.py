"""The kernel under Triton's interpreter, launched from PyTorch."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import func

from parafix.core.kernels import DiagonalScanPlan
from parafix.core.testing.torch import (
    assert_close,
    assert_identical,
    dense_affine_scan,
    loop_affine_scan,
)
from parafix.core.torch import affine_scan, TritonScan


WALK = TritonScan(DiagonalScanPlan(False, 16, 8, 4, 1, 1))
CHAIN = TritonScan(DiagonalScanPlan(True, 16, 8, 4, 1, 1))
SCANS = pytest.mark.parametrize("scan", [WALK, CHAIN], ids=["walk", "chain"])
TOLERANCES = {torch.float32: 3e-6, torch.complex64: 3e-6, torch.bfloat16: 1.5e-2}
WIDE = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}


def normal(seed, shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=dtype, generator=generator)


def recurrence(b_shape, dtype=torch.float32, lead=None, seed=0):
    """`a`, `b`, `init` and cotangents of the states."""
    lead = b_shape[:-1] if lead is None else lead
    return (
        0.7 * normal(seed, (*lead, b_shape[-1]), dtype),
        normal(seed + 1, b_shape, dtype),
        normal(seed + 2, b_shape[1:], dtype),
        normal(seed + 3, b_shape, dtype),
    )


def by_loop(a, b, init, g, reverse):
    """States and gradients by PyTorch's autograd through a loop, in float64."""
    wide = WIDE[b.dtype]
    leaves = [x.to(wide).requires_grad_() for x in (a, b, init)]
    a, b, x = leaves
    states = [x] * len(b)
    rows = a.expand(b.shape).unbind(0)
    for t in range(len(b))[:: -1 if reverse else 1]:
        x = states[t] = rows[t] * x + b[t]
    out = torch.stack(states)
    return [out.detach(), *torch.autograd.grad(out, leaves, g.to(wide))]


def by_kernel(scan, a, b, init, g, reverse):
    leaves = [x.clone().requires_grad_() for x in (a, b, init)]
    out = affine_scan(*leaves, reverse=reverse, scan=scan)
    found = [out.detach(), *torch.autograd.grad(out, leaves, g)]
    assert {x.dtype for x in found} == {b.dtype}
    return found


def compare(scan, arguments, reverse):
    dtype = arguments[1].dtype
    actual = [x.to(WIDE[dtype]) for x in by_kernel(scan, *arguments, reverse)]
    assert_close(actual, by_loop(*arguments, reverse), TOLERANCES[dtype])


@SCANS
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 1000, 4097])
def test_values_and_gradients(scan, length):
    if length > 100:
        scan = TritonScan(dataclasses.replace(scan.plan, block_t=64))
    kinds = itertools.product(TOLERANCES, (False, True))
    for number, (dtype, reverse) in enumerate(kinds):
        if length > 100 and number != length % 4:
            continue
        batch = (2, 3) if length < 100 else (1,)
        compare(scan, recurrence((length, *batch, 2), dtype), reverse)


@SCANS
@pytest.mark.parametrize(
    "lead",
    [(1, 3, 4), (33, 1, 4), (33, 3, 1), (33, 1, 1), (1, 1, 1), (1, 3, 1), (1, 1, 4)],
    ids=str,
)
def test_axes_of_a_that_broadcast(scan, lead):
    for dtype in (torch.float32, torch.complex64):
        compare(scan, recurrence((33, 3, 4, 2), dtype, lead), dtype.is_complex)


def test_axes_of_a_that_broadcast_apart():
    for lead in ((9, 1, 3, 1, 2), (9, 2, 1, 3, 1), (1, 1, 3, 1, 1)):
        compare(WALK, recurrence((9, 2, 3, 3, 2, 1), lead=(*lead,)), False)


@SCANS
@pytest.mark.parametrize("decay", [0.0, 1.0, 1e-30, -1.0, 1.01])
def test_constant_decays(scan, decay):
    _, b, init, g = recurrence((200, 3))
    for lead in (200, 1):
        compare(scan, (torch.full((lead, 3), decay), b, init, g), False)


@SCANS
def test_large_batches(scan):
    for shape, block in (((5, 50, 37), 128), ((3, 70000, 1), 4096)):
        wide = TritonScan(dataclasses.replace(scan.plan, block_l=block))
        compare(wide, recurrence(shape), shape[0] == 5)


@SCANS
def test_arguments_that_are_not_contiguous(scan):
    a, b, init, g = recurrence((40, 3, 4), torch.complex64)
    turned = lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)
    strided = torch.stack([init, init], -1)[..., 0]
    compare(scan, (turned(a), turned(b).conj(), strided, g.flip(1)), False)
    compare(scan, (a[::2], b[::2].conj(), init.conj(), g[1::2]), True)
    one = b[:1, :1].expand(40, 3, 4)
    compare(scan, (a, one, init, one), False)


@SCANS
def test_is_in_memory_of_its_own_and_leaves_arguments_alone(scan):
    for dtype in TOLERANCES:
        arguments = recurrence((20, 3), dtype)
        before = [x.clone() for x in arguments]
        for x in by_kernel(scan, *arguments, False):
            x.zero_()
        assert_identical(list(arguments), before)


def nonfinite_like_the_loop(scan, a, b, init, reverse=False):
    with np.errstate(all="ignore"):
        expected = torch.as_tensor(loop_affine_scan(a, b, init, reverse=reverse))
    found = affine_scan(a, b, init, reverse=reverse, scan=scan)
    same = found.isfinite() == expected.isfinite()
    assert same.all(), torch.nonzero(~same)
    fine = expected.isfinite()
    assert_close(found[fine], expected[fine], 3e-6)


@SCANS
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_begins_where_it_does_in_a_loop(scan, bad, reverse):
    for place, zeros in itertools.product(range(3), (False, True)):
        arguments = list(recurrence((150, 4)))[:3]
        if zeros:
            # A state of zero meets the bad number.
            arguments[1:] = map(torch.zeros_like, arguments[1:])
        spoilt = arguments[place]
        spoilt[..., 1] = torch.where(
            torch.arange(len(spoilt)) == 70 if place < 2 else torch.tensor(True),
            bad,
            spoilt[..., 1],
        )
        nonfinite_like_the_loop(scan, *arguments, reverse)


@SCANS
def test_states_that_overflow_and_are_then_multiplied_by_zero(scan):
    a, b, init, _ = recurrence((200, 3))
    a[40:60, 1] = 1e30
    a[70, 1] = 0
    nonfinite_like_the_loop(scan, a, b, init)


@SCANS
def test_products_that_overflow_beside_states_of_zero(scan):
    # The products of `a` are infinite long before the first state is not zero.
    a = torch.full((200, 3), 1e20)
    b, init = torch.zeros(200, 3), torch.zeros(3)
    b[150:] = 1
    a[150:] = 0.5
    nonfinite_like_the_loop(scan, a, b, init)


@SCANS
def test_products_that_underflow(scan):
    a, b, init, g = recurrence((150, 3))
    compare(scan, (1e-25 * a, b, init, g), False)


def test_the_sum_over_time_is_kept_in_float32():
    # In bfloat16 a sum of ones ends at 256.
    shape = (1024, 1)
    a, b = torch.zeros((1, 1), dtype=torch.bfloat16), torch.ones(shape).bfloat16()
    for scan in (WALK, CHAIN):
        of_a = by_kernel(scan, a, b, b[0], b, False)[1]
        assert of_a.item() == 1024


def test_without_init_the_first_factor_is_not_read():
    a, b, _, g = recurrence((40, 3))
    a[0] = torch.nan
    for scan in (WALK, CHAIN):
        leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
        x = affine_scan(*leaves, scan=scan)
        assert_close(x.detach().double(), loop_affine_scan(a.double(), b), 3e-6)
        of_a, of_b = torch.autograd.grad(x, leaves, g)
        assert of_a.isfinite().all()
        assert of_b.isfinite().all()


def test_the_gradient_is_the_kernels_own(monkeypatch):
    calls = []
    vjp = TritonScan.vjp
    monkeypatch.setattr(
        TritonScan, "vjp", lambda *args: calls.append(args[-1]) or vjp(*args)
    )
    a, b, init, g = recurrence((20, 3))
    by_kernel(WALK, a, b, init, g, False)
    b.requires_grad_()
    torch.autograd.grad(affine_scan(a, b, init, scan=WALK), b, g)
    assert calls == [True, False]


def test_derivatives_of_every_order():
    # float32 has no better oracle than float64: the same derivatives of one system.
    a, b, init, g = recurrence((18, 2))
    tangents = recurrence((18, 2), seed=9)[:3]

    def found(solver, convert):
        arguments, along = (tuple(map(convert, x)) for x in ((a, b, init), tangents))
        loss = lambda *x: (solver(*x) * convert(g)).sin().sum()
        gradient = func.grad(loss, (0, 1, 2))
        leaves = [x.clone().requires_grad_() for x in arguments]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        inner = sum((x * t).sum() for x, t in zip(first, along, strict=True))
        return {
            "gradient": gradient(*arguments),
            "tangent": func.jvp(loss, arguments, along)[1],
            "twice": torch.autograd.grad(inner, leaves),
            "forward over reverse": func.jvp(gradient, arguments, along)[1],
            "batched": func.vmap(gradient)(
                *(torch.stack(pair) for pair in zip(arguments, along, strict=True))
            ),
        }

    double = lambda x: x.double()
    actual = found(lambda *x: affine_scan(*x, scan=CHAIN), lambda x: x)
    actual = torch.utils._pytree.tree_map(double, actual)
    assert_close(actual, found(dense_affine_scan, double), 1e-5)


@pytest.mark.usefixtures("plain_interpreter")
def test_the_fast_interpreter_is_the_plain_one():
    for scan in (WALK, CHAIN):
        compare(scan, recurrence((35, 2)), False)


class TestWhatCannotBeServed:
    @pytest.mark.parametrize(
        ("a", "dtype", "words"),
        [((4, 2, 2), torch.float32, "dense"), ((4, 2), torch.float64, "float64")],
    )
    def test_raises_with_reasons(self, a, dtype, words):
        b = torch.zeros(4, 2, dtype=dtype)
        with pytest.raises(ValueError, match=f"'triton' cannot solve.*{words}"):
            affine_scan(torch.zeros(a, dtype=dtype), b, scan="triton")

    def test_on_a_cpu(self, monkeypatch):
        b = torch.zeros(4, 2)
        assert affine_scan(b, b, scan="triton").shape == (4, 2)
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.raises(ValueError, match="NVIDIA GPU, and the tensors are on cpu"):
            affine_scan(b, b, scan="triton")
