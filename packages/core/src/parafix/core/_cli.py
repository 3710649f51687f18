"""The `parafix` command."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ._component import BACKENDS, KINDS
from ._errors import (
    AmbiguousComponentError,
    ComponentImportError,
    UnknownComponentError,
)
from ._known import KNOWN_DEMOS
from ._lookup import close_matches
from ._registry import default_registry, Registry
from ._table import table
from ._targets import describe, load_target, missing_library, pip_install
from ._version import __version__


_DESCRIPTION = """\
See what parafix and its plugins have to offer, and whether it works here."""

_EPILOG = """\
examples:
  parafix list                         everything that can be asked for by name
  parafix list --kind scan             only the scans, as in scan="blocked"
  parafix list --backend jax --json    for other programs to read
  parafix doctor                       versions, devices, what loads and what does not
  parafix demo                         the demos that are installed
  parafix demo deer --help             the options of one demo
  parafix cite deer >> paper.bib       the papers behind a solver

environment:
  PARAFIX_BLOCK_PLUGINS=name,name      leave these plugins out, each by the name of its
                                       entry point or of its distribution
"""


class _UsageError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One line instead of argparse's usage: the usage is long, the mistake is short.
        raise _UsageError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the `parafix` command and returns its exit code.

    0 is success; 1: something is broken or not installed; 2: the command line asks for
    something that does not exist. A demo returns codes of its own, and may raise
    `SystemExit`, as argparse does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        # Here, because at exit a closed pipe would end in a traceback.
        sys.stdout.flush()
        return code
    except (_UsageError, UnknownComponentError, AmbiguousComponentError) as error:
        return _complain(str(error), 2)
    except ComponentImportError as error:
        return _complain(str(error), 1)
    except BrokenPipeError:
        # As in `parafix list | head`. What is still buffered must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: list[str]) -> int:
    # Everything after the name of a demo is the demo's, `--help` too, so argparse must
    # not see it.
    if len(arguments) > 1 and arguments[0] == "demo" and arguments[1][:1] != "-":
        return _demo(arguments[1], arguments[2:])
    parser, commands = _parsers()
    if not arguments:
        parser.print_help()
        return 0
    if arguments[0][:1] != "-" and arguments[0] not in commands:
        matches = " or ".join(map(repr, close_matches(arguments[0], commands)))
        meant = f" (did you mean {matches}?)" if matches else ""
        raise _UsageError(
            f"no command {arguments[0]!r}{meant}; the commands are: "
            f"{', '.join(commands)}"
        )
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as stop:
        # --help and --version have printed what they print.
        return int(stop.code or 0)
    run: Callable[[argparse.Namespace], int] = parsed.run
    return run(parsed)


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"parafix: {' '.join(message.split())}\n")
    return code


def _parsers() -> tuple[argparse.ArgumentParser, list[str]]:
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        "parafix", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=layout
    )
    parser.add_argument(
        "--version", action="version", version=f"parafix-core {__version__}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "list",
        help="what is registered, and by which distribution",
        description="Lists every rootfinder, scan and adjoint that has a name.",
    )
    command.add_argument("--kind", choices=KINDS, help="only this kind")
    command.add_argument("--backend", choices=BACKENDS, help="only this backend")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_list)

    command = commands.add_parser(
        "doctor",
        help="what is installed here, and whether it works",
        description="Prints versions and devices, loads every plugin and component, "
        "and says what is broken. The exit code is then 1.",
    )
    command.set_defaults(run=_doctor)

    command = commands.add_parser(
        "demo",
        usage="parafix demo [NAME [ARGUMENT ...]]",
        help="run a demo, or list them",
        description="Runs a demo. Without a name, lists them. What follows the name is "
        "for the demo: `parafix demo NAME --help` shows its options.",
    )
    command.set_defaults(run=_list_demos)

    command = commands.add_parser(
        "cite",
        help="the papers behind components, as BibTeX",
        description="Prints the BibTeX entries of components, each once.",
    )
    command.add_argument(
        "name", nargs="+", metavar="NAME", help="a name, or distribution:name"
    )
    command.set_defaults(run=_cite)
    return parser, list(commands.choices)


def _list(parsed: argparse.Namespace) -> int:
    registry = default_registry()
    found = [
        item
        for item in registry.components()
        if parsed.kind in (None, item.kind) and parsed.backend in (None, item.backend)
    ]
    if parsed.json:
        print(json.dumps([dataclasses.asdict(item) for item in found], indent=2))
    else:
        rows = [("KIND", "NAME", "BACKEND", "DISTRIBUTION", "SUMMARY")]
        for item in found:
            name = ", ".join(item.names)
            rows.append(
                (item.kind, name, item.backend, item.distribution, item.summary)
            )
        print("\n".join(table(rows)) if found else "nothing is registered")
    _warn_of_failures(registry)
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from ._doctor import print_report

    return print_report(default_registry())


def _list_demos(parsed: argparse.Namespace) -> int:
    registry = default_registry()
    demos = registry.demos()
    rows = [(demo.name, demo.distribution, demo.summary) for demo in demos]
    if rows:
        print("\n".join(table([("NAME", "DISTRIBUTION", "SUMMARY"), *rows])))
        print(f"\nrun one:      parafix demo {demos[0].name}")
        print(f"its options:  parafix demo {demos[0].name} --help")
    else:
        commands = [
            pip_install(distribution, *extras)
            for distribution, extras in KNOWN_DEMOS.values()
        ]
        print(f"no demo is installed; to get some: {' or '.join(commands)}")
    _warn_of_failures(registry)
    return 0


def _demo(name: str, arguments: list[str]) -> int:
    demo = default_registry().find_demo(name)
    run: Callable[[list[str]], int | None] = load_target(demo)
    try:
        return run(arguments) or 0
    except ModuleNotFoundError as error:
        # A demo may import what it needs when it knows its options.
        missing = missing_library(error, demo.distribution)
        if not missing:
            raise
        return _complain(f"{describe(demo)} {missing}", 1)
    except KeyboardInterrupt:
        return 130


def _cite(parsed: argparse.Namespace) -> int:
    from ._cite import bibliography, cited

    registry = default_registry()
    found = [cited(name, registry.components()) for name in parsed.name]
    entries = bibliography([item for items in found for item in items])
    if entries:
        print("\n\n".join(entries))
    for name, items in zip(parsed.name, found, strict=True):
        if not any(item.cite for item in items):
            sys.stderr.write(f"parafix: {name} names no paper\n")
    return 0


def _warn_of_failures(registry: Registry) -> None:
    broken = {
        (failure.plugin, failure.distribution)
        for failure in registry.discovery().failures
    }
    if broken:
        plugins = "1 plugin is" if len(broken) == 1 else f"{len(broken)} plugins are"
        sys.stderr.write(f"parafix: {plugins} broken; `parafix doctor` says why\n")
