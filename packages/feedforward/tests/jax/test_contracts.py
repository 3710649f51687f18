"""The contract suite of the core on the sweeps of this package."""

import pytest

from parafix.core.testing.jax import CausalContract
from parafix.feedforward.jax import GSJacobi, JacobiGS, TriangularAnderson


class TestJacobiGS(CausalContract):
    def make(self, rtol, atol):
        # Blocks of three entries, and one of one.
        return JacobiGS(rtol, atol, blocks=5)


class TestGSJacobi(CausalContract):
    def make(self, rtol, atol):
        return GSJacobi(rtol, atol, window=5)


# Most of the time is compilation, and PyTorch runs it every day.
@pytest.mark.slow
class TestGSJacobiInBlocks(CausalContract):
    def make(self, rtol, atol):
        return GSJacobi(rtol, atol, window=5, sliding=False)


class TestTriangularAnderson(CausalContract):
    def make(self, rtol, atol):
        return TriangularAnderson(rtol, atol)
