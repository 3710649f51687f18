"""What a run was made with."""

import importlib.metadata
import os
import pathlib
import platform
import re
from typing import Any


_VERSIONS = (
    "parafix-core",
    "parafix-deer",
    "parafix-feedforward",
    "jax",
    "jaxlib",
    "equinox",
    "optimistix",
    "lineax",
    "jaxopt",
    "torch",
    "torchdeq",
    "jax-triton",
    "triton",
    "accelerated-scan",
    "nflows",
    "normflows",
    "zuko",
    "flowjax",
    "optax",
    "seglearn",
    "numpy",
)


def environment(device: str = "cpu", platform_name: str = "cpu") -> dict[str, Any]:
    """Versions, the kind of device, and how busy the machine was at the start.

    **Arguments:**

    - `device`: the kind of device; `"cpu"`, or what its maker calls it.
    - `platform_name`: what the framework calls it: `"cpu"`, `"gpu"`, ...
    """
    return {
        "device": device,
        "platform": platform_name,
        "processor": _processor(),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _VERSIONS if (found := _version(name))},
    }


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor()
