"""`parafix demo deer`: a recurrent network over a recording, in parallel over time."""

import argparse
import difflib
import importlib
import math
import os
import pathlib
import sys
from typing import Any, NoReturn

from ._demo_report import UsageError


_PROG = "parafix demo deer"
_PICTURE = "parafix-demo-deer.png"
_FORMATS = (".png", ".pdf", ".svg")
# The names and the smallest step of the dtypes, known without loading a framework.
_EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
_SHORTEST = 10
_OPTIONAL = {
    *("equinox", "jax", "jaxlib", "jaxtyping", "lineax", "numpy", "optimistix"),
    *("matplotlib", "torch", "tqdm"),
}
_BACKENDS = ("jax", "torch")
# How XLA and PyTorch say in a RuntimeError that memory does not suffice.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")

_DESCRIPTION = """\
Runs a recurrent network with random weights over a recording: one step after the other,
and by DEER, which treats all times at once. Compares values, gradients and times, and
draws how the error vanishes. The built-in recording is the membrane potential of a
neuron, 12,000 samples."""

_EPILOG = f"""\
examples:
  {_PROG}                            the built-in recording, a few seconds
  {_PROG} --backend torch            the same network in PyTorch
  {_PROG} --cell lstm --hidden 4     another network
  {_PROG} --length 50000 --batch 1   longer than recorded: repeated
  {_PROG} --dtype float64            tolerance and agreement to 12 digits
  {_PROG} --input my.npy             your own data: (T,), (T, d) or (B, T, d)
  {_PROG} --input my.csv             columns of numbers, time down the rows,
                                               with or without a line of names

exit code:
  0  both ways gave the same numbers
  1  they did not, a solve failed, or something is not installed
  2  the command line or the recording is at fault
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One line instead of argparse's usage: the usage is long, the mistake is short.
        raise UsageError(f"{message}; see `{self.prog} --help`")


def main(argv: list[str] | None = None) -> int:
    """Runs the demo and returns its exit code."""
    options = None
    try:
        options = _parsed(sys.argv[1:] if argv is None else argv)
        if options is None:
            return 0
        run = importlib.import_module("._demo_run", __package__).run
        return run(options, options.backend or _BACKENDS[0])
    except UsageError as error:
        return _complain(str(error), 2)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        # jax.foo missing from a jax that is there has another cause and remedy.
        if name not in _OPTIONAL or sys.modules.get(name) is not None:
            raise
        return _complain(f"needs {name}, which is not installed: {_remedy(options)}", 1)
    except (MemoryError, RuntimeError) as error:
        # The second is how frameworks say it.
        if isinstance(error, RuntimeError) and not any(
            words in str(error) for words in _OUT_OF_MEMORY
        ):
            raise
        remedy = "take a smaller --batch, --length or --hidden, or a --window"
        return _complain(f"the memory of this machine does not suffice; {remedy}", 1)


def _remedy(options: argparse.Namespace | None) -> str:
    """What to install; who named no framework may mean the other one."""
    named = None if options is None else options.backend
    hint = "" if named else f" (for PyTorch: {_PROG} --backend torch)"
    return f"pip install 'parafix-deer[{named or _BACKENDS[0]},demo]'{hint}"


def _complain(message: str, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"{_PROG}: {' '.join(message.split())}\n")
    return code


def _parsed(argv: list[str]) -> argparse.Namespace | None:
    """The options, checked as far as possible without the data; `None` after --help."""
    parser = _parser()
    try:
        options, others = parser.parse_known_args(argv)
    except SystemExit:
        return None
    if others:
        names = [name for action in parser._actions for name in action.option_strings]
        meant = difflib.get_close_matches(others[0].partition("=")[0], names, 1)
        hint = f" (did you mean {meant[0]}?)" if meant else ""
        parser.error(f"unknown argument {others[0]}{hint}")
    eps = _EPS[options.dtype]
    if options.tolerance is not None and options.tolerance < eps:
        remedy = " or --dtype float64" if options.dtype == "float32" else ""
        parser.error(
            f"argument --tolerance: {options.tolerance:g} is finer than "
            f"{options.dtype} resolves; take at least {eps:.1e}{remedy}"
        )
    if options.picture is not None:
        _check_picture(parser, pathlib.Path(options.picture))
    return options


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog=_PROG,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=layout,
        # Half a name may fit another option one day.
        allow_abbrev=False,
    )
    positive = _whole(1)
    parser.add_argument(
        "--backend",
        choices=_BACKENDS,
        help=f"the framework; default: {_BACKENDS[0]}, whatever is installed",
    )
    group = parser.add_argument_group("the network")
    cells = ("gru", "lstm", "tanh")
    group.add_argument("--cell", choices=cells, default="gru", help="default: gru")
    group.add_argument(
        "--hidden", type=positive, default=8, metavar="N", help="units; default: 8"
    )
    group.add_argument(
        "--seed", type=_whole(0), default=1, metavar="N", help="of the weights"
    )
    group.add_argument(
        "--dtype", choices=list(_EPS), default="float32", help="default: float32"
    )
    group = parser.add_argument_group("the data")
    group.add_argument(
        "--input", metavar="FILE", help="a .npy or .csv file with your own recording"
    )
    group.add_argument(
        "--batch",
        type=positive,
        metavar="B",
        help="sequences at once: the recording, started ever later; default: 4",
    )
    group.add_argument(
        "--length",
        type=_whole(_SHORTEST),
        metavar="T",
        help="steps; default: the whole recording",
    )
    group = parser.add_argument_group("the solve")
    group.add_argument(
        "--tolerance",
        type=_positive_float,
        metavar="X",
        help="relative and absolute; default: eps^(3/4) of the dtype",
    )
    group.add_argument(
        "--window",
        type=positive,
        metavar="N",
        help="solve N steps to the end before the next N, which bounds memory",
    )
    group = parser.add_argument_group("the output")
    group.add_argument(
        "--repeats",
        type=positive,
        default=5,
        metavar="N",
        help="timed runs; default: 5",
    )
    pictures = group.add_mutually_exclusive_group()
    pictures.add_argument(
        "--picture",
        metavar="FILE",
        default=_PICTURE,
        help=f"where to draw: .png, .pdf or .svg; default: {_PICTURE}",
    )
    pictures.add_argument(
        "--no-picture",
        action="store_const",
        const=None,
        dest="picture",
        help="draw nothing",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _whole(least: int) -> Any:
    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number of at least {least}"
            )
        return number

    return convert


def _positive_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def _check_picture(parser: argparse.ArgumentParser, path: pathlib.Path) -> None:
    """A wrong name should not come to light when everything has been computed."""
    if path.suffix.lower() not in _FORMATS:
        endings = ", ".join(_FORMATS)
        parser.error(f"argument --picture: {path} must end in one of {endings}")
    folder = path.parent
    if path.is_dir() or not folder.is_dir():
        what = "is a folder" if path.is_dir() else f"needs the folder {folder}"
        parser.error(f"argument --picture: {path} {what}; name a file")
    if not os.access(path if path.exists() else folder, os.W_OK):
        remedy = "name another file with --picture, or use --no-picture"
        parser.error(f"argument --picture: {path} cannot be written; {remedy}")


if __name__ == "__main__":
    sys.exit(main())
