"""What parafix-feedforward registers."""

from collections.abc import Iterator
from typing import Final

from parafix.core import Component, hookimpl


# name -> (class, summary, papers)
_SWEEPS: Final[dict[str, tuple[str, str, tuple[str, ...]]]] = {}


@hookimpl
def parafix_rootfinders() -> Iterator[Component]:
    for backend in ("jax", "torch"):
        for name, (attribute, summary, cite) in _SWEEPS.items():
            yield Component(
                "rootfinder",
                name,
                backend,
                f"parafix.feedforward.{backend}:{attribute}",
                summary=summary,
                cite=cite,
            )
