"""`parafix cite`: the papers behind components."""

from collections.abc import Sequence

from ._component import bibtex_key, Component
from ._discovery import normalise
from ._errors import UnknownComponentError
from ._lookup import close_matches


def cited(name: str, components: Sequence[Component]) -> list[Component]:
    """The components that `name` or `"distribution:name"` may mean, of every kind.

    Raises [`parafix.core.UnknownComponentError`][] if there are none.
    """
    distribution, colon, short = name.rpartition(":")
    found = [
        item
        for item in components
        if short in item.names
        and (not colon or item.distribution == normalise(distribution))
    ]
    if not found:
        names = sorted({alias for item in components for alias in item.names})
        matches = " or ".join(map(repr, close_matches(short, names)))
        meant = f" (did you mean {matches}?)" if matches else ""
        raise UnknownComponentError(
            f"no component {name!r} is registered{meant}; "
            + (f"the names are: {', '.join(names)}" if names else "there are none")
        )
    return found


def bibliography(components: Sequence[Component]) -> list[str]:
    """The BibTeX entries of the components, each key once, in the order given."""
    entries: dict[str, str] = {}
    for item in components:
        for entry in item.cite:
            entries.setdefault(bibtex_key(entry), entry.strip())
    return list(entries.values())
