"""The contract suites on the components of the core itself."""

import dataclasses

import pytest
import torch

from parafix.core.testing.torch import (
    AdjointContract,
    CausalContract,
    RootFinderContract,
    ScanContract,
    zoo_names,
)
from parafix.core.torch import (
    AbstractCausalSweep,
    AbstractFusedScan,
    AbstractIteration,
    AbstractScan,
    affine_scan,
    Anderson,
    AssociativeScan,
    BlockedScan,
    Broyden,
    FixedPoint,
    GMRES,
    ImplicitAdjoint,
    Jacobi,
    LU,
    Newton,
    NewtonKrylov,
    OneStepAdjoint,
    PhantomAdjoint,
    SequentialScan,
    UnrolledAdjoint,
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


class TestNewtonWithoutMatrices(RootFinderContract):
    def make(self, rtol, atol):
        return Newton(rtol, atol, linear_solver=GMRES())


class TestNewtonKrylov(RootFinderContract):
    def make(self, rtol, atol):
        return NewtonKrylov(rtol, atol)


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


class TestAutomaticScan(ScanContract):
    def make(self):
        return "auto"

    def serves(self, structure, a, b, init=None):
        # It always finds one.
        return True


class TestImplicitAdjoint(AdjointContract):
    def make(self):
        return ImplicitAdjoint()


class TestImplicitAdjointWithMatrices(AdjointContract):
    solver = "anderson"

    def make(self):
        return ImplicitAdjoint(linear_solver=LU())


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


class OwnPassScan(AbstractFusedScan):
    """Has a backward pass of its own, and counts how often it is taken."""

    def __init__(self):
        self.passes = 0

    def solve(self, a, b, init, reverse):
        return SequentialScan().solve(a, b, init, reverse)

    def vjp(self, a, x, init, g, reverse, with_a):
        self.passes += 1
        steps = range(len(x))[:: 1 if reverse else -1]
        of_b = torch.empty_like(g)
        factor, cotangent = torch.zeros_like(a[0]), torch.zeros_like(init)
        for t in steps:
            cotangent = of_b[t] = factor.conj() * cotangent + g[t]
            factor = a[t if len(a) > 1 else 0]
        of_init = factor.conj() * cotangent
        if not with_a:
            return None, of_b, of_init
        parts = [x[1:], init[None]] if reverse else [init[None], x[:-1]]
        of_a = (of_b * torch.cat(parts).conj()).sum_to_size(a.shape)
        return of_a, of_b, of_init

    def reasons_against(self, a, b):
        return ["dense matrices are not served"] if a.ndim > b.ndim else []


class TestOwnPassScan(ScanContract):
    dense = False

    def make(self):
        return OwnPassScan()

    def test_its_pass_is_taken_where_nobody_differentiates_it(self):
        scan = OwnPassScan()
        b = torch.ones(5, 2, requires_grad=True)
        x = affine_scan(torch.full((5, 2), 0.5), b, scan=scan).sum()
        (first,) = torch.autograd.grad(x, b, create_graph=True)
        assert scan.passes == 0
        (again,) = torch.autograd.grad(
            affine_scan(torch.full((5, 2), 0.5), b, scan=scan).sum(), b
        )
        assert scan.passes == 1
        assert torch.equal(first, again)


class ForgetfulScan(AbstractScan):
    """Does not see `reverse`."""

    def solve(self, a, b, init, reverse):
        return SequentialScan().solve(a, b, init, False)

    def reasons_against(self, a, b):
        return []


class LendingScan(AbstractScan):
    """Solves in the memory of `b`."""

    def solve(self, a, b, init, reverse):
        return b.copy_(SequentialScan().solve(a, b, init, reverse))

    def reasons_against(self, a, b):
        return []


class HonestScan(AbstractScan):
    """Serves diagonal real matrices and says so."""

    def solve(self, a, b, init, reverse):
        return SequentialScan().solve(a, b, init, reverse)

    def reasons_against(self, a, b):
        reasons = ["dense matrices are not served"] if a.ndim > b.ndim else []
        if b.is_complex():
            reasons.append("complex numbers are not served")
        return reasons


class TestHonestScan(ScanContract):
    dense = False
    dtypes = (torch.float32, torch.float64)

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

    def test_a_scan_that_writes_to_its_arguments(self):
        class Contract(ScanContract):
            def make(self):
                return LendingScan()

        with pytest.raises(AssertionError):
            Contract().test_values("dense", 7)

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

    def test_a_solver_that_mixes_samples(self):
        class Contract(TestFixedPoint):
            def make(self, rtol, atol):
                return Mixing(rtol, atol)

        with pytest.raises(AssertionError):
            Contract().test_neighbours_do_not_matter()

    def test_a_sweep_that_takes_more_than_it_says(self):
        class Contract(TestJacobi):
            def make(self, rtol, atol):
                return Waiting(rtol, atol)

        with pytest.raises(AssertionError):
            Contract().test_bits_are_those_of_the_sequential_program("chain")

    def test_a_sweep_that_mixes_samples(self):
        class Contract(TestJacobi):
            def make(self, rtol, atol):
                return Lockstep(rtol, atol)

        with pytest.raises(AssertionError):
            Contract().test_what_a_sample_holds_is_its_own_business()


@dataclasses.dataclass(frozen=True)
class Waiting(AbstractCausalSweep):
    """Changes nothing ahead."""

    def propose(self, z, f, prefix, memory):
        return z, memory


@dataclasses.dataclass(frozen=True)
class Lockstep(AbstractCausalSweep):
    """Waits as long as any sample is not finite."""

    def propose(self, z, f, prefix, memory):
        return (f if all(x.isfinite().all() for x in f) else z), memory


@dataclasses.dataclass(frozen=True)
class Absolute(AbstractIteration):
    """Careful as long as residuals are above one."""

    def init_memory(self, z):
        return None

    def advance(self, z, g, jvp, memory):
        step = torch.where(g.abs().amax(1) > 1, 0.5, 1.0).to(g.dtype)
        return z + step[:, None] * g, memory, 0


@dataclasses.dataclass(frozen=True)
class Mixing(AbstractIteration):
    """Goes by the largest residual of all samples."""

    def init_memory(self, z):
        return None

    def advance(self, z, g, jvp, memory):
        return z + g / (1 + 0.1 * g.abs().amax()), memory, 0
