from parafix.core.testing import classes_of, structure_faults
from parafix.deer.torch import DEER


CELLS = ("DiagonalGRUCell", "DiagonalLSTMCell", "LEMCell", "MultiHeadGRUCell")


def test_every_class_is_abstract_or_final():
    # Made by overriding what PyTorch has, or has without an implementation.
    made = ("_Taint.", *(f"{name}.forward" for name in CELLS))
    faults = structure_faults("parafix.deer.torch")
    assert [fault for fault in faults if not fault.startswith(made)] == []


def test_the_classes_are_found():
    assert DEER in classes_of("parafix.deer.torch")
