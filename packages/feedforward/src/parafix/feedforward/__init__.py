"""Feedforward programs solved for all of their entries at once, and exactly.

The solvers are in `parafix.feedforward.jax` and `parafix.feedforward.torch`. Importing
this package loads no framework.
"""

from ._version import __version__ as __version__


__all__ = ["__version__"]
