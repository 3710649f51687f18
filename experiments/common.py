"""What the experiments share: the command line, the record, the progress bar.

An experiment is a folder with

- `config.py`: `ABOUT`, a few sentences for `--help`; `CONFIGS`, a frozen dataclass of
  numbers for each of the sizes `tiny`, `quick` and `full`;
- `experiment.py`: `steps(config)`, how many times the bar moves, and
  `run(config, advance)`, which yields the JSON objects of the record as they are known;
- `report.py`: of a record, `text(record)` is the table, `complaints(record)` are
  sentences about what is wrong in it, and `draw(record, stem)` writes pictures.

Only `experiment.py` needs a framework, so results can be drawn without one.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
import math
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tqdm

from benchmarks.results import save


Record = dict[str, Any]
Advance = Callable[[str], None]

FORMAT = 1
SIZES = {
    "tiny": "shows in seconds that everything runs, and nothing else",
    "quick": "some minutes on a laptop; the default",
    "full": "everything; hours, and memory to match",
}
_FOLDER = pathlib.Path(__file__).parent


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """The command of the experiment in the folder `name`; returns the exit code.

    0: all went well; 1: something in the results is wrong; 2: a wrong command line.
    """
    config = importlib.import_module(f".{name}.config", __package__)
    parser = _parser(name, config)
    given = parser.parse_args(arguments)
    folder = _FOLDER / name / "results" if given.out is None else given.out
    report = importlib.import_module(f".{name}.report", __package__)
    if given.plot_only:
        paths = sorted(folder.glob(f"{given.size}-*.json"))
        if not paths:
            parser.error(
                f"--plot-only: no {given.size}-*.json in {folder}; run without it first"
            )
        try:
            records = [load(path, name) for path in paths]
        except ValueError as error:
            parser.error(f"--plot-only: {error}")
    else:
        path, record = _run(name, given.size, config.CONFIGS[given.size], folder)
        paths, records = [path], [record]
    wrong = []
    for path, record in zip(paths, records, strict=True):
        print(report.text(record))
        for picture in report.draw(record, path.with_suffix("")):
            print(f"drawn: {picture}")
        wrong += report.complaints(record)
    for sentence in wrong:
        print(f"wrong: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


def _parser(name: str, config: Any) -> argparse.ArgumentParser:
    command = f"python -m experiments.{name}"
    lines = ["what the sizes are:"]
    for size, numbers in config.CONFIGS.items():
        fields = dataclasses.asdict(numbers).items()
        lines.append(f"  {size:<6} " + ", ".join(f"{k}={v}" for k, v in fields))
    lines += [
        "",
        "examples:",
        f"  {command}                   measures at size quick, draws, prints",
        f"  {command} --full --out DIR  everything, somewhere else",
        f"  {command} --plot-only       draws again from the results that are there",
        "",
        "exit code: 0 if all is well, 1 if an answer was wrong, 2 for a wrong command.",
        f"experiments/{name}/README.md says what came out and what it means.",
    ]
    parser = argparse.ArgumentParser(
        command,
        description=config.ABOUT,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_mutually_exclusive_group()
    for size, words in SIZES.items():
        group.add_argument(
            f"--{size}", dest="size", action="store_const", const=size, help=words
        )
    parser.set_defaults(size="quick")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        metavar="DIR",
        help=f"where results and pictures go (default: experiments/{name}/results)",
    )
    parser.add_argument(
        "--plot-only",
        action="store_true",
        help="run nothing: print and draw the results of that size in DIR again",
    )
    return parser


def _run(name: str, size: str, config: Any, folder: pathlib.Path):
    # Here, because drawing needs neither.
    from benchmarks.jax_programs import jax_environment

    experiment = importlib.import_module(f".{name}.experiment", __package__)
    environment = jax_environment()
    record: Record = {
        "format": FORMAT,
        "experiment": name,
        "size": size,
        "command": f"python -m experiments.{name} --{size}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "environment": environment,
        "config": dataclasses.asdict(config),
        "seconds": None,
        "rows": [],
    }
    slug = re.sub(r"[^a-z0-9]+", "-", environment["device"].lower()).strip("-")
    path = folder / f"{size}-{slug}.json"
    start = time.perf_counter()
    with tqdm.tqdm(total=experiment.steps(config), desc=name) as bar:

        def advance(words: str) -> None:
            bar.set_description_str(f"{name}: {words}", refresh=False)
            bar.update()

        for row in experiment.run(config, advance):
            record["rows"].append(row)
            # Whoever stops a long run keeps what it has found.
            save(record, path)
    # A run that was stopped has no duration.
    record["seconds"] = round(time.perf_counter() - start, 1)
    save(record, path)
    print(f"written: {path}")
    return path, record


def load(path: pathlib.Path, name: str) -> Record:
    """A record of the experiment `name`; `ValueError` for any other file."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if (
        not isinstance(record, dict)
        or record.get("experiment") != name
        or record.get("format") != FORMAT
    ):
        raise ValueError(f"{path} is no result of `python -m experiments.{name}`.")
    return record


def number(value: Any, digits: int = 6) -> float | None:
    """A number for JSON, to so many digits; `None` where it is not finite."""
    value = float(value)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def numbers(values: Iterable[Any], digits: int = 6) -> list[float | None]:
    return [number(value, digits) for value in values]


def setting(record: Record) -> str:
    """Device and versions, in one line."""
    found = record["environment"]
    versions = found["versions"]
    device = found["device"]
    if found["platform"] == "cpu":
        device = f"{found['cores']} CPU cores"
    stopped = "" if record["seconds"] is not None else ", STOPPED BEFORE ITS END"
    return (
        f"{device}, jax {versions.get('jax', '?')}, parafix-deer "
        f"{versions.get('parafix-deer', '?')}, load {found['load']} at the start, "
        f"{record['date']}{stopped}"
    )


def heading(record: Record) -> list[str]:
    """The first lines of a report."""
    return ["", record["command"], setting(record), ""]


def markdown(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table; the first column is of words, the others not."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]
