from parafix.core.testing import classes_of, structure_faults
from parafix.feedforward.jax import GSJacobi


def test_every_class_is_abstract_or_final():
    assert structure_faults("parafix.feedforward.jax") == []


def test_the_classes_are_found():
    assert GSJacobi in classes_of("parafix.feedforward.jax")
