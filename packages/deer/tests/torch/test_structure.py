from parafix.core.testing import classes_of, structure_faults
from parafix.deer.torch import DEER


def test_every_class_is_abstract_or_final():
    # Made by overriding what PyTorch has.
    faults = structure_faults("parafix.deer.torch")
    assert [fault for fault in faults if not fault.startswith("_Taint.")] == []


def test_the_classes_are_found():
    assert DEER in classes_of("parafix.deer.torch")
