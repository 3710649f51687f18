"""Copies of modules in which some parts compute otherwise.

A library composes transforms by its own code, and that code is run: on a copy of the
modules on the way to a part that is inverted by a causal solve. The copy shares all
parameters, and the original is left as it is.
"""

from collections.abc import Callable
from typing import TypeVar

from torch import nn


_Object = TypeVar("_Object")


def shallow(x: _Object, **attributes) -> _Object:
    """A copy of `x` that shares all it has, with some attributes of its own."""
    new = object.__new__(type(x))
    new.__dict__.update(x.__dict__, **attributes)
    return new


def exchanged(
    module: nn.Module, stand_in: Callable[[nn.Module], nn.Module | None]
) -> nn.Module:
    """`module` with those parts exchanged for which `stand_in` returns another."""
    memo = {}

    def visit(part):
        if id(part) not in memo:
            memo[id(part)] = stand_in(part) or rebuilt(part)
        return memo[id(part)]

    def rebuilt(part):
        old = {
            name: child for name, child in part._modules.items() if child is not None
        }
        new = {name: visit(child) for name, child in old.items()}
        if all(new[name] is child for name, child in old.items()):
            return part
        return shallow(part, _modules={**part._modules, **new})

    return visit(module)
