"""`python -m benchmarks`: measures tables, or turns results into Markdown."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from . import report, results
from .tables import load, SUMMARIES


_DESCRIPTION = """\
Side-by-side measurements of parafix and of what it is compared with.

In each case all contestants are first checked against a reference: no ratio is
printed for a wrong answer. Then they are timed in turns after compilation, once each in
a round, each time until the device has finished. A ratio is one of medians, with a 95 %
interval for the median of the ratios taken round by round; it is "within noise" if that
interval holds 1."""

_EPILOG = """\
examples:
  python -m benchmarks --list                     what there is
  python -m benchmarks --quick                    does everything run? (small sizes)
  python -m benchmarks deer-scan                  one table, into benchmarks/results/
  python -m benchmarks deer-scan --only 'forward, B=1 ' --repeats 51
  python -m benchmarks --markdown benchmarks/results/deer-scan-cpu.json

The exit status is 1 if a contestant was wrong or failed, 2 for a wrong command line,
and 0 otherwise, whether or not targets are met: a busy machine is no error.
benchmarks/README.md says how to read a table, and how to add one."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help="default: all of them"
    )
    parser.add_argument("--list", action="store_true", help="name the tables, and stop")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes, 3 rounds: shows that everything runs, and nothing else",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="the whole grid, where a table has more than it shows by default: hours",
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="measure what the threads of this process spend, for a busy machine; says "
        "nothing of what runs on an accelerator, nor of work that is shared out",
    )
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help="rounds (default: by table)"
    )
    parser.add_argument(
        "--patience",
        type=_natural,
        metavar="N",
        help="measure again up to N times while quartiles are more than 10 %% apart "
        "(default: by table)",
    )
    parser.add_argument(
        "--only", metavar="TEXT", help="only cases whose 'group, name' contains TEXT"
    )
    parser.add_argument(
        "--json",
        type=pathlib.Path,
        metavar="PATH",
        help="where to write the result: a file for one table, a folder for several "
        "(default: benchmarks/results/<table>-<device>.json, and nothing for --quick, "
        "--only and --processor-time)",
    )
    parser.add_argument(
        "--markdown",
        type=pathlib.Path,
        nargs="+",
        metavar="FILE",
        help="print results as Markdown; measures nothing",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.list:
        width = max(map(len, SUMMARIES))
        for name, summary in SUMMARIES.items():
            print(f"{name:<{width}}  {summary}")
        return 0
    if given.markdown:
        try:
            records = [results.load(path) for path in given.markdown]
        except ValueError as error:
            parser.error(str(error))
        print("\n".join(map(report.markdown, records)), end="")
        return 0
    if given.quick and given.full:
        parser.error("--quick and --full exclude each other")
    names = given.tables or list(SUMMARIES)
    for name in names:
        if name not in SUMMARIES:
            parser.error(f"no table {name!r}; there are {', '.join(SUMMARIES)}")
    return _run(names, given)


def _run(names, given) -> int:
    # Here, for whoever only reads results needs no progress bars.
    from .runner import all_correct, Options, run_table

    options = Options(
        given.quick,
        given.repeats,
        given.patience,
        given.only,
        given.full,
        given.processor_time,
    )
    correct = True
    for name in names:
        record = run_table(
            name, load(name), options, lambda text: print(text, flush=True)
        )
        correct &= all_correct(record)
        path = _destination(record, given.json, options, len(names))
        if path is not None:
            results.save(record, path)
            print(f"written to {path.name}\n", flush=True)
    return 0 if correct else 1


def _destination(record, path, options, count):
    if path is None:
        kept = options.complete and not options.processor_time
        return results.default_path(record) if kept else None
    if count > 1 or path.is_dir():
        return path / results.default_path(record).name
    return path


if __name__ == "__main__":
    sys.exit(main())
