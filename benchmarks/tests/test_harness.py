import dataclasses

import numpy as np
import pytest

from benchmarks import results
from benchmarks.harness import (
    Case,
    Comparison,
    Contestant,
    deviation,
    Effort,
    measure,
    Program,
)
from benchmarks.table import (
    constant_memory,
    faster,
    lighter,
    no_slower,
    share,
    solved,
)


RIGHT = {"x": np.array([1.0, 2.0])}
ONCE = Effort(repeats=4, patience=0)


def answering(name, value, **changes):
    program = Program(run=lambda: value, answer=lambda output: {"x": np.array(output)})
    return Contestant(name, lambda: dataclasses.replace(program, **changes))


def case_of(*contestants):
    return Case(
        "group",
        "case",
        contestants,
        [Comparison("a", "b")],
        lambda: RIGHT,
        limit=1e-3,
    )


def record_of(*contestants, effort=ONCE):
    case = case_of(*contestants)
    return results.record_case(case, measure(case, effort, lambda word: None))


def test_right_answers_get_a_ratio():
    record = record_of(answering("a", [1.0, 2.0]), answering("b", [1.0, 2.0005]))
    (ratio,) = record["ratios"]
    assert ratio["medians"] > 0
    a, b = record["contestants"]
    assert a["problem"] is None
    assert a["deviation"] == 0
    assert b["deviation"] == pytest.approx(2.5e-4)
    assert len(a["times"]) == len(b["times"]) == 4
    assert a["minimum"] <= a["quartiles"][0] <= a["median"] <= a["quartiles"][1]


@pytest.mark.parametrize(
    "value", [[1.0, 2.1], [1.0, np.nan], [np.inf, 2.0], [1.0, 2.0, 3.0], [[1.0, 2.0]]]
)
def test_a_wrong_answer_gets_neither_time_nor_ratio(value):
    record = record_of(answering("a", value), answering("b", [1.0, 2.0]))
    wrong, right = record["contestants"]
    assert wrong["problem"].startswith("wrong: deviation")
    assert wrong["times"] == []
    assert wrong["median"] is None
    assert right["problem"] is None
    assert right["times"]
    assert record["ratios"] == []


def test_a_failure_code_is_wrong_whatever_the_answer():
    record = record_of(
        answering("a", [1.0, 2.0], facts=lambda: {"result": "max_steps_reached"}),
        answering("b", [1.0, 2.0]),
    )
    assert record["contestants"][0]["problem"] == "wrong: max_steps_reached"
    assert record["ratios"] == []


def test_a_contestant_that_raises_is_a_row():
    def build():
        raise RuntimeError("no such device\nand more")

    record = record_of(Contestant("a", build), answering("b", [1.0, 2.0]))
    assert record["contestants"][0]["problem"] == "failed: RuntimeError: no such device"
    assert record["contestants"][1]["times"]


def test_an_answer_that_turns_wrong_while_it_is_timed():
    runs = []

    def run():
        runs.append(None)
        return [1.0, 2.0 if len(runs) < 5 else 3.0]

    record = record_of(answering("a", None, run=run), answering("b", [1.0, 2.0]))
    assert record["contestants"][0]["problem"].startswith("wrong")
    assert record["contestants"][0]["times"] == []
    assert record["ratios"] == []


def test_rounds_hold_everybody_once_and_the_clock_waits():
    log = []

    def logging(name):
        return Contestant(
            name,
            lambda: Program(
                run=lambda: log.append(("run", name)),
                wait=lambda output: log.append(("wait", name)),
                answer=lambda output: RIGHT,
            ),
        )

    record = record_of(*map(logging, "abc"), effort=Effort(repeats=10, patience=0))
    assert all(item["problem"] is None for item in record["contestants"])
    runs = [name for what, name in log if what == "run"]
    assert [what for what, _ in log] == ["run", "wait"] * len(runs)
    # Building takes two runs, then all are warmed up; one run at the end is checked.
    timed = runs[9:-3]
    rounds = [timed[i : i + 3] for i in range(0, len(timed), 3)]
    assert len(rounds) == 10
    assert {tuple(sorted(names)) for names in rounds} == {("a", "b", "c")}
    assert len({tuple(names) for names in rounds}) > 1


def test_patience():
    class Slower:
        count = 0

        def __call__(self):
            self.count += 1
            sum(range(2000 * (self.count % 2) + 1))
            return [1.0, 2.0]

    impatient = record_of(
        answering("a", None, run=Slower()), answering("b", [1.0, 2.0])
    )
    assert len(impatient["contestants"][0]["times"]) == 4
    patient = record_of(
        answering("a", None, run=Slower()),
        answering("b", [1.0, 2.0]),
        effort=Effort(repeats=4, patience=2),
    )
    assert [len(item["times"]) for item in patient["contestants"]] == [12, 12]


def test_deviation():
    right = {"x": np.array([0.0, -4.0]), "y": np.zeros(2), "z": np.zeros((0, 3))}
    same = {name: value.astype(np.float32) for name, value in right.items()}
    assert deviation(same, right) == 0
    assert deviation({**same, "x": np.array([1.0, -4.0])}, right) == 0.25
    # Nothing to be relative to.
    assert deviation({**same, "y": np.array([0.0, 0.5])}, right) == 0.5


def test_targets_are_not_met_by_less_than_all_cases():
    right = record_of(answering("a", [1.0, 2.0]), answering("b", [1.0, 2.0]))
    wrong = record_of(answering("a", [1.0, 3.0]), answering("b", [1.0, 2.0]))
    for target in (
        faster("group", "a", "b", 1e-9),
        no_slower("group", "a", "b", 1e9),
    ):
        assert target.assess([right, right])[1]
        assert target.assess([right, wrong]) == ("no ratio in 1 of 2 cases", False)
        assert not target.assess([])[1]
    assert not faster("group", "a", "b", 1e9).assess([right])[1]
    assert not no_slower("group", "a", "b", 1e-9).assess([right])[1]


def test_the_same_program_is_no_slower_than_itself():
    same = record_of(
        answering("a", [1.0, 2.0], fingerprint="1"),
        answering("b", [1.0, 2.0], fingerprint="1"),
    )
    assert same["ratios"][0]["same_program"]
    assert no_slower("group", "a", "b", 1e-9).assess([same])[1]


def test_memory_target():
    record = record_of(
        answering("a", [1.0, 2.0], temporary_bytes=3 * 2**20),
        answering("b", [1.0, 2.0]),
    )
    assert lighter("case", "a", 4).assess([record]) == ("3.0 MiB", True)
    assert lighter("case", "a", 3).assess([record]) == ("3.0 MiB", False)
    assert not lighter("case", "b", 3).assess([record])[1]


def test_share_target():
    def record(small, large):
        return record_of(
            answering("a", [1.0, 2.0], temporary_bytes=small),
            answering("b", [1.0, 2.0], temporary_bytes=large),
        )

    target = share("case", "a", "b", 0.1)
    assert target.assess([record(2**20, 10 * 2**20)]) == ("1.00 of 10.00 MiB", True)
    assert not target.assess([record(2**20 + 1, 10 * 2**20)])[1]
    assert not target.assess([record(1, None)])[1]
    wrong = record_of(answering("a", [1.0, 3.0]), answering("b", [1.0, 2.0]))
    assert not target.assess([wrong])[1]


def test_constant_memory_target():
    def record(count):
        return record_of(
            answering("a", [1.0, 2.0], temporary_bytes=count),
            answering("b", [1.0, 2.0]),
        )

    target = constant_memory("group", "a")
    assert target.assess([record(2048), record(2048)]) == ("2.0, 2.0 KiB", True)
    assert not target.assess([record(2048), record(2049)])[1]
    assert not target.assess([record(2048), record(None)])[1]
    # One case shows nothing.
    assert not target.assess([record(2048)])[1]
    assert not target.assess([])[1]


def test_solved_target():
    right = record_of(answering("a", [1.0, 2.0]), answering("b", [1.0, 2.0]))
    wrong = record_of(answering("a", [1.0, 2.0]), answering("b", [1.0, 3.0]))
    assert solved(["a", "b"]).assess([right, right]) == ("all 2", True)
    words, met = solved(["a", "b"]).assess([right, wrong])
    assert words.startswith("case, b: wrong: deviation")
    assert not met
    # Who is not named need not be right.
    assert solved(["a"]).assess([wrong])[1]
    assert not solved(["a"]).assess([])[1]


def test_what_cannot_be_measured_here_is_built_by_nobody():
    def build():
        raise AssertionError

    case = Case(
        "group",
        "case",
        [Contestant("a", build), Contestant("b", build)],
        [Comparison("a", "b")],
        build,
        unavailable="no GPU",
    )
    record = results.record_case(case, measure(case, ONCE, lambda word: None))
    for item in record["contestants"]:
        assert item["problem"] == "not measured: no GPU"
        assert not item["required"]
        assert item["median"] is None
    assert record["ratios"] == []
