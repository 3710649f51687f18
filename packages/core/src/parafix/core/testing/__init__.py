"""What the tests of every package share, and what a plugin's own tests may use.

This module needs no framework; `parafix.core.testing.jax` and `.torch` are about one
backend each.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType


__all__ = ["classes_of", "modules_of", "structure_faults"]


def modules_of(package: str) -> Iterator[ModuleType]:
    """`package` and every module below it, imported."""
    top = importlib.import_module(package)
    yield top
    for info in pkgutil.walk_packages(top.__path__, prefix=f"{package}."):
        yield importlib.import_module(info.name)


def classes_of(package: str) -> list[type]:
    """The classes that the modules of `package` define, private ones included."""
    found = {
        value
        for module in modules_of(package)
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__
    }
    return sorted(found, key=lambda item: (item.__module__, item.__qualname__))


def structure_faults(package: str, *, own: str = "parafix") -> list[str]:
    """Where a class of `package` is neither abstract nor final, in sentences.

    A class is abstract (its name starts with `Abstract`) or final: nobody subclasses
    it. A method is implemented once: what a base implements, no subclass overrides.
    Bases from outside `own` may be called as they like, but their methods are not
    overridden either.
    """
    faults = []
    for item in classes_of(package):
        for base in item.__mro__[1:]:
            inside = base.__module__.split(".")[0] == own
            if inside and not base.__name__.lstrip("_").startswith("Abstract"):
                faults.append(f"{item.__name__} subclasses the final {base.__name__}")
        for name, value in vars(item).items():
            if name.startswith("__") or not _is_method(value):
                continue
            for base in item.__mro__[1:]:
                inherited = vars(base).get(name)
                if inherited is None or not _is_method(inherited):
                    continue
                if not getattr(inherited, "__isabstractmethod__", False):
                    faults.append(
                        f"{item.__name__}.{name} overrides that of {base.__name__}"
                    )
    return faults


def _is_method(value: object) -> bool:
    if isinstance(value, (property, classmethod, staticmethod)):
        return True
    return callable(value) and not inspect.isclass(value)
