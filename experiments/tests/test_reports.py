"""What a report says is wrong, on results with a fault put into them."""

import copy
import importlib
import pathlib

import pytest

from experiments.__main__ import NAMES
from experiments.common import load


FOLDER = pathlib.Path(__file__).parents[1]


def _report(name):
    return importlib.import_module(f"experiments.{name}.report")


def _record(name):
    return load(FOLDER / name / "results" / "quick-cpu.json", name)


def _with(record, **changes):
    """The record with changes in its first row that is from a solver."""
    record = copy.deepcopy(record)
    row = next(row for row in record["rows"] if row.get("solver") != "loop")
    row.update(changes)
    return record


@pytest.mark.parametrize("name", NAMES)
def test_what_is_published_is_complete_and_right(name):
    record = _record(name)
    assert record["seconds"] is not None
    assert _report(name).complaints(record) == []


@pytest.mark.parametrize("largest", [1.0, None])
def test_difference(largest):
    complaints = _report("deer_difference").complaints
    record = _record("deer_difference")
    assert len(complaints(_with(record, largest=largest))) == 1
    assert "stalled" in complaints(_with(record, result="stalled"))[0]


@pytest.mark.parametrize("difference", [1e-6, None])
def test_lyapunov(difference):
    report = _report("deer_lyapunov")
    record = _with(_record("deer_lyapunov"), difference=difference)
    assert record["rows"][0]["result"] == "successful"
    assert len(report.complaints(record)) == 1
    # Who says that he has failed has not lied.
    record = _with(record, result="ill_conditioned")
    assert report.complaints(record) == []
    assert "1 ill_conditioned" in report.text(record)


@pytest.mark.parametrize("name", ["deer_classifier", "deer_hnn"])
def test_trainings(name):
    report = _report(name)
    record = _record(name)
    for row in record["rows"]:
        if row["name"] == "deer":
            row["losses"][3] *= 1.5
    (complaint,) = report.complaints(record)
    assert "deer: losses differ" in complaint


def test_speed():
    report = _report("deer_speed")
    record = _record("deer_speed")
    row = record["rows"][0]
    cell = (row["n"], row["T"])
    (factor,) = report.speed_ups(record, "forward", "deer")[cell]
    times = {item["name"]: item["median"] for item in row["contestants"]}
    assert factor == pytest.approx(times["lax.scan"] / times["deer"])
    row["contestants"][1]["problem"] = "wrong: deviation 1.0e+00"
    (complaint,) = report.complaints(record)
    assert "deer: wrong: deviation" in complaint
    words = report.speed_ups(record, "forward", "deer")[cell]
    assert words == "wrong: deviation 1.0e+00"
