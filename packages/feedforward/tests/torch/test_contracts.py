"""The contract suite of the core on the sweeps of this package."""

from parafix.core.testing.torch import CausalContract
from parafix.feedforward.torch import GSJacobi, JacobiGS, TriangularAnderson


class TestJacobiGS(CausalContract):
    def make(self, rtol, atol):
        # Blocks of three entries, and one of one.
        return JacobiGS(rtol, atol, blocks=5)


class TestGSJacobi(CausalContract):
    def make(self, rtol, atol):
        return GSJacobi(rtol, atol, window=5)


class TestGSJacobiInBlocks(CausalContract):
    def make(self, rtol, atol):
        return GSJacobi(rtol, atol, window=5, sliding=False)


class TestTriangularAnderson(CausalContract):
    def make(self, rtol, atol):
        return TriangularAnderson(rtol, atol)
