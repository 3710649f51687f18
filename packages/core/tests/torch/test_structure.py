import enum

import torch

from parafix.core.testing import classes_of, structure_faults
from parafix.core.torch import AbstractIteration, AbstractScan


def test_every_class_is_abstract_or_final():
    # These are made by overriding what PyTorch and Python have.
    made = tuple(
        f"{item.__name__}."
        for item in classes_of("parafix.core.torch")
        if issubclass(item, torch.autograd.Function | enum.Enum)
    )
    faults = structure_faults("parafix.core.torch")
    assert [fault for fault in faults if not fault.startswith(made)] == []


def test_the_classes_are_found():
    assert {AbstractIteration, AbstractScan} <= set(classes_of("parafix.core.torch"))
