"""The hooks of a parafix plugin.

A plugin is a module that marks functions of these names with `parafix.core.hookimpl`,
and a line in its `pyproject.toml` that says where the module is:

```toml
[project.entry-points."parafix.plugins"]
wonder = "parafix_wonder._plugin"
```

The functions yield descriptions made of strings. They should import nothing heavy: they
run whenever anybody lists or looks up a component.
"""

import sys
from collections.abc import Iterable

import pluggy

from ._component import Component, Demo


PROJECT = "parafix"
GROUP = "parafix.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of the hook of its name."""


def plugin_manager() -> pluggy.PluginManager:
    """A manager that knows the hooks below, and no plugin yet."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(sys.modules[__name__])
    return manager


@hookspec
def parafix_rootfinders() -> Iterable[Component]:  # pyright: ignore[reportReturnType]
    """Yields rootfinders, called as `target(rtol=..., atol=..., **options)`.

    ```python
    from parafix.core import Component, hookimpl


    @hookimpl
    def parafix_rootfinders():
        yield Component(
            "rootfinder",
            "wonder",
            "jax",
            "parafix_wonder.jax:Wonder",
            summary="one line for `parafix list`",
        )
    ```
    """


@hookspec
def parafix_scans() -> Iterable[Component]:  # pyright: ignore[reportReturnType]
    """Yields scans, called as `target()`.

    ```python
    from parafix.core import Component, hookimpl


    @hookimpl
    def parafix_scans():
        yield Component("scan", "wonder", "jax", "parafix_wonder.jax:WonderScan")
    ```
    """


@hookspec
def parafix_adjoints() -> Iterable[Component]:  # pyright: ignore[reportReturnType]
    """Yields adjoints, called as `target()`.

    ```python
    from parafix.core import Component, hookimpl


    @hookimpl
    def parafix_adjoints():
        yield Component("adjoint", "wonder", "jax", "parafix_wonder.jax:WonderAdjoint")
    ```
    """


@hookspec
def parafix_demos() -> Iterable[Demo]:  # pyright: ignore[reportReturnType]
    """Yields demonstrations, called as `target(argv)`, which return an exit code.

    ```python
    from parafix.core import Demo, hookimpl


    @hookimpl
    def parafix_demos():
        yield Demo("wonder", "parafix_wonder._demo:main", "a thousand steps at once")
    ```
    """
