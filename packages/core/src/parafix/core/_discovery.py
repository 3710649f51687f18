"""Reads what the installed plugins register."""

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, TYPE_CHECKING

import pluggy

from ._component import Component, Demo, Kind
from ._errors import one_line
from ._hooks import GROUP, plugin_manager


if TYPE_CHECKING:
    # Costs more than everything else in this package together: loaded on first need.
    from importlib.metadata import EntryPoint


BLOCK_VARIABLE = "PARAFIX_BLOCK_PLUGINS"

_HOOKS: dict[str, Kind | None] = {
    "parafix_rootfinders": "rootfinder",
    "parafix_scans": "scan",
    "parafix_adjoints": "adjoint",
    "parafix_demos": None,
}


@dataclasses.dataclass(frozen=True)
class Failure:
    """Something that a plugin should have registered, and why it could not.

    **Attributes:**

    - `plugin`: the name of the entry point.
    - `distribution`: the normalised name of the distribution it belongs to.
    - `reason`: what went wrong, on one line.
    - `traceback`: where it was raised, if something was raised.
    """

    plugin: str
    distribution: str
    reason: str
    traceback: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True)
class Plugin:
    """An entry point that was found, loaded or not."""

    name: str
    distribution: str
    version: str
    blocked: bool


@dataclasses.dataclass(frozen=True)
class Discovery:
    """All that was found. `unmatched` are blocked names that no plugin has."""

    components: tuple[Component, ...]
    demos: tuple[Demo, ...]
    failures: tuple[Failure, ...]
    plugins: tuple[Plugin, ...]
    unmatched: tuple[str, ...]


def normalise(distribution: str) -> str:
    """The one spelling of a distribution's name: lower case, single hyphens."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def discover() -> Discovery:
    """Loads every plugin that is installed and not blocked.

    `PARAFIX_BLOCK_PLUGINS` blocks plugins, by the names of their entry points or of
    their distributions, separated by commas. A plugin that does not load becomes a
    [`parafix.core.Failure`][]; whatever it raises, the others are loaded.
    """
    listed = os.environ.get(BLOCK_VARIABLE, "").split(",")
    blocked = {normalise(name.strip()) for name in listed if name.strip()}
    return _Loader(blocked).run()


class _Loader:
    """Gathers what plugins yield, and files what goes wrong under the plugin's name."""

    def __init__(self, blocked: set[str]) -> None:
        self._blocked = blocked
        self._components: list[Component] = []
        self._demos: list[Demo] = []
        self._failures: list[Failure] = []
        self._plugins: list[Plugin] = []
        # The keys that each distribution has taken, with the targets behind them.
        self._taken: dict[tuple[str, ...], str] = {}

    def run(self) -> Discovery:
        used: set[str] = set()
        for distribution, version, entry_point in self._entry_points():
            names = {normalise(entry_point.name), distribution}
            blocking = names & self._blocked
            used |= blocking
            plugin = Plugin(entry_point.name, distribution, version, bool(blocking))
            self._plugins.append(plugin)
            if not blocking:
                self._load(plugin, entry_point)
        return Discovery(
            components=tuple(self._components),
            demos=tuple(self._demos),
            failures=tuple(self._failures),
            plugins=tuple(self._plugins),
            unmatched=tuple(sorted(self._blocked - used)),
        )

    def _fail(self, plugin: str, distribution: str, reason: str) -> None:
        self._failures.append(Failure(plugin, distribution, reason))

    def _raised(
        self, plugin: str, distribution: str, doing: str, error: BaseException
    ) -> None:
        from traceback import format_exception

        reason = f"{doing} raised {one_line(error)}"
        where = "".join(format_exception(error))
        self._failures.append(Failure(plugin, distribution, reason, where))

    def _entry_points(self) -> list[tuple[str, str, "EntryPoint"]]:
        """The entry points of the group with their distributions, in a fixed order."""
        from importlib import metadata

        try:
            found = list(metadata.entry_points(group=GROUP))
        except Exception:
            # One malformed entry_points.txt, of any distribution at all, and Python
            # lists no entry point of any other.
            found = list(self._readable_entry_points())
        named: list[tuple[str, str, EntryPoint]] = []
        for entry_point in found:
            try:
                if entry_point.dist is None:
                    raise ValueError("the entry point belongs to no distribution")
                distribution = normalise(entry_point.dist.name)
                version = entry_point.dist.version
            except Exception as error:
                doing = f"reading the distribution of {entry_point.value}"
                self._raised(entry_point.name, "(unknown)", doing, error)
            else:
                named.append((distribution, version, entry_point))
        return sorted(named, key=lambda item: (item[0], item[2].name))

    def _readable_entry_points(self) -> Iterator["EntryPoint"]:
        from importlib import metadata

        # The first distribution of a name on the path hides the others, as in Python's
        # own function.
        seen: set[str] = set()
        for distribution in metadata.distributions():
            name = "(unknown)"
            try:
                name = normalise(distribution.name)
                found = list(distribution.entry_points.select(group=GROUP))
            except Exception as error:
                self._raised("(unreadable)", name, "reading its entry points", error)
                continue
            if name not in seen:
                seen.add(name)
                yield from found

    def _load(self, plugin: Plugin, entry_point: "EntryPoint") -> None:
        # Each plugin has a manager to itself: in a common one, the first hook that
        # raises keeps the results of all the others.
        manager = plugin_manager()
        # A plugin at import may call sys.exit, which is no Exception.
        try:
            loaded = entry_point.load()
            manager.register(loaded, plugin.name)
        except (Exception, SystemExit) as error:
            doing = f"importing {entry_point.value}"
            self._raised(plugin.name, plugin.distribution, doing, error)
            return
        if not manager.get_hookcallers(loaded):
            self._fail(
                plugin.name,
                plugin.distribution,
                f"{entry_point.value} marks no function with parafix.core.hookimpl",
            )
        try:
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            listed = ", ".join(_HOOKS)
            self._fail(
                plugin.name,
                plugin.distribution,
                f"{one_line(error)} (the hooks are {listed})",
            )
        for hook, kind in _HOOKS.items():
            caller = getattr(manager.hook, hook)
            try:
                results = caller()
                for result in results:
                    self._take(plugin, hook, kind, result)
            except (Exception, SystemExit) as error:
                self._raised(plugin.name, plugin.distribution, f"{hook}()", error)
                continue
            # pluggy drops None, which a function without `yield` returns.
            if caller.get_hookimpls() and not results:
                problem = f"{hook}() returned None: is there a `yield` missing?"
                self._fail(plugin.name, plugin.distribution, problem)

    def _take(
        self, plugin: Plugin, hook: str, kind: Kind | None, result: Iterable[Any]
    ) -> None:
        """Keeps what one hook yields, up to where it raises."""
        if isinstance(result, Component | Demo):
            kind_of_result = type(result).__name__
            raise TypeError(f"it must yield {kind_of_result}s, and returned one")
        expected = Demo if kind is None else Component
        for item in result:
            if not isinstance(item, expected):
                problem = f"{hook} yields {expected.__name__}s, but yielded {item!r}"
            elif isinstance(item, Component) and item.kind != kind:
                problem = f"{hook} yields {kind}s, but yielded {item!r}"
            else:
                problem = self._taken_by(plugin.distribution, item)
            if problem:
                self._fail(plugin.name, plugin.distribution, problem)
                continue
            item = dataclasses.replace(item, distribution=plugin.distribution)
            if isinstance(item, Component):
                self._components.append(item)
            else:
                self._demos.append(item)

    def _taken_by(self, distribution: str, item: Component | Demo) -> str:
        """What is wrong if a distribution registers a key twice; else nothing.

        `"distribution:name"` can then not tell the two apart, so the first one stays.
        """
        what = (item.kind, item.backend) if isinstance(item, Component) else ("demo",)
        for name in item.names:
            before = self._taken.get((distribution, *what, name))
            if before is not None:
                return (
                    f"{' '.join(what)} {name!r} is registered twice by {distribution}, "
                    f"as {before} and as {item.target}; the first is kept"
                )
        for name in item.names:
            self._taken[distribution, *what, name] = item.target
        return ""
