"""Times the grid; what does not fit into memory or patience is said to be left out."""

import os
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.gru import FORWARD, GRADIENT, parafix_solver, Problem, SEQUENTIAL
from benchmarks.harness import Case, Comparison, Effort, measure, NOT_MEASURED
from benchmarks.results import record_case

from ..common import Advance
from .cell import Cell, GIB, NotRun
from .config import Config


DEER = parafix_solver("deer", solver="deer")
AUTO = parafix_solver("auto")
SOLVERS = (SEQUENTIAL, DEER, AUTO)
# As in the benchmark: some hundred times what float32 and a tolerance of 6e-6 leave.
_LIMITS = {FORWARD: 1e-4, GRADIENT: 1e-3}


def steps(config: Config) -> int:
    draws = sum(_seeds(config, length) for length in config.lengths)
    return 2 * len(config.sizes) * draws


def run(config: Config, advance: Advance) -> Iterator[dict[str, Any]]:
    """A row for each cell, group and seed; one for a cell that is left out."""
    limit = (config.memory_gib or _free_gib() / 2) * GIB
    for size in config.sizes:
        # Of the cell before, by group: its steps, and seconds for a round of a draw.
        taken: dict[str, tuple[int, float]] = {}
        for length in config.lengths:
            for group in (FORWARD, GRADIENT):
                cell = Cell(group, config.batch, length, size, limit)
                reason = _too_long(taken.get(group), length, config)
                reason = reason or cell.reason
                for seed in range(_seeds(config, length)):
                    advance(f"{group}, n={size}, T={length:,}, seed {seed}")
                    row = _measured(cell, length, size, seed, reason, config.repeats)
                    yield {"memory_limit_gib": round(limit / GIB, 2), **row}
                    if not reason:
                        round_ = sum(x["median"] or 0 for x in row["contestants"])
                        taken[group] = (length, round_)


def _seeds(config, length):
    return config.seeds if length <= config.many_seeds else 1


def _too_long(taken, length, config):
    """Why a cell is left out, if it would take too long."""
    if taken is None:
        return ""
    before, seconds = taken
    # The rounds, two runs each to check, to warm up and to count sweeps, the reference.
    rounds = (config.repeats + 6) * _seeds(config, length)
    expected = rounds * seconds * length / before
    if expected <= config.cell_seconds:
        return ""
    words = f"{expected:.0f} s" if expected < 120 else f"{expected / 60:.0f} min"
    return f"would take {words}"


def _free_gib():
    """Of the memory that programs run in."""
    statistics = jax.devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / GIB


def _measured(cell, length, size, seed, reason, repeats):
    problem = Problem(cell.sizes[0], length, size, seed)
    case = Case(
        cell.group,
        f"n={size} T={length} seed={seed}",
        [cell.contestant(solver, problem) for solver in SOLVERS],
        [Comparison(SEQUENTIAL.name, solver.name) for solver in (DEER, AUTO)],
        lambda: cell.reference(problem),
        _LIMITS[cell.group],
        unavailable=reason,
    )
    measurements = measure(case, Effort(repeats, patience=0), lambda word: None)
    for item in measurements:
        # The harness takes whatever raises for a failure; this was a refusal.
        if item.problem and NotRun.__name__ in item.problem:
            item.problem = f"{NOT_MEASURED}: {item.problem.rpartition(': ')[2]}"
            item.required = False
    precision = "" if reason else cell.precision
    row = {"n": size, "T": length, "seed": seed, "reference": precision}
    return {**row, **record_case(case, measurements)}
