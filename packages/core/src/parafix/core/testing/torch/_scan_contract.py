import functools as ft
from typing import Any, ClassVar

import numpy as np
import torch
from torch import func

from parafix.core.torch import AbstractScan, affine_scan

from ._compare import assert_close, assert_identical
from ._oracle import dense_affine_scan, loop_affine_scan


_LENGTHS = (0, 1, 2, 7, 33)
_TOLERANCES = {
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
}


class ScanContract:
    """What a scan must do, as tests for pytest.

    Everything is asked through `affine_scan` and judged by a loop in NumPy; the
    derivatives by those of one dense linear system.

    !!! example

        ```python
        from parafix.core.testing.torch import ScanContract

        class TestMyScan(ScanContract):
            dense = False

            def make(self):
                return MyScan()
        ```

    **Attributes:**

    - `diagonal`, `dense`: whether such matrices are served.
    - `dtypes`: which dtypes are served. What is not served must have reasons against
        it or come out right all the same.
    """

    diagonal: ClassVar[bool] = True
    dense: ClassVar[bool] = True
    dtypes: ClassVar[tuple[Any, ...]] = tuple(_TOLERANCES)

    def make(self) -> AbstractScan:
        """The scan under test."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Runs a test for both structures of matrices, and for several lengths."""
        for name, values in (
            ("structure", ("diagonal", "dense")),
            ("length", _LENGTHS),
        ):
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values)

    def serves(self, structure: str, a: Any, b: Any, init: Any = None) -> bool:
        """Whether it claims to; if it has reasons against it, that the verb says so."""
        import pytest

        reasons = self.make().reasons_against(a, b)
        assert isinstance(reasons, list)
        assert all(isinstance(reason, str) and reason for reason in reasons)
        if getattr(self, structure) and b.dtype in self.dtypes:
            assert reasons == [], (structure, a.shape, b.shape, b.dtype)
        if not reasons:
            return True
        with pytest.raises(ValueError, match="cannot solve") as caught:
            affine_scan(a, b, init, scan=self.make())
        for reason in reasons:
            assert reason in str(caught.value)
        return False

    def test_reasons_are_sentences(self, structure):
        for dtype in _TOLERANCES:
            arguments = _recurrence(structure, (3, 2), dtype)
            self.serves(structure, *arguments)

    def test_values(self, structure, length):
        for dtype in _TOLERANCES:
            for reverse in (False, True):
                for with_init in (False, True):
                    shape = (length, 2)
                    arguments = _recurrence(
                        structure, shape, dtype, with_init=with_init
                    )
                    self.compare(structure, arguments, reverse)

    def test_axes_that_broadcast(self, structure):
        for shape, lead in (
            ((5, 3, 2), (1, 3)),
            ((5, 3, 2), (5, 1)),
            ((5, 3, 2), (1, 1)),
            ((19, 3, 2), (1, 1)),
            ((5, 0, 2), None),
            ((5, 3, 0), None),
        ):
            for reverse in (False, True):
                arguments = _recurrence(structure, shape, torch.float64, lead)
                self.compare(structure, arguments, reverse)

    def test_arguments_that_are_not_contiguous(self, structure):
        a, b, init = _recurrence(structure, (9, 3, 2), torch.complex128)
        turned = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (a, b))
        self.compare(structure, (*turned, init), False)
        self.compare(structure, (a.conj(), b.flip(0)[::2], init), True, lead=5)

    def compare(
        self, structure: str, arguments: Any, reverse: bool, lead: int | None = None
    ) -> None:
        """The scan of `arguments`, `(a, b, init)`, with NumPy's loop, and untouched."""
        a, b, init = arguments
        a = a if lead is None else a[:lead]
        if not self.serves(structure, a, b, init):
            return
        before = a.clone(), b.clone(), None if init is None else init.clone()
        x = affine_scan(a, b, init, reverse=reverse, scan=self.make())
        expected = loop_affine_scan(*before, reverse=reverse)
        assert_close(x, expected, _TOLERANCES[x.dtype])
        assert_identical((a, b, init), before)
        # Whoever writes to the result writes to nothing else.
        x.zero_()
        assert_identical((a, b, init), before)

    def test_derivatives(self, structure):
        self.derive(structure, torch.float64, reverse=False)

    def test_derivatives_of_complex_numbers(self, structure):
        self.derive(structure, torch.complex128, reverse=True)

    def derive(self, structure: str, dtype: torch.dtype, reverse: bool) -> None:
        """Derivatives of first and second order, by `backward` and `torch.func`."""
        samples = [_recurrence(structure, (4, 2), dtype, seed=i) for i in range(3)]
        if not self.serves(structure, *samples[0]):
            return
        solver = ft.partial(affine_scan, scan=self.make())
        actual, expected = (
            _derivatives(_loss(each, reverse), samples)
            for each in (solver, dense_affine_scan)
        )
        assert_close(actual, expected)

    def test_nan_stays_in_its_sample_and_after_its_time(self, structure):
        a, b, init = _recurrence(structure, (7, 3, 2), torch.float64)
        if not self.serves(structure, a, b, init):
            return
        one = ft.partial(affine_scan, scan=self.make())
        every = func.vmap(one, (1, 1, 0), 1)
        bad = b.clone()
        bad[3, 1] = torch.nan
        for solve in (one, every):
            x, y = solve(a, bad, init), solve(a, b, init)
            assert x[3:, 1].isnan().all()
            assert_identical(x[:, ::2], y[:, ::2])
            assert_close(x[:3], loop_affine_scan(a, b, init)[:3])


def _normal(random, shape, dtype):
    x = random.normal(size=shape)
    if dtype.is_complex:
        x = x + 1j * random.normal(size=shape)
    return torch.as_tensor(x, dtype=dtype)


def _recurrence(structure, shape, dtype, lead=None, seed=0, with_init=True):
    """`a`, `b` and `init`, neither growing nor forgetting at once."""
    *_, size = shape
    random = np.random.default_rng(seed)
    lead = shape[:-1] if lead is None else lead
    tail = (size, size) if structure == "dense" else (size,)
    a = _normal(random, (*lead, *tail), dtype) * (0.6 / len(tail))
    b, init = _normal(random, shape, dtype), _normal(random, shape[1:], dtype)
    return a, b, init if with_init else None


def _loss(solver, reverse):
    """A real function of the arguments that weighs every entry of `x` differently."""

    def loss(*arguments):
        x = solver(*arguments, reverse=reverse)
        if x.is_complex():
            x = torch.view_as_real(x) @ x.real.new_tensor([1.0, 2.0])
        weights = torch.arange(x.numel(), dtype=x.dtype).cos().reshape(x.shape)
        return (weights * x.sin() * (1 + x)).sum()

    return loss


def _paired(gradients, tangents):
    """The derivative along `tangents`, from PyTorch's conjugate gradients."""
    pairs = zip(gradients, tangents, strict=True)
    return torch.stack([(g * t.conj()).real.sum() for g, t in pairs]).sum()


def _derivatives(loss, samples):
    """Gradient, tangent and second derivatives, and the first under `vmap`."""
    arguments, tangents, _ = samples
    places = (0, 1, 2)
    gradient = func.grad(loss, places)
    leaves = [x.clone().requires_grad_() for x in arguments]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    along = _paired(first, tangents)
    push = lambda f: lambda *x: func.jvp(f, x, tangents)[1]
    found = {
        "gradient": gradient(*arguments),
        "backward": first,
        "twice": torch.autograd.grad(along, leaves),
        "tangent": push(loss)(*arguments),
        "forward twice": push(push(loss))(*arguments),
        "forward over reverse": push(gradient)(*arguments),
        "reverse over forward": func.grad(push(loss), places)(*arguments),
        "batched": func.vmap(gradient)(*map(torch.stack, zip(*samples, strict=True))),
    }
    if not any(x.is_complex() for x in arguments):
        found["hessian"] = func.hessian(loss, places)(*arguments)
    return found
