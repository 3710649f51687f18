"""Exercises of the shoulder, recorded by a smartwatch.

Burns et al., "Shoulder physiotherapy exercise recognition: machine learning the
inertial signals from a smartwatch", Physiological Measurement, 2018 (arXiv:1802.01489).
A part of these recordings comes with the distribution seglearn (BSD licence): 10
people, 7 exercises, both arms, acceleration and angular velocity along three axes, 50
samples a second.
"""

import dataclasses
import importlib.metadata
import pathlib
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray


CLASSES = 7
CHANNELS = 6
# Nobody's recordings are in both halves.
_TRAINING_PEOPLE = 7
_FILE = "watch_dataset.npy"
_NEEDED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Some recordings.

    - `xs`: `(N, T, 6)`, standardised by what is in the training half; zeros at the end.
    - `lengths`: `(N,)`, how many samples of each are no padding.
    - `labels`: `(N,)`, from 0 to 6.
    """

    xs: NDArray[np.float32]
    lengths: NDArray[np.int32]
    labels: NDArray[np.int32]


def load(length: int) -> tuple[Recordings, Recordings]:
    """The recordings of seven people for training, and those of three others."""
    with _path().open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        found = _Numbers(file).load().item()
    samples = [np.asarray(x, np.float64)[:length] for x in found["X"]]
    training = np.asarray(found["subject"]) <= _TRAINING_PEOPLE
    seen = np.concatenate([samples[i] for i in np.flatnonzero(training)])
    mean, deviation = seen.mean(0), seen.std(0)
    xs = np.zeros((len(samples), length, CHANNELS), np.float32)
    for padded, x in zip(xs, samples, strict=True):
        padded[: len(x)] = (x - mean) / deviation
    lengths = np.array([len(x) for x in samples], np.int32)
    labels = np.asarray(found["y"]).astype(np.int32)
    take = lambda half: Recordings(xs[half], lengths[half], labels[half])
    return take(training), take(~training)


def _path() -> pathlib.Path:
    try:
        files = importlib.metadata.files("seglearn") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == _FILE:
            return pathlib.Path(str(file.locate()))
    raise SystemExit(
        "deer_classifier takes its recordings from the distribution seglearn: "
        "python -m pip install -c constraints.txt --no-deps seglearn"
    )


class _Numbers(pickle.Unpickler):
    """Reads a pickle of NumPy arrays, and refuses one that asks for anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NEEDED:
            raise pickle.UnpicklingError(f"{_FILE} asks for {module}.{name}.")
        return super().find_class(module, name)
