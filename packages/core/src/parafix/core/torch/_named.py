from typing import Any, Literal

from .. import get


_KINDS: dict[str, Literal["rootfinder", "scan", "adjoint"]] = {
    "solver": "rootfinder",
    "scan": "scan",
    "adjoint": "adjoint",
}


def named(argument: str, name: str) -> Any:
    """The class or factory that `name`, given as `argument`, is registered under."""
    try:
        return get(_KINDS[argument], name, backend="torch")
    except (LookupError, ImportError) as e:
        raise type(e)(f"`{argument}={name!r}`: {e}") from e
