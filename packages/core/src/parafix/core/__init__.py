"""The light half of parafix: what is registered, under which name, and by whom.

A plugin yields [`parafix.core.Component`][]s from functions marked with
[`parafix.core.hookimpl`][]; [`parafix.core.get`][] finds one by name, and imports it
then. Importing this package loads neither JAX nor PyTorch nor NumPy; the numerical
halves are `parafix.core.jax` and `parafix.core.torch`.
"""

from ._component import Component as Component, Demo as Demo
from ._discovery import Failure as Failure
from ._errors import (
    AmbiguousComponentError as AmbiguousComponentError,
    ComponentImportError as ComponentImportError,
    MissingFrameworkError as MissingFrameworkError,
    UnknownComponentError as UnknownComponentError,
)
from ._hooks import hookimpl as hookimpl
from ._registry import (
    components as components,
    demos as demos,
    failures as failures,
    get as get,
    register as register,
)
from ._version import __version__ as __version__


__all__ = [
    "AmbiguousComponentError",
    "Component",
    "ComponentImportError",
    "Demo",
    "Failure",
    "MissingFrameworkError",
    "UnknownComponentError",
    "__version__",
    "components",
    "demos",
    "failures",
    "get",
    "hookimpl",
    "register",
]
