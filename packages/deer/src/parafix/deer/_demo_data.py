"""Recordings for the demo: the built-in one, and those that a person brings."""

import csv
import dataclasses
import pathlib

import numpy as np
from numpy.typing import NDArray


SHORTEST = 10
_LONGEST_BY_DEFAULT = 100_000
_BATCH_BY_DEFAULT = 4


class InputError(ValueError):
    """What is wrong with a recording, in one line, with the remedy."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """Measured values, of shape `(sequences, samples, columns)`.

    `interval` is the time between two samples in seconds, if it is known.
    """

    values: NDArray[np.float64]
    title: str
    unit: str = ""
    interval: float | None = None

    @property
    def standardised(self) -> NDArray[np.float64]:
        """Each column with mean 0 and standard deviation 1."""
        # Scaled first, so that squares of huge numbers do not overflow.
        largest = np.abs(self.values).max((0, 1))
        values = self.values / np.where(largest > 0, largest, 1)
        spread = values.std((0, 1))
        return (values - values.mean((0, 1))) / np.where(spread > 0, spread, 1)


@dataclasses.dataclass(frozen=True)
class Batch:
    """What the network sees: `(batch, length, 2 * columns)`, columns first.

    The other half are the differences from one sample to the next. `shown` is what was
    recorded of the first sequence, `(length, columns)`.
    """

    inputs: NDArray[np.float64]
    shown: NDArray[np.float64]
    recording: Recording
    description: str

    @property
    def columns(self) -> int:
        return self.inputs.shape[2] // 2


def built_in() -> Recording:
    """The membrane potential of a neuron that fires, as matplotlib ships it."""
    # Here, because a recording of one's own needs no matplotlib.
    from matplotlib import cbook

    try:
        path = cbook.get_sample_data("membrane.dat", asfileobj=False)
        millivolts = np.fromfile(path, np.float32).astype(np.float64) * 100
    except OSError as error:
        raise InputError(
            "matplotlib is installed without its sample data (membrane.dat), which "
            "some distributions leave out; name your own recording with --input"
        ) from error
    title = "membrane potential of a neuron, membrane.dat of matplotlib"
    return Recording(millivolts[None, :, None], title, "mV", 0.5e-3)


def read(path: str) -> Recording:
    """The recording in a `.npy` or `.csv` file.

    Of shape `(samples,)`, `(samples, columns)` or `(sequences, samples, columns)`.
    Raises `InputError`.
    """
    file = pathlib.Path(path).expanduser()
    readers = {".npy": _read_npy, ".csv": _read_csv}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path!r} is neither .npy nor .csv; save it with numpy.save, or as text "
            "with one line per sample and commas between columns, under such a name"
        )
    if not file.exists():
        raise InputError(f"{path} does not exist; check the name and the folder")
    if not file.is_file():
        raise InputError(f"{path} is not a file; name a .npy or .csv file")
    try:
        values = reader(file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{path} cannot be read ({reason}); check the file and its permissions"
        ) from error
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    return Recording(_checked(values, path), file.name)


def sizes(
    recording: Recording, batch: int | None, length: int | None
) -> tuple[int, int]:
    """How many sequences of how many steps; `None` takes what was recorded."""
    sequences, samples, _ = recording.values.shape
    recorded = min(sequences, 16) if sequences > 1 else _BATCH_BY_DEFAULT
    return (
        recorded if batch is None else batch,
        min(samples, _LONGEST_BY_DEFAULT) if length is None else length,
    )


def batch_of(recording: Recording, batch: int, length: int) -> Batch:
    """`batch` sequences of `length` samples.

    More sequences than were recorded are the recorded ones, started later; more samples
    than were recorded are the same ones again.
    """
    sequences, samples, _ = recording.values.shape
    copies = -(-batch // sequences)
    shift = samples // copies
    number = np.arange(batch)
    start = number // sequences * shift
    index = (start[:, None] + np.arange(length)) % samples
    number = number[:, None] % sequences
    values = recording.standardised[number, index]
    difference = np.diff(values, axis=1, prepend=values[:, :1])
    spread = difference.std((0, 1))
    difference /= np.where(spread > 0, spread, 1)
    inputs = np.concatenate([values, difference], 2)
    if copies == 1:
        one = batch == sequences == 1
        description = "1" if one else f"{batch:,} of {sequences:,} recorded sequences"
    else:
        what = "the recording" if sequences == 1 else f"the {sequences:,} recorded ones"
        description = (
            f"{batch:,} sequences: {what}, taken as a circle,\n"
            f"each copy started {shift:,} samples after the one before"
        )
    shown = recording.values[0, np.arange(length) % samples]
    return Batch(inputs, shown, recording, description)


def _read_npy(file: pathlib.Path) -> NDArray:
    if file.stat().st_size == 0:
        raise InputError("is empty; save an array of samples in it with numpy.save")
    try:
        # Pickled objects can run code when they are loaded: never.
        values = np.load(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:
        # Whatever a damaged header makes numpy stumble over.
        if "allow_pickle" in str(error) and file.read_bytes()[:6] == b"\x93NUMPY":
            raise InputError(
                "holds Python objects instead of numbers; convert the array with "
                "numpy.asarray(array, float) before numpy.save"
            ) from error
        raise InputError(
            "is not a complete .npy file; write it again with numpy.save"
        ) from error
    if not isinstance(values, np.ndarray):
        values.close()
        raise InputError("is an .npz archive; save one of its arrays with numpy.save")
    if values.dtype.kind not in "biuf":
        raise InputError(
            f"holds {values.dtype} instead of real numbers; convert it to float first"
        )
    return values


def _read_csv(file: pathlib.Path) -> NDArray:
    try:
        # Excel begins its files with a byte order mark.
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("is not text; save it as CSV in UTF-8") from error
    lines = text.splitlines()
    filled = [line for line in lines if line.strip()]
    if not filled:
        raise InputError("is empty; write one line of numbers per sample in it")
    delimiter = max(",;\t", key=filled[0].count)
    try:
        table = list(csv.reader(lines, delimiter=delimiter))
    except csv.Error as error:
        raise InputError(f"is not a CSV file ({error}); save it again") from error
    rows = [
        (number, [cell.strip() for cell in cells])
        for number, cells in enumerate(table, 1)
        if any(cell.strip() for cell in cells)
    ]
    header = _header(rows[0][1])
    width = len(rows[0][1])
    values = []
    for number, cells in rows[1 if header else 0 :]:
        if len(cells) != width:
            raise InputError(
                f"has {len(cells)} columns in line {number} and {width} in the first; "
                "every line needs the same number"
            )
        values.append([_number(*place) for place in _places(number, cells, header)])
    if not values:
        raise InputError("has a header and no samples; write one line per sample")
    return np.array(values)


def _header(cells: list[str]) -> list[str]:
    """The names of the columns, if the first line holds them."""
    # A line with a number in it is data, so that no sample is skipped in silence.
    return [] if any(map(_is_number, cells)) else cells


def _places(number, cells, header):
    for column, cell in enumerate(cells, 1):
        name = f"{column} ({header[column - 1]})" if header else f"{column}"
        yield cell, f"line {number}, column {name}"


def _number(cell: str, place: str) -> float:
    if not cell:
        raise InputError(
            f"has no value in {place}; fill the gap, or leave that line or column out"
        )
    if not _is_number(cell):
        shown = cell if len(cell) <= 20 else cell[:20] + "..."
        if _is_number(cell.replace(",", ".")):
            raise InputError(f"has {shown!r} in {place}; write decimals with a point")
        raise InputError(
            f"has {shown!r} in {place}, which is not a number; keep only columns of "
            "numbers"
        )
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    # Python reads 1_000 as a number. In a file it rather is a name.
    return "_" not in cell


def _checked(values: NDArray, path: str) -> NDArray[np.float64]:
    """`values` as `(sequences, samples, columns)`, finite and long enough."""
    if values.ndim not in (1, 2, 3):
        raise InputError(
            f"{path} holds an array of shape {values.shape}; reshape it to (samples,), "
            "(samples, columns) or (sequences, samples, columns)"
        )
    shape = values.shape
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim == 2:
        values = values[None]
    sequences, samples, columns = values.shape
    if sequences == 0 or columns == 0:
        raise InputError(f"{path} is empty (shape {shape}); it must hold samples")
    if samples < SHORTEST:
        turned = columns >= SHORTEST and columns > samples
        remedy = "; transpose it" if turned else "; record more"
        raise InputError(
            f"{path} has {samples} samples (shape {shape}, time down the rows), and "
            f"the demo needs at least {SHORTEST}{remedy}"
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        sequence, sample, column = np.argwhere(bad)[0]
        where = f"sample {sample}, column {column} (counted from 0)"
        if sequences > 1:
            where = f"sequence {sequence}, {where}"
        raise InputError(
            f"{path} has NaN or infinity in {bad.sum():,} of {bad.size:,} values, the "
            f"first at {where}; fill them in or cut them out"
        )
    if (values == values[:1, :1]).all():
        raise InputError(
            f"{path} is constant in time, so there is nothing to predict; name a "
            "recording that varies"
        )
    return values
