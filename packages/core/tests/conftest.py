import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from parafix.core import _registry
from parafix.core._registry import Registry


class FakeSite:
    """A folder on `sys.path` with distributions in it, as pip would have left them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        distribution: str,
        plugin: str | None = None,
        *,
        entry_point: str | None = None,
        version: str = "1.0",
        extras: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        raw_entry_points: str | None = None,
    ) -> str:
        """Installs a distribution, and returns the name of its package.

        `plugin` is the source of its `_plugin.py`; `files` are further modules, by
        paths relative to the package.
        """
        package = distribution.lower().replace("-", "_").replace(".", "_")
        info = self.path / f"{package}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}"]
        lines += [
            f"Version: {version}",
            *(f"Provides-Extra: {name}" for name in extras),
        ]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        if raw_entry_points is None and plugin is not None:
            name = entry_point or package
            raw_entry_points = f"[parafix.plugins]\n{name} = {package}._plugin\n"
        if raw_entry_points is not None:
            (info / "entry_points.txt").write_text(raw_entry_points)
        sources = {"__init__.py": "", **(files or {})}
        if plugin is not None:
            sources["_plugin.py"] = plugin
        for name, source in sources.items():
            file = self.path / package / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        importlib.invalidate_caches()
        return package

    def add_component(
        self,
        distribution: str,
        name: str,
        *,
        kind: str = "rootfinder",
        backend: str = "jax",
        options: str = "",
        target_source: str = "class Thing:\n    pass\n",
        **others: Any,
    ) -> str:
        """Installs a distribution that registers one component, `_target:Thing`."""
        package = distribution.lower().replace("-", "_").replace(".", "_")
        plugin = (
            "from parafix.core import Component, hookimpl\n\n\n"
            "@hookimpl\n"
            f"def parafix_{kind}s():\n"
            f"    yield Component({kind!r}, {name!r}, {backend!r}, "
            f"'{package}._target:Thing', {options})\n"
        )
        files = {"_target.py": target_source}
        return self.add(distribution, plugin, files=files, **others)

    def add_demo(self, distribution: str, name: str, source: str, **others: Any) -> str:
        """Installs a distribution with one demo, `_demo:main`."""
        package = distribution.lower().replace("-", "_").replace(".", "_")
        plugin = (
            "from parafix.core import Demo, hookimpl\n\n\n"
            "@hookimpl\n"
            "def parafix_demos():\n"
            f"    yield Demo({name!r}, '{package}._demo:main', 'shows {name}')\n"
        )
        files = {"_demo.py": source}
        return self.add(distribution, plugin, files=files, **others)


@pytest.fixture
def site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry
) -> Iterator[FakeSite]:
    """An empty folder on `sys.path`; what was imported from it is forgotten after."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield FakeSite(folder)
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None) or ""
        if origin.startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry that has loaded nothing, in place of the one that everybody uses."""
    monkeypatch.delenv("PARAFIX_BLOCK_PLUGINS", raising=False)
    fresh = Registry()
    monkeypatch.setattr(_registry, "_registry", fresh)
    return fresh


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes `import name` fail as it does where `name` is not installed."""

    def hide(name: str) -> None:
        monkeypatch.setitem(sys.modules, name, None)

    return hide
