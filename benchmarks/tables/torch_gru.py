"""`parafix.deer.torch.GRU` beside `torch.nn.GRU`, on one thread."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from parafix.core.torch import RESULTS
from parafix.deer.torch import GRU

from ..environment import environment
from ..harness import Case, Comparison, Contestant, Effort, Program
from ..table import comparison, no_slower, of_group, Table, Target


INPUTS = 2
KERNEL, DEER, AUTO = "nn.GRU", "parafix deer", "parafix auto"
FORWARD, GRADIENT = "forward", "forward and backward"

# (B, T, n)
SIZES = (
    (1, 10_000, 2),
    (1, 10_000, 8),
    (16, 1_000, 2),
    (1, 1_000, 8),
    (16, 10_000, 2),
    (64, 200, 64),
)


class Problem:
    """A layer of `torch.nn` with its own random weights, and normal inputs."""

    def __init__(self, batch: int, length: int, size: int):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.GRU(INPUTS, size)
            self.inputs = torch.randn(length, batch, INPUTS)

    def run(self, module: nn.GRU, inputs: torch.Tensor, group: str) -> dict[str, Any]:
        """All states, or the mean of their squares and its gradient."""
        if group == FORWARD:
            with torch.no_grad():
                return {"states": module(inputs)[0]}
        # Not zero: the gradients of the round before would be added to.
        module.zero_grad(set_to_none=True)
        value = module(inputs)[0].square().mean()
        value.backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        return {"value": value.detach(), **gradients}

    @functools.cache  # noqa: B019 (a problem lives as long as its case)
    def reference(self, group: str) -> dict[str, np.ndarray]:
        """The answer of `torch.nn` in float64."""
        wide = nn.GRU(INPUTS, self.layer.hidden_size, dtype=torch.float64)
        wide.load_state_dict(self.layer.state_dict())
        return arrays(self.run(wide, self.inputs.double(), group))

    def program(self, group: str, solver: str | None) -> Program:
        """That of `GRU` with a solver, or of `torch.nn.GRU`."""
        torch.set_num_threads(1)
        module = self.layer
        if solver is not None:
            module = GRU(INPUTS, self.layer.hidden_size, solver=solver)
            module.load_state_dict(self.layer.state_dict())
        run = functools.partial(self.run, module, self.inputs, group)
        return Program(run, answer=arrays, facts=functools.partial(facts, module))


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in tensors.items()}


def facts(module: nn.GRU) -> dict[str, float | int | str]:
    """What the module says of its last call."""
    if not isinstance(module, GRU):
        return {}
    (info,) = module.info
    found: dict[str, float | int | str] = {"solver": info.solver}
    if info.result is not None:
        failed = info.result[info.result != RESULTS.successful]
        code = RESULTS(int(failed[0]) if len(failed) else 0)
        found["result"] = code.name
        found["sweeps"] = int(info.stats["num_steps"].max())
        found["residual"] = float(info.stats["residual"].max())
    return found


def cases(quick: bool) -> Iterator[Case]:
    for batch, length, size in SIZES:
        length = length // 20 if quick else length
        problem = Problem(batch, length, size)
        for group in (FORWARD, GRADIENT):
            yield Case(
                group,
                f"B={batch} T={length} n={size}",
                [
                    Contestant(name, functools.partial(problem.program, group, solver))
                    for name, solver in ((KERNEL, None), (AUTO, "auto"), (DEER, "deer"))
                ],
                (
                    Comparison(KERNEL, DEER),
                    Comparison(KERNEL, AUTO),
                    Comparison(AUTO, KERNEL),
                ),
                functools.partial(problem.reference, group),
                # Some hundred times what float32 and a tolerance of 6e-6 leave.
                limit=1e-3 if group == GRADIENT else 1e-4,
            )


def _at_least(case: str, times: float) -> Target:
    def assess(records):
        (record,) = (r for r in of_group(records, GRADIENT) if r["name"] == case)
        found = comparison(record, KERNEL, DEER)
        if found is None:
            return "no ratio", False
        return f"{found['medians']:.1f} times", found["medians"] >= times

    return Target(
        f"{GRADIENT}, {case}: {DEER} at least {times:g} times faster than {KERNEL}",
        assess,
    )


TABLE = Table(
    "GRU in PyTorch beside torch.nn.GRU",
    "A GRU of one layer with 2 inputs and the random weights that PyTorch gives it, "
    "over standard normal inputs, float32, zero initial states, one thread. Forward "
    "under no_grad; the gradient is that of the mean square of all states in the "
    "weights. The reference is torch.nn.GRU in float64; the deviation is relative to "
    "the largest entry of the same array. Sweeps and residuals, in units of the "
    "tolerance, are what the solver says of itself, for the slowest sample; those of "
    "auto are missing where it took the kernel.",
    cases,
    [
        _at_least("B=1 T=10000 n=2", 20),
        _at_least("B=1 T=10000 n=8", 20),
        *(no_slower(group, AUTO, KERNEL, 1.1) for group in (FORWARD, GRADIENT)),
    ],
    environment,
    Effort(repeats=9, patience=2),
)
