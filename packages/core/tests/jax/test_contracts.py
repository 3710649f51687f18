"""The contract suites on the components of the core itself."""

import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from parafix.core.jax import (
    AbstractCausalSweep,
    AbstractIteration,
    AbstractScan,
    Anderson,
    AssociativeScan,
    BlockedScan,
    Broyden,
    FixedPoint,
    ImplicitAdjoint,
    Jacobi,
    Newton,
    NewtonKrylov,
    OneStepAdjoint,
    PhantomAdjoint,
    SequentialScan,
    UnrolledAdjoint,
)
from parafix.core.testing.jax import (
    AdjointContract,
    CausalContract,
    RootFinderContract,
    ScanContract,
    zoo_names,
)


CONTRACTIVE = zoo_names("contractive")


class TestFixedPoint(RootFinderContract):
    solves = CONTRACTIVE
    max_steps = 1000

    def make(self, rtol, atol):
        return FixedPoint(rtol, atol)


class TestAnderson(RootFinderContract):
    def make(self, rtol, atol):
        return Anderson(rtol, atol)


class TestGoodBroyden(RootFinderContract):
    def make(self, rtol, atol):
        return Broyden(rtol, atol)


class TestBadBroyden(RootFinderContract):
    def make(self, rtol, atol):
        return Broyden(rtol, atol, kind="bad")


class TestNewton(RootFinderContract):
    def make(self, rtol, atol):
        return Newton(rtol, atol)


class TestNewtonKrylov(RootFinderContract):
    def make(self, rtol, atol):
        return NewtonKrylov(rtol, atol)


class TestChord(RootFinderContract):
    def make(self, rtol, atol):
        return optx.Chord(rtol, atol)


@pytest.mark.slow
class TestDogleg(RootFinderContract):
    # The first radius of its trust region is a number. In float32, some of its norms
    # are float64 all the same, and so are they in Levenberg-Marquardt's matrix.
    ignores_units = False
    single_precision = False

    def make(self, rtol, atol):
        return optx.Dogleg(rtol, atol)


class TestLevenbergMarquardt(RootFinderContract):
    # Its first damping is a number, too. And it traces `f` once without evaluating it.
    ignores_units = False
    single_precision = False
    counts_exactly = False

    def make(self, rtol, atol):
        return optx.LevenbergMarquardt(rtol, atol)


class TestJacobi(CausalContract):
    takes_depth = True

    def make(self, rtol, atol):
        return Jacobi(rtol, atol)


class TestSequentialScan(ScanContract):
    def make(self):
        return SequentialScan()


class TestAssociativeScan(ScanContract):
    def make(self):
        return AssociativeScan()


class TestBlockedScan(ScanContract):
    def make(self):
        return BlockedScan()


class TestImplicitAdjoint(AdjointContract):
    def make(self):
        return ImplicitAdjoint()


class TestOneStepAdjoint(AdjointContract):
    exact = False

    def make(self):
        return OneStepAdjoint()


class TestPhantomAdjoint(AdjointContract):
    exact = False

    def make(self):
        return PhantomAdjoint()


class TestUnrolledAdjoint(AdjointContract):
    guess_is_constant = False

    def make(self):
        return UnrolledAdjoint()


class ForgetfulScan(AbstractScan):
    """Does not see `reverse`."""

    def solve(self, a, b, init, reverse):
        return SequentialScan().solve(a, b, init, False)

    def reasons_against(self, a, b):
        return []


class HonestScan(AbstractScan):
    """Serves diagonal real matrices and says so."""

    def solve(self, a, b, init, reverse):
        return SequentialScan().solve(a, b, init, reverse)

    def reasons_against(self, a, b):
        reasons = ["dense matrices are not served"] if a.ndim > b.ndim else []
        if jnp.iscomplexobj(b):
            reasons.append("complex numbers are not served")
        return reasons


class TestHonestScan(ScanContract):
    dense = False
    dtypes = (np.float32, np.float64)

    def make(self):
        return HonestScan()


class TestTheSuites:
    """They must fail what is wrong."""

    def test_a_scan_that_is_wrong(self):
        class Contract(ScanContract):
            def make(self):
                return ForgetfulScan()

        with pytest.raises(AssertionError):
            Contract().test_values("diagonal", 7)
        with pytest.raises(AssertionError):
            Contract().test_derivatives("diagonal")

    def test_a_scan_that_serves_less_than_it_says(self):
        class Contract(TestHonestScan):
            dense = True

        with pytest.raises(AssertionError, match="dense"):
            Contract().test_reasons_are_sentences("dense")

    def test_an_approximate_adjoint_that_says_it_is_exact(self):
        class Contract(TestOneStepAdjoint):
            exact = True

        with pytest.raises(AssertionError):
            Contract().test_gradient_and_tangent()

    def test_an_adjoint_that_is_too_far_off(self):
        class Contract(TestPhantomAdjoint):
            def make(self):
                return PhantomAdjoint(steps=1)

        with pytest.raises(AssertionError):
            Contract().test_gradient_and_tangent()

    def test_a_guess_that_matters(self):
        class Contract(TestUnrolledAdjoint):
            solver = "fixed-point"
            guess_is_constant = True

        with pytest.raises(AssertionError):
            Contract().test_of_the_guess()

    def test_a_solver_that_does_not_solve(self):
        with pytest.raises(AssertionError, match="wide"):
            TestFixedPoint().test_success_is_an_answer("wide")

    def test_a_solver_with_units(self):
        class Contract(TestFixedPoint):
            def make(self, rtol, atol):
                return Absolute(rtol, atol)

        with pytest.raises(AssertionError, match="1000"):
            Contract().test_units_do_not_matter()

    def test_a_sweep_that_takes_more_than_it_says(self):
        class Contract(TestJacobi):
            def make(self, rtol, atol):
                return Waiting(rtol, atol)

        with pytest.raises(AssertionError):
            Contract().test_bits_are_those_of_the_sequential_program("chain")


class Waiting(AbstractCausalSweep):
    """Changes nothing ahead."""

    rtol: float
    atol: float

    def propose(self, z, f, prefix, memory):
        return z, memory


class Absolute(AbstractIteration):
    """Careful as long as residuals are above one."""

    rtol: float
    atol: float

    def init_memory(self, z):
        return None

    def advance(self, z, g, aux, memory):
        return z + jnp.where(jnp.max(jnp.abs(g)) > 1, 0.5, 1) * g, memory, 0
