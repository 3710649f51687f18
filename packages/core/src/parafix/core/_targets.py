"""Imports what a description names, and says what to install if that cannot be done."""

import importlib
from typing import Any, Final

from ._component import Component, Demo
from ._errors import ComponentImportError, MissingFrameworkError, one_line


# Libraries that a bare installation does not bring -> the extra that does.
_EXTRAS: Final = {
    "diffrax": "jax",
    "equinox": "jax",
    "jax": "jax",
    "jaxlib": "jax",
    "jaxtyping": "jax",
    "lineax": "jax",
    "matplotlib": "demo",
    "optimistix": "jax",
    "torch": "torch",
    "tqdm": "demo",
}


def pip_install(distribution: str, *extras: str) -> str:
    """The command that installs a distribution with extras."""
    if not extras:
        return f"pip install {distribution}"
    return f"pip install '{distribution}[{','.join(extras)}]'"


def describe(item: Component | Demo) -> str:
    """What messages call a component or a demo."""
    if isinstance(item, Component):
        return f"{item.kind} {item.name!r} for {item.backend}"
    return f"demo {item.name!r}"


def load_target(item: Component | Demo) -> Any:
    """Imports the target of a component or of a demo.

    Raises [`parafix.core.MissingFrameworkError`][] if an optional library is not
    installed, and [`parafix.core.ComponentImportError`][] if the import fails for
    another reason, with that as its cause.
    """
    module, _, attributes = item.target.partition(":")
    try:
        target: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            target = getattr(target, attribute)
    except (Exception, SystemExit) as error:
        missing = missing_library(error, item.distribution)
        if missing:
            raise MissingFrameworkError(f"{describe(item)} {missing}") from error
        raise ComponentImportError(
            f"{describe(item)} is registered by {item.distribution}, but its target "
            f"{item.target} cannot be imported: {one_line(error)}"
        ) from error
    return target


def missing_library(error: BaseException, distribution: str) -> str:
    """'needs jax, which is ...' if an optional library caused the error, else ''."""
    # jax.foo missing from a jax that is there has another cause, and another remedy.
    if not isinstance(error, ModuleNotFoundError) or error.name not in _EXTRAS:
        return ""
    extra = _EXTRAS[error.name]
    if extra in _extras_of(distribution):
        command = pip_install(distribution, extra)
    elif extra == "demo":
        command = pip_install(error.name)
    else:
        command = pip_install("parafix-core", extra)
    return f"needs {error.name}, which is not installed: {command}"


def _extras_of(distribution: str) -> list[str]:
    from importlib import metadata

    try:
        return metadata.metadata(distribution).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []
