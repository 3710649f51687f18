"""Finds components by name."""

import dataclasses
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ._component import (
    Backend,
    BACKENDS,
    check_choice,
    Component,
    Demo,
    Kind,
    KINDS,
)
from ._discovery import discover, Discovery, Failure, normalise
from ._errors import AmbiguousComponentError, UnknownComponentError
from ._lookup import explain_component, explain_demo
from ._targets import describe, load_target


# What stands for a distribution where `register` was called by hand.
LOCAL = "local"

_Key = tuple[str, str, str]
_Item = TypeVar("_Item", Component, Demo)


class Registry:
    """What plugins have registered, and what this process has registered by hand.

    Plugins are loaded on first need, once, whichever thread asks. There is one instance
    in normal use, behind the functions below.
    """

    def __init__(self) -> None:
        # Two locks: plugins are imported under the first, so that a module which calls
        # `register` while another thread loads plugins must not wait for it.
        self._loading_lock = threading.RLock()
        self._lock = threading.Lock()
        self._loading = False
        self._discovery: Discovery | None = None
        self._tokens = itertools.count()
        self._local: dict[int, Component] = {}
        self._changes = 0
        self._index: dict[_Key, tuple[Component, ...]] | None = None

    def discovery(self) -> Discovery:
        """What the plugins registered. Loads them if that has not happened yet."""
        if self._discovery is None:
            with self._loading_lock:
                if self._loading:
                    raise RuntimeError(
                        "a plugin asked for components while plugins are being loaded; "
                        "it should ask in the function that needs them"
                    )
                if self._discovery is None:
                    self._loading = True
                    try:
                        self._discovery = discover()
                    finally:
                        self._loading = False
        return self._discovery

    def components(self) -> tuple[Component, ...]:
        """All components, by kind, name, backend and distribution."""
        installed = self.discovery().components
        with self._lock:
            local = tuple(self._local.values())
        return tuple(sorted(dict.fromkeys((*installed, *local)), key=_order))

    def demos(self) -> tuple[Demo, ...]:
        """All demos, by name and distribution."""
        demos = self.discovery().demos
        return tuple(sorted(demos, key=lambda demo: (demo.name, demo.distribution)))

    def register(self, component: Component) -> Callable[[], None]:
        """Adds a component by hand; see the function below."""
        if not isinstance(component, Component):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"register takes a Component, got {component!r}")
        component = dataclasses.replace(component, distribution=LOCAL)
        with self._lock:
            for other in self._local.values():
                shared = set(_keys(other)) & set(_keys(component))
                if shared and other != component:
                    raise ValueError(
                        f"{describe(other)} is registered already, as {other.target}; "
                        "call what `register` returned then, to undo it first"
                    )
            token = next(self._tokens)
            self._local[token] = component
            self._changed()

        def undo() -> None:
            with self._lock:
                self._local.pop(token, None)
                self._changed()

        return undo

    def find(self, kind: Kind, name: str, backend: Backend) -> Component:
        """The description behind a name, without importing its target."""
        check_choice("kind", kind, KINDS)
        check_choice("backend", backend, BACKENDS)
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"the name of a {kind} must be a string, got {name!r}")
        _, _, short = name.rpartition(":")
        found = _chosen(name, self._by_key().get((kind, short, backend), ()))
        if not found:
            raise UnknownComponentError(
                explain_component(
                    kind, name, backend, self.components(), self.discovery()
                )
            )
        if len(found) > 1:
            raise AmbiguousComponentError(
                _ambiguous(f"{kind} {short!r} for {backend}", short, found)
            )
        return found[0]

    def find_demo(self, name: str) -> Demo:
        """The demo behind a name, without importing its target."""
        _, _, short = name.rpartition(":")
        demos = self.demos()
        found = _chosen(name, [demo for demo in demos if demo.name == short])
        if not found:
            names = [demo.name for demo in demos]
            raise UnknownComponentError(explain_demo(name, names, self.discovery()))
        if len(found) > 1:
            raise AmbiguousComponentError(_ambiguous(f"demo {short!r}", short, found))
        return found[0]

    def conflicts(self) -> tuple[str, ...]:
        """One sentence for every key that several distributions registered."""
        sentences = [
            _ambiguous(f"{kind} {name!r} for {backend}", name, found)
            for (kind, name, backend), found in self._by_key().items()
            if len(found) > 1
        ]
        by_name: dict[str, list[Demo]] = {}
        for demo in self.demos():
            by_name.setdefault(demo.name, []).append(demo)
        sentences += [
            _ambiguous(f"demo {name!r}", name, found)
            for name, found in by_name.items()
            if len(found) > 1
        ]
        return tuple(sentences)

    def _changed(self) -> None:
        self._changes += 1
        self._index = None

    def _by_key(self) -> Mapping[_Key, tuple[Component, ...]]:
        index = self._index
        if index is None:
            changes = self._changes
            index = dict[_Key, tuple[Component, ...]]()
            for item in self.components():
                for key in _keys(item):
                    index[key] = (*index.get(key, ()), item)
            with self._lock:
                if changes == self._changes:
                    self._index = index
        return index


def _keys(item: Component) -> list[_Key]:
    return [(item.kind, name, item.backend) for name in item.names]


def _order(item: Component) -> tuple[int, str, str, str]:
    return KINDS.index(item.kind), item.name, item.backend, item.distribution


def _chosen(name: str, found: Sequence[_Item]) -> Sequence[_Item]:
    distribution, colon, _ = name.rpartition(":")
    if not colon:
        return found
    return [item for item in found if item.distribution == normalise(distribution)]


def _ambiguous(what: str, name: str, found: Sequence[Component | Demo]) -> str:
    distributions = [item.distribution for item in found]
    choices = " or ".join(f"'{distribution}:{name}'" for distribution in distributions)
    return (
        f"{what} is registered by {' and by '.join(distributions)}: write {choices} to "
        "choose"
    )


_registry = Registry()


def default_registry() -> Registry:
    """The registry behind the functions of `parafix.core`."""
    return _registry


def components(
    kind: Kind | None = None, backend: Backend | None = None
) -> tuple[Component, ...]:
    """The components that are registered, sorted by kind, name and backend.

    The `distribution` of each says who registered it: the normalised name of an
    installed distribution, or `"local"` for [`parafix.core.register`][].

    **Arguments:**

    - `kind`: only `"rootfinder"`s, `"scan"`s or `"adjoint"`s.
    - `backend`: only those for `"jax"` or for `"torch"`.

    **Raises:** `ValueError` for another kind or backend.
    """
    if kind is not None:
        check_choice("kind", kind, KINDS)
    if backend is not None:
        check_choice("backend", backend, BACKENDS)
    return tuple(
        item
        for item in _registry.components()
        if kind in (None, item.kind) and backend in (None, item.backend)
    )


def demos() -> tuple[Demo, ...]:
    """The demos that are registered, sorted by name."""
    return _registry.demos()


def get(kind: Kind, name: str, *, backend: Backend) -> Any:
    """Imports the component of a name, and returns its class or factory.

    **Arguments:**

    - `kind`: `"rootfinder"`, `"scan"` or `"adjoint"`.
    - `name`: its name or an alias, or `"distribution:name"` where several
        distributions register the same name.
    - `backend`: `"jax"` or `"torch"`.

    **Raises:**

    - `ValueError` for another kind or backend, `TypeError` for a name that is not a
        string.
    - [`parafix.core.UnknownComponentError`][], a `LookupError`, if nothing installed
        has the name. The message says what to install, or which names are close.
    - [`parafix.core.AmbiguousComponentError`][], a `LookupError`, if several
        distributions have the name.
    - [`parafix.core.MissingFrameworkError`][], an `ImportError`, if JAX or PyTorch is
        not installed. The message says which extra brings it.
    - [`parafix.core.ComponentImportError`][], an `ImportError`, if the target fails to
        import for another reason.
    """
    return load_target(_registry.find(kind, name, backend))


def register(component: Component) -> Callable[[], None]:
    """Registers a component in this process, and returns a function that undoes it.

    Its `distribution` becomes `"local"`. To register the same description again is
    allowed, so that a cell of a notebook can be run twice.

    **Raises:** `ValueError` if another component was registered by hand under one of
    its names, `TypeError` if it is no [`parafix.core.Component`][].
    """
    return _registry.register(component)


def failures() -> tuple[Failure, ...]:
    """The plugins that did not load, or not whole, and why."""
    return _registry.discovery().failures
