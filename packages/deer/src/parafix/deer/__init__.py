"""DEER: a non-linear recurrence solved for all of its steps at once, by Newton.

The solver is in `parafix.deer.jax`. Importing this package loads no framework.
"""

from ._version import __version__ as __version__


__all__ = ["__version__"]
