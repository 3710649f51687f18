import pytest
import torch

from parafix.core.testing.torch import ScanContract
from parafix.core.torch import (
    AbstractScan,
    AssociativeScan,
    BlockedScan,
    SequentialScan,
)


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
