"""The descriptions that plugins hand to the registry."""

import dataclasses
import re
from collections.abc import Iterable
from typing import get_args, Literal


Kind = Literal["rootfinder", "scan", "adjoint"]
Backend = Literal["jax", "torch"]

KINDS: tuple[Kind, ...] = get_args(Kind)
BACKENDS: tuple[Backend, ...] = get_args(Backend)

_NAME = re.compile(r"[a-z0-9]+([-_][a-z0-9]+)*")
_BIBTEX = re.compile(r"@[A-Za-z]+\s*\{\s*([^\s,{}]+)\s*,.*\}", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Component:
    """A rootfinder, a scan or an adjoint that can be asked for by name.

    It only describes: the module that `target` names is imported when somebody asks for
    the component.

    **Arguments:**

    - `kind`: `"rootfinder"`, `"scan"` or `"adjoint"`.
    - `name`: what users write, as in `solver="deer"`. Lower-case letters and digits,
        with single hyphens or underscores between them.
    - `backend`: `"jax"` or `"torch"`.
    - `target`: a class or a factory, as `"package.module:Attribute"`.
    - `summary`: one line for `parafix list`.
    - `aliases`: further names. A clash of aliases counts like a clash of names.
    - `cite`: BibTeX entries, whole, for `parafix cite`.
    - `distribution`: the registry fills this in with the normalised name of the
        distribution that registered the component. What a plugin writes is replaced.

    **Raises:** `ValueError` or `TypeError` if a field cannot be what it says.
    """

    kind: Kind
    name: str
    backend: Backend
    target: str
    _: dataclasses.KW_ONLY
    summary: str = ""
    aliases: tuple[str, ...] = ()
    cite: tuple[str, ...] = ()
    distribution: str = ""

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("backend", self.backend, BACKENDS)
        _check_name("name", self.name)
        _check_target(self.target)
        _check_line("summary", self.summary)
        # Lists are accepted and made tuples, so that a component can be hashed.
        object.__setattr__(self, "aliases", _strings("aliases", self.aliases))
        object.__setattr__(self, "cite", _strings("cite", self.cite))
        for alias in self.aliases:
            _check_name("alias", alias)
        if len(set(self.names)) < len(self.names):
            raise ValueError(
                f"the name and the aliases of {self.name!r} must differ from each "
                f"other, got aliases={self.aliases!r}"
            )
        for entry in self.cite:
            bibtex_key(entry)

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then the aliases."""
        return (self.name, *self.aliases)


@dataclasses.dataclass(frozen=True)
class Demo:
    """A demonstration that `parafix demo NAME` runs.

    **Arguments:**

    - `name`: as for a [`parafix.core.Component`][].
    - `target`: `"package.module:function"`. The function is called with the list of
        arguments that follow the name on the command line, and returns an exit code.
    - `summary`: one line for `parafix demo`.
    - `distribution`: the registry fills this in, as for a component.

    **Raises:** `ValueError` or `TypeError` if a field cannot be what it says.
    """

    name: str
    target: str
    summary: str
    _: dataclasses.KW_ONLY
    distribution: str = ""

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        _check_target(self.target)
        _check_line("summary", self.summary)

    @property
    def names(self) -> tuple[str, ...]:
        """The name alone: a demo has no aliases."""
        return (self.name,)


def check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises `ValueError`, listing `choices`, if `value` is none of them."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{field} must be one of {listed}, got {value!r}")


def bibtex_key(entry: str) -> str:
    """The citation key of one BibTeX entry.

    Raises `ValueError` if `entry` is not one whole entry with balanced braces.
    """
    match = _BIBTEX.fullmatch(entry.strip())
    depth = entry.count("{") - entry.count("}")
    if match is None or depth != 0:
        raise ValueError(
            "cite must hold whole BibTeX entries, '@type{key, ...}' with balanced "
            f"braces, got {entry!r}"
        )
    return match[1]


def _check_name(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a string, got {value!r}")
    if _NAME.fullmatch(value) is None:
        raise ValueError(
            f"{field} must be lower-case letters and digits, with single hyphens or "
            f"underscores between them, got {value!r}"
        )


def _check_target(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"target must be a string, got {value!r}")
    module, colon, attribute = value.partition(":")
    parts = [*module.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ValueError(
            f"target must look like 'package.module:Attribute', got {value!r}"
        )


def _check_line(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a string, got {value!r}")
    if len(value.splitlines()) > 1:
        raise ValueError(f"{field} must be a single line, got {value!r}")


def _strings(field: str, value: object) -> tuple[str, ...]:
    # A lone string is iterable too, and would be read letter by letter.
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{field} must be a tuple of strings, got {value!r}")
    strings: list[str] = []
    for item in value:  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(item, str):
            raise TypeError(f"{field} must be a tuple of strings, got {value!r}")
        strings.append(item)
    return tuple(strings)
