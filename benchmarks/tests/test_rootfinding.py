import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.harness import Case, Contestant, Effort, measure
from benchmarks.results import record_case
from benchmarks.tables import adjoint_memory, rootfinding
from benchmarks.tables.rootfinding import residual, Solver, TOLERANCE
from parafix.core.testing.jax import zoo


@pytest.fixture
def problem():
    with jax.enable_x64(True):
        return zoo("symmetric", size=4, dtype=jnp.float64)


def test_residual_is_that_of_the_state(problem):
    y = problem.solution.copy()
    assert np.max(abs(residual(problem, y))) < 1e-3
    y[2] += 1e-3
    values = (np.asarray(problem.args["matrix"])[:, 2] - np.eye(4)[2]) * 1e-3
    assert residual(problem, y) == pytest.approx(
        values / (TOLERANCE * (1 + abs(y))), rel=1e-5
    )


def _off_by(excess):
    """A peer whose residual is `excess` times the tolerance that it is given."""

    def solve(fn, y0, args, tolerance):
        eye = jnp.eye(y0.size)
        shift = jnp.full_like(y0, excess * tolerance)
        y = jnp.linalg.solve(eye - args["matrix"], args["offset"] + shift)
        return fn(y, args) + shift, None

    return Solver("peer", solve)


def test_the_loosest_tolerance_that_does(problem):
    for excess in (0.1, 1, 10, 100):
        peer = _off_by(excess)
        tolerance = peer.tolerance(problem)
        looser = [x for x in rootfinding.TOLERANCES if x > tolerance]

        def found(tolerance, peer=peer):
            with jax.enable_x64(True):
                y, _ = peer.solve(problem.fn, problem.y0, problem.args, tolerance)
            return np.max(abs(residual(problem, y)))

        assert found(tolerance) <= 1
        assert looser
        assert found(looser[-1]) > 1


def _record(problem, *solvers):
    case = Case(
        "group",
        "case",
        [
            Contestant(
                solver.name, lambda solver=solver: solver.program(problem), False
            )
            for solver in solvers
        ],
        reference=lambda: {"residual": np.zeros(4)},
        limit=1.0,
        measure="residual",
    )
    return record_case(case, measure(case, Effort(2, 0), lambda word: None))


def test_who_cannot_is_wrong(problem):
    def solve(fn, y0, args, tolerance):
        return y0 + tolerance, None

    (item,) = _record(problem, Solver("peer", solve))["contestants"]
    assert item["problem"].startswith("wrong: residual")
    assert not item["required"]
    assert item["residual"] > 1
    assert item["deviation"] is None
    assert item["times"] == []


@pytest.mark.parametrize(
    "solver",
    [
        rootfinding.FIXED_POINT,
        rootfinding.ANDERSON,
        rootfinding.BROYDEN_100,
        rootfinding.OPTIMISTIX_NEWTON,
    ],
    ids=lambda solver: solver.name,
)
def test_solvers(problem, solver):
    (item,) = _record(problem, solver)["contestants"]
    assert item["problem"] is None
    assert item["residual"] <= 1
    assert item["evaluations"] > 0
    assert len(item["times"]) == 2


def test_without_jaxopt(problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxopt", None)
    (item,) = _record(problem, rootfinding.JAXOPT_ANDERSON)["contestants"]
    assert item["problem"].startswith("failed: ModuleNotFoundError")
    assert "jaxopt" in item["problem"]


@pytest.mark.skipif(find_spec("jaxopt") is None, reason="needs jaxopt")
@pytest.mark.parametrize(
    "solver",
    [rootfinding.JAXOPT_ANDERSON_10, rootfinding.JAXOPT_BROYDEN_100],
    ids=lambda solver: solver.name,
)
def test_jaxopt(problem, solver):
    (item,) = _record(problem, solver)["contestants"]
    assert item["problem"] is None
    assert item["residual"] <= 1
    assert item["evaluations"] > 0


@pytest.mark.parametrize(("batch", "linear"), [(1, True), (3, False)])
def test_gradients(batch, linear):
    problem = adjoint_memory.Problem(batch, 0.5, linear, 100)
    for solver in (adjoint_memory.IMPLICIT, adjoint_memory.OPTIMISTIX):
        case = Case(
            "group",
            "case",
            [Contestant(solver.name, lambda solver=solver: solver.program(problem))],
            reference=lambda: problem.reference,
            limit=1e-7,
        )
        (item,) = measure(case, Effort(1, 0), lambda word: None)
        assert item.problem is None
        assert item.facts["evaluations"] > 20
        assert item.temporary_bytes


def test_who_has_to_be_right():
    required = {
        (case.name.split()[0], contestant.name)
        for case in rootfinding.cases(False)
        for contestant in case.contestants
        if contestant.required
    }
    names = {name for _, name in required}
    assert all(name.startswith("parafix") for name in names)
    assert ("tanh", "parafix fixed-point") in required
    assert ("wide", "parafix fixed-point") not in required
    assert ("wide", "parafix anderson") in required
