"""`python -m experiments`: all of them, one after the other."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from .common import main, SIZES


NAMES = (
    "deer_speed",
    "deer_difference",
    "deer_classifier",
    "deer_lyapunov",
    "deer_hnn",
)


def run_all(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m experiments",
        description="All experiments: " + ", ".join(NAMES) + ". Each is a command of "
        "its own, with a --help of its own.",
    )
    group = parser.add_mutually_exclusive_group()
    for size, words in SIZES.items():
        group.add_argument(f"--{size}", action="store_true", help=words)
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help="results go to DIR/<name> (default: experiments/<name>/results)",
    )
    parser.add_argument(
        "--plot-only", action="store_true", help="draw again, and run nothing"
    )
    given = parser.parse_args(arguments)
    common = [f"--{size}" for size in SIZES if getattr(given, size)]
    common += ["--plot-only"] if given.plot_only else []
    codes = []
    for name in NAMES:
        out = [] if given.out is None else ["--out", str(given.out / name)]
        codes.append(main(name, [*common, *out]))
    return max(codes)


if __name__ == "__main__":
    sys.exit(run_all())
