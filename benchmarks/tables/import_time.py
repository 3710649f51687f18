"""What `import parafix.core` costs."""

import functools
import subprocess
import sys
from collections.abc import Iterator

from ..environment import environment
from ..harness import Case, Comparison, Contestant, Effort, Program
from ..table import contestant, Table, Target


HEAVY = ("jax", "torch", "numpy")
BARE = "bare interpreter"
CORE = "import parafix.core"
MILLISECONDS = 50
SOURCES = {
    BARE: "pass",
    CORE: "import parafix.core",
    "import parafix.deer": "import parafix.deer",
    "import numpy": "import numpy",
}


def _run(source: str) -> str:
    """Run `source` in a fresh interpreter, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", source], check=True, capture_output=True, text=True
    )
    return done.stdout


def _heavy(source: str) -> dict[str, str]:
    """Which of the heavy modules `source` loads."""
    test = f"import sys; print(*[x for x in {HEAVY} if x in sys.modules])"
    return {"loads": _run(f"{source}\n{test}").strip() or "none"}


def _build(source: str) -> Program:
    return Program(
        run=functools.partial(_run, source), facts=functools.partial(_heavy, source)
    )


def cases(quick: bool) -> Iterator[Case]:
    del quick
    yield Case(
        "import",
        "fresh interpreters",
        [
            Contestant(name, functools.partial(_build, source))
            for name, source in SOURCES.items()
        ],
        [Comparison(CORE, BARE)],
    )


def _fast(records):
    medians = [contestant(records[0], name)["median"] for name in (CORE, BARE)]
    if None in medians:
        return "not measured", False
    extra = (medians[0] - medians[1]) * 1000
    return f"{extra:.1f} ms", extra < MILLISECONDS


def _light(records):
    loads = contestant(records[0], CORE).get("loads", "unknown")
    return loads, loads == "none"


TABLE = Table(
    "What `import parafix.core` costs",
    "Every run is a process of its own, from its start to its end, with the files in "
    "the cache of the system. `loads` says which of "
    + ", ".join(HEAVY)
    + " are loaded.",
    cases,
    [
        Target(f"{CORE}: less than {MILLISECONDS} ms above a {BARE}", _fast),
        Target(f"{CORE}: loads none of {', '.join(HEAVY)}", _light),
    ],
    environment,
    Effort(repeats=20, patience=1),
)
