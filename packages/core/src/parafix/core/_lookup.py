"""Says why a name was not found, and what to do about it."""

from collections.abc import Sequence

from ._component import Component
from ._discovery import BLOCK_VARIABLE, Discovery, normalise
from ._known import KNOWN, KNOWN_DEMOS
from ._targets import pip_install


_PARAMETERS = {"rootfinder": "solver=", "scan": "scan=", "adjoint": "adjoint="}


def explain_component(
    kind: str,
    name: str,
    backend: str,
    components: Sequence[Component],
    discovery: Discovery,
) -> str:
    """Why there is no such component: the message of an `UnknownComponentError`."""
    what = f"{kind} {name!r} for {backend}"
    here = [
        alias
        for item in components
        if (item.kind, item.backend) == (kind, backend)
        for alias in item.names
    ]
    known = {
        alias: distribution
        for (other, alias, framework), distribution in KNOWN.items()
        if (other, framework) == (kind, backend)
    }
    chosen, colon, short = name.rpartition(":")
    if short in known and (not colon or normalise(chosen) == known[short]):
        return f"{what} {_absent(known[short], (backend,), discovery)}"
    if colon and short in here:
        providers = {
            item.distribution
            for item in components
            if (item.kind, item.backend) == (kind, backend) and short in item.names
        }
        return (
            f"{chosen or 'nobody'} registers no {kind} {short!r} for {backend}; "
            f"registered by: {', '.join(sorted(providers))}"
        )
    listing = _listing(here, f"{kind}s for {backend}")
    elsewhere = [item for item in components if short in item.names]
    frameworks: set[str] = {item.backend for item in elsewhere if item.kind == kind}
    frameworks |= {key[2] for key in KNOWN if key[:2] == (kind, short)}
    if frameworks:
        present = " and ".join(sorted(frameworks))
        return f"{kind} {short!r} exists for {present}, not for {backend}; {listing}"
    kinds = {item.kind for item in elsewhere if item.backend == backend}
    if kinds:
        other = min(kinds)
        return (
            f"{short!r} is no {kind} but the name of another kind of component, "
            f"{other} (for `{_PARAMETERS[other]}`); {listing}"
        )
    return (
        f"no {what} is registered{_suggestion(short, here, known, (backend,))}; "
        f"{listing}{_caveat(discovery)}"
    )


def explain_demo(name: str, demos: Sequence[str], discovery: Discovery) -> str:
    """Why there is no such demo: the message of an `UnknownComponentError`."""
    _, _, short = name.rpartition(":")
    if short in KNOWN_DEMOS and short not in demos:
        distribution, extras = KNOWN_DEMOS[short]
        return f"demo {name!r} {_absent(distribution, extras, discovery)}"
    return (
        f"no demo {name!r} is registered{_suggestion(short, demos, {}, ())}; "
        f"{_listing(demos, 'demos')}{_caveat(discovery)}"
    )


def close_matches(name: str, names: Sequence[str]) -> list[str]:
    """The names that a typo may have meant, the closest first."""
    import difflib

    def plain(word: str) -> str:
        return word.lower().replace("_", "-").replace(" ", "-")

    spelt = {plain(candidate): candidate for candidate in names}
    found = difflib.get_close_matches(plain(name), list(spelt), n=3, cutoff=0.6)
    return [spelt[match] for match in found]


def _absent(distribution: str, extras: tuple[str, ...], discovery: Discovery) -> str:
    """Why a name that is known to belong to a distribution is not there."""
    comes = f"comes with {distribution}, which is"
    for plugin in discovery.plugins:
        if plugin.distribution == distribution and plugin.blocked:
            return f"{comes} installed but blocked by {BLOCK_VARIABLE}"
    for failure in discovery.failures:
        if failure.distribution == distribution:
            return (
                f"{comes} installed but did not load: {failure.reason} (more from "
                "`parafix doctor`)"
            )
    for plugin in discovery.plugins:
        if plugin.distribution == distribution:
            return (
                f"{comes} installed, but its version {plugin.version} does not have "
                f"it: pip install --upgrade {distribution}"
            )
    return f"{comes} not installed: {pip_install(distribution, *extras)}"


def _suggestion(
    name: str, here: Sequence[str], known: dict[str, str], extras: tuple[str, ...]
) -> str:
    meant: list[str] = []
    for match in close_matches(name, [*known, *here]):
        if match in here:
            meant.append(repr(match))
        else:
            meant.append(f"{match!r} ({pip_install(known[match], *extras)})")
    return f" (did you mean {' or '.join(meant)}?)" if meant else ""


def _listing(here: Sequence[str], plural: str) -> str:
    if not here:
        return f"there are no {plural} at all"
    return f"the {plural} are: {', '.join(sorted(set(here)))}"


def _caveat(discovery: Discovery) -> str:
    broken = sorted({failure.plugin for failure in discovery.failures})
    if not broken:
        return ""
    return (
        f" (what these plugins should have registered may be missing: "
        f"{', '.join(broken)}; `parafix doctor` says why)"
    )
