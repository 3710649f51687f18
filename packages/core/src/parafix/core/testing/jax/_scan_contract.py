import functools as ft
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from parafix.core.jax import AbstractScan, affine_scan

from ._compare import assert_close, assert_identical
from ._oracle import dense_affine_scan, loop_affine_scan


_LENGTHS = (0, 1, 2, 7, 33)
_TOLERANCES = {
    np.dtype(np.float32): 1e-5,
    np.dtype(np.complex64): 1e-5,
    np.dtype(np.float64): 1e-12,
    np.dtype(np.complex128): 1e-12,
}


class ScanContract:
    """What a scan must do, as tests for pytest.

    Everything is asked through `affine_scan` and judged by a loop in NumPy; the
    derivatives by those of one dense linear system.

    !!! example

        ```python
        from parafix.core.testing.jax import ScanContract

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
        known = [np.dtype(dtype) for dtype in self.dtypes]
        if getattr(self, structure) and b.dtype in known:
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
        kinds = (
            (np.float64, False, True),
            (np.float64, True, True),
            (np.float64, True, False),
            (np.complex128, True, True),
            (np.float32, False, True),
            (np.complex64, False, False),
        )
        if length > 10:
            # Long ones take long to compile, and differ from short ones in length only.
            kinds = kinds[1:4:2]
        cases = [
            (_recurrence(structure, (length, 2), dtype, with_init=with_init), reverse)
            for dtype, reverse, with_init in kinds
        ]
        self.compare(structure, cases)

    def test_axes_that_broadcast(self, structure):
        shape = (5, 3, 2)
        cases = [
            (_recurrence(structure, shape, np.float64, lead), reverse)
            for lead, reverse in (
                ((1, 3), False),
                ((5, 1), True),
                ((1, 1), False),
                ((1, 1), True),
            )
        ]
        cases.append((_recurrence(structure, (5, 0, 2), np.float64), False))
        cases.append((_recurrence(structure, (5, 3, 0), np.float64), False))
        self.compare(structure, cases)

    def compare(self, structure: str, cases: list[Any]) -> None:
        """Each of `cases`, `(a, b, init)` and whether reversed, with NumPy's loop."""
        cases = [case for case in cases if self.serves(structure, *case[0])]
        scan = self.make()

        @jax.jit
        def all_of_them(arguments):
            return [
                affine_scan(*each, reverse=reverse, scan=scan)
                for each, (_, reverse) in zip(arguments, cases, strict=True)
            ]

        results = all_of_them([arguments for arguments, _ in cases])
        for (arguments, reverse), x in zip(cases, results, strict=True):
            expected = loop_affine_scan(*arguments, reverse=reverse)
            assert_close(x, jnp.asarray(expected), _TOLERANCES[expected.dtype])

    def test_derivatives(self, structure):
        arguments = _recurrence(structure, (4, 2), np.float64)
        if not self.serves(structure, *arguments):
            return
        # Forwards here, reversed with complex numbers.
        solver = ft.partial(affine_scan, scan=self.make())
        actual = _derivatives(solver, structure, False, False)
        assert_close(actual, _expected_derivatives(structure, False, False))

    def test_derivatives_of_complex_numbers(self, structure):
        arguments = _recurrence(structure, (4, 2), np.complex128)
        if not self.serves(structure, *arguments):
            return
        solver = ft.partial(affine_scan, scan=self.make())
        actual = _derivatives(solver, structure, True, True)
        assert_close(actual, _expected_derivatives(structure, True, True))

    def test_nan_stays_in_its_sample_and_after_its_time(self, structure):
        a, b, init = _recurrence(structure, (7, 3, 2), np.float64)
        if not self.serves(structure, a, b, init):
            return
        scan = self.make()

        @jax.jit
        def solve(a, b, init):
            x = affine_scan(a, b, init, scan=scan)
            one = lambda a, b, init: affine_scan(a, b, init, scan=scan)
            return x, jax.vmap(one, (1, 1, 0), 1)(a, b, init)

        clean = solve(a, b, init)
        poisoned = solve(a, b.at[3, 1].set(jnp.nan), init)
        for x, y in zip(poisoned, clean, strict=True):
            assert np.isnan(x[3:, 1]).all()
            others = ft.partial(jnp.delete, obj=1, axis=1)
            assert_identical(others(x), others(y))
            assert_close(x[:3], jnp.asarray(loop_affine_scan(a, b, init))[:3])


def _normal(random, shape, dtype):
    x = random.normal(size=shape)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * random.normal(size=shape)
    return jnp.asarray(x, dtype)


def _recurrence(structure, shape, dtype, lead=None, seed=0, with_init=True):
    """`a`, `b` and `init`, neither growing nor forgetting at once."""
    *_, size = shape
    random = np.random.default_rng(seed)
    lead = shape[:-1] if lead is None else lead
    tail = (size, size) if structure == "dense" else (size,)
    a = _normal(random, (*lead, *tail), dtype)
    a = a * np.asarray(0.6 / len(tail), dtype)
    b, init = _normal(random, shape, dtype), _normal(random, shape[1:], dtype)
    return a, b, init if with_init else None


def _loss(solver, reverse, complex_valued):
    """A real function of real arguments that weighs every entry of `x` differently."""

    def loss(arguments):
        if complex_valued:
            arguments = [jax.lax.complex(x[0], x[1]) for x in arguments]
        x = solver(*arguments, reverse=reverse)
        weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float64)).reshape(x.shape)
        return jnp.sum(weights * jnp.sin(x.real + 2 * x.imag) * (1 + x.real))

    return loss


def _derivatives(solver, structure, reverse, complex_valued):
    """Value, gradient, tangent and Hessian, and the first two under `vmap`."""
    loss = _loss(solver, reverse, complex_valued)

    @jax.jit
    def everything(arguments, tangents, batch):
        second = jax.jvp(jax.grad(loss), (arguments,), (tangents,))[1]
        return {
            "gradient": jax.value_and_grad(loss)(arguments),
            "tangent": jax.jvp(loss, (arguments,), (tangents,))[1],
            "second": second if complex_valued else jax.hessian(loss)(arguments),
            "batched": jax.vmap(jax.value_and_grad(loss))(batch),
        }

    dtype = np.complex128 if complex_valued else np.float64
    samples = [_recurrence(structure, (4, 2), dtype, seed=i) for i in range(3)]
    if complex_valued:
        parts = lambda x: jnp.stack([jnp.real(x), jnp.imag(x)])
        samples = [jax.tree.map(parts, sample) for sample in samples]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *samples)
    return everything(samples[0], samples[1], batch)


@ft.cache
def _expected_derivatives(structure, reverse, complex_valued):
    return _derivatives(dense_affine_scan, structure, reverse, complex_valued)
