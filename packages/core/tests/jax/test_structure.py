import equinox as eqx

from parafix.core.jax import AbstractScan, AbstractSweep, Chain
from parafix.core.testing import classes_of, structure_faults


def test_every_class_is_abstract_or_final():
    assert structure_faults("parafix.core.jax") == []


def test_the_classes_are_found():
    assert {AbstractScan, AbstractSweep, Chain} <= set(classes_of("parafix.core.jax"))


def test_abstract_classes_cannot_be_made():
    for item in classes_of("parafix.core.jax"):
        if issubclass(item, eqx.Module) and item.__name__.startswith("Abstract"):
            assert item.__abstractmethods__, item
