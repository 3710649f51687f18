"""`parafix doctor`: what is installed, and whether it works."""

import importlib
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from ._component import BACKENDS, Component, Demo
from ._discovery import BLOCK_VARIABLE, normalise
from ._errors import ComponentImportError, MissingFrameworkError, one_line
from ._registry import Registry
from ._table import table
from ._targets import describe, load_target, missing_library


_LIBRARIES = (
    "pluggy",
    "numpy",
    "jax",
    "jaxlib",
    "equinox",
    "lineax",
    "optimistix",
    "jaxtyping",
    "diffrax",
    "torch",
    "triton",
    "jax-triton",
)


def report(registry: Registry) -> tuple[list[str], int]:
    """The lines of the report, and how many things are broken.

    A component whose framework is not installed is not broken; a name that two
    distributions register is.
    """
    discovery = registry.discovery()
    lines = ["versions"]
    lines += _columns(
        [("python", platform.python_version()), *_versions(registry), *_libraries()]
    )
    broken = 0

    lines += ["", "devices"]
    rows: list[tuple[str, ...]] = []
    for backend in BACKENDS:
        devices, fine = _devices(backend)
        rows.append((backend, devices))
        broken += not fine
    lines += _columns(rows)

    lines += ["", "scans"]
    lines += _columns([(backend, _scan_of(backend)) for backend in BACKENDS])

    lines += ["", "plugins"]
    rows = []
    for plugin in discovery.plugins:
        failed = sum(
            (failure.plugin, failure.distribution) == (plugin.name, plugin.distribution)
            for failure in discovery.failures
        )
        state = "ok"
        if plugin.blocked:
            state = f"blocked by {BLOCK_VARIABLE}"
        elif failed:
            state = "broken, see below"
        rows.append((plugin.name, f"{plugin.distribution} {plugin.version}", state))
    lines += _columns(rows) or ["  none"]
    for name in discovery.unmatched:
        lines.append(f"  {BLOCK_VARIABLE} names {name!r}, which is no plugin")

    rows = []
    for item in (*registry.components(), *registry.demos()):
        state, fine = _state(item)
        rows.append((describe(item), item.distribution, state))
        broken += not fine
    lines += ["", "components", *(_columns(rows) or ["  none"])]

    broken += len(discovery.failures)
    if discovery.failures:
        lines += ["", "failures"]
    for failure in discovery.failures:
        lines.append(f"  {failure.plugin} ({failure.distribution}): {failure.reason}")
        lines += [f"    {line}" for line in failure.traceback.splitlines()]

    conflicts = registry.conflicts()
    broken += len(conflicts)
    if conflicts:
        lines += ["", "conflicts", *(f"  {sentence}" for sentence in conflicts)]

    things = "1 thing is" if broken == 1 else f"{broken} things are"
    lines += ["", f"{things} broken" if broken else "all is well"]
    return lines, broken


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    return [f"  {line}" for line in table(rows)]


def _versions(registry: Registry) -> Iterator[tuple[str, str]]:
    """Every distribution of parafix, and every other one with a plugin."""
    found = {
        plugin.distribution: plugin.version for plugin in registry.discovery().plugins
    }
    for distribution in metadata.distributions():
        # A damaged installation of something else is not ours to report.
        try:
            name, version = normalise(distribution.name), distribution.version
        except Exception:
            continue
        if name.startswith("parafix-"):
            found.setdefault(name, version)
    yield from sorted(found.items())


def _libraries() -> Iterator[tuple[str, str]]:
    for library in _LIBRARIES:
        try:
            yield library, metadata.version(library)
        except metadata.PackageNotFoundError:
            yield library, "not installed"


def _devices(backend: str) -> tuple[str, bool]:
    """The devices of a framework, or why there are none, and whether that is fine."""
    ask: dict[str, Callable[[Any], list[str]]] = {
        "jax": _jax_devices,
        "torch": _torch_devices,
    }
    try:
        framework = importlib.import_module(backend)
    except ModuleNotFoundError as error:
        if error.name == backend:
            return "not installed", True
        return one_line(error), False
    except Exception as error:
        return one_line(error), False
    # Drivers fail in ways of their own, and the report must go on.
    try:
        return ", ".join(ask[backend](framework)), True
    except Exception as error:
        return one_line(error), False


def _jax_devices(jax: Any) -> list[str]:
    return [
        f"{device.platform}:{device.id} ({device.device_kind})"
        for device in jax.devices()
    ]


def _torch_devices(torch: Any) -> list[str]:
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [
            f"cuda:{index} ({torch.cuda.get_device_name(index)})"
            for index in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def _scan_of(backend: str) -> str:
    """Which scan `"auto"` takes on this device, and why not another."""
    try:
        module = importlib.import_module(f"{__package__}.{backend}._affine_scan")
        return str(module.automatic_choice())
    except Exception as error:
        # That something is broken, the parts before and after this one say.
        missing = missing_library(error, "parafix-core")
        return missing or f"unknown: {one_line(error)}"


def _state(item: Component | Demo) -> tuple[str, bool]:
    """Whether a target can be imported, in words, and whether that is fine."""
    try:
        target = load_target(item)
    except MissingFrameworkError as error:
        return str(error).removeprefix(f"{describe(item)} "), True
    except ComponentImportError as error:
        return f"broken: {one_line(error.__cause__ or error)}", False
    if not callable(target):
        return f"broken: {item.target} cannot be called", False
    return "ok", True


def print_report(registry: Registry) -> int:
    """Prints the report, and returns an exit code: 1 if something is broken."""
    lines, broken = report(registry)
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if broken else 0
