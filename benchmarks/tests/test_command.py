import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import report, results
from benchmarks.__main__ import main
from benchmarks.harness import Case, Comparison, Contestant, Program
from benchmarks.runner import all_correct, Options, run_table
from benchmarks.table import faster, Table, unbeaten
from benchmarks.tables import load, SUMMARIES


def _contestant(name, value):
    return Contestant(
        name,
        lambda: Program(run=lambda: value, answer=lambda x: {"x": np.array(x)}),
    )


def _cases(quick):
    del quick
    for name, value in (("one", 1.0), ("two", 2.0)):
        yield Case(
            "group",
            name,
            [_contestant("a", 1.0), _contestant("b", value)],
            [Comparison("a", "b")],
            lambda: {"x": np.array(1.0)},
            limit=0.1,
        )


TABLE = Table(
    "A title",
    "Notes.",
    _cases,
    [faster("group", "a", "b", 1e-9)],
    lambda: {
        "device": "Some Device (2)",
        "platform": "cpu",
        "processor": "p",
        "cores": 2,
        "load": 0.1,
        "system": "s",
        "python": "3.11",
        "versions": {"numpy": "2"},
    },
)


@pytest.fixture
def record():
    return run_table("name", TABLE, Options(repeats=3), lambda text: None)


def test_record(record, tmp_path):
    assert not all_correct(record)
    assert record["command"] == "python -m benchmarks name --repeats 3"
    (target,) = record["targets"]
    assert (target["met"], target["measured"]) == (False, "no ratio in 1 of 2 cases")
    assert [(mean["cases"], mean["of"]) for mean in record["means"]] == [(1, 2)]
    assert results.default_path(record).name == "name-some-device-2.json"
    path = tmp_path / "folder" / "record.json"
    results.save(record, path)
    assert results.load(path) == json.loads(json.dumps(record))


def test_reports_say_what_is_wrong(record):
    text = report.case_text(record["cases"][1])
    assert "wrong: deviation 1.0e+00" in text
    assert "a / b" not in text
    assert "a / b" in report.case_text(record["cases"][0])
    summary = report.summary_text(record)
    assert "over 1 of 2 cases" in summary
    assert "NOT MET" in summary
    document = report.markdown(record)
    assert "wrong: deviation 1.0e+00" in document
    assert "NOT MET" in document


def test_what_is_not_complete_is_not_assessed():
    for options in (Options(quick=True), Options(repeats=2, only="one")):
        record = run_table("name", TABLE, options, lambda text: None)
        assert [target["met"] for target in record["targets"]] == [None]
    assert [case["name"] for case in record["cases"]] == ["one"]
    assert all_correct(record)


def test_all_cases_of_a_table_are_for_who_asks():
    def names(**options):
        table = dataclasses.replace(TABLE, full=lambda: list(_cases(False)) * 2)
        options = Options(repeats=1, patience=0, **options)
        record = run_table("name", table, options, lambda text: None)
        return record["command"], [case["name"] for case in record["cases"]]

    assert names()[1] == ["one", "two"]
    command, found = names(full=True, processor_time=True)
    assert found == ["one", "two"] * 2
    assert "--full --processor-time" in command


def _ratio(a, b, lower, upper, same=False):
    return {
        "numerator": a,
        "denominator": b,
        "medians": (lower * upper) ** 0.5,
        "interval": [lower, upper],
        "same_program": same,
    }


@pytest.mark.parametrize(
    ("ratio", "problem", "met"),
    [
        (_ratio("ours", "other", 0.5, 0.6), None, True),
        (_ratio("ours", "other", 1.1, 1.6), None, True),  # within the noise
        (_ratio("ours", "other", 1.3, 1.6), None, False),
        (_ratio("ours", "other", 1.3, 1.6, same=True), None, False),  # nothing is left
        (_ratio("ours", "nobody", 1.3, 1.6), None, False),
        (_ratio("ours", "other", 0.5, 0.6), "wrong", False),
    ],
)
def test_who_is_beaten(ratio, problem, met):
    case = {
        "group": "group",
        "name": "case",
        "contestants": [{"name": "ours", "problem": problem}],
        "ratios": [_ratio("twin", "twin too", 0.8, 1.1), ratio],
    }
    target = unbeaten("group", "ours", ["other"], ("twin", "twin too"))
    words, found = target.assess([case])
    assert found == met
    assert ("(1.4" in words) == (ratio["interval"] == [1.3, 1.6] and "1 of 1" in words)
    case["ratios"] = [ratio]
    assert not target.assess([case])[1]


def test_who_need_not_be_right_fails_nothing():
    def cases(quick):
        for case in _cases(quick):
            a, b = case.contestants
            yield dataclasses.replace(
                case, contestants=[a, dataclasses.replace(b, required=False)]
            )

    table = dataclasses.replace(TABLE, cases=cases)
    record = run_table("name", table, Options(repeats=3), lambda text: None)
    assert all_correct(record)
    assert record["cases"][1]["contestants"][1]["problem"]


def test_list_loads_no_framework():
    program = (
        "import sys\n"
        "from benchmarks.__main__ import main\n"
        "assert main(['--list']) == 0\n"
        "assert not {'jax', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=results.FOLDER.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(SUMMARIES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "no table 'nothing'; there are deer-scan"),
        (["--repeats", "0"], "--repeats"),
        (["--patience", "-1"], "--patience"),
        (["--markdown", "no-such-file.json"], "no-such-file.json"),
    ],
)
def test_bad_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert words in capsys.readouterr().err


def test_markdown_of_a_file_that_is_no_result(tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text("[1]")
    with pytest.raises(SystemExit):
        main(["--markdown", str(path)])
    assert "is no result" in capsys.readouterr().err


@pytest.mark.parametrize("name", SUMMARIES)
def test_tables_can_be_loaded(name):
    pytest.importorskip("torch" if name.startswith("torch-") else "jax")
    cases = list(load(name).cases(True))
    assert cases
    for case in cases:
        names = [contestant.name for contestant in case.contestants]
        assert len(set(names)) == len(names)
        for comparison in case.comparisons:
            assert {comparison.numerator, comparison.denominator} <= set(names)
