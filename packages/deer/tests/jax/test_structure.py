from parafix.core.testing import classes_of, structure_faults
from parafix.deer.jax import DEER


def test_every_class_is_abstract_or_final():
    assert structure_faults("parafix.deer.jax") == []


def test_the_classes_are_found():
    assert DEER in classes_of("parafix.deer.jax")
