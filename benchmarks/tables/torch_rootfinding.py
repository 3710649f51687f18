"""Dense fixed points in PyTorch by parafix and by torchdeq."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parafix.core.torch import (
    Anderson,
    Broyden,
    fixed_point,
    FixedPoint,
    GMRES,
    ImplicitAdjoint,
    RESULTS,
)

from ..harness import Answer, Case, Comparison, Contestant, deviation, Facts, Program
from ..table import contestant, of_group, Table, Target
from ..torch_layers import Layer
from ..torch_programs import Counted, torch_cpu_environment, torch_cpu_program


MAX_STEPS = 400
# What everybody's forward solve must come to, in float32, and gradients in both.
TOLERANCE = 1e-4
GRADIENT = 1e-3
SECOND = 1e-6
# What solvers are tried with, from loose to tight.
TOLERANCES = [10 ** (-2 - step / 4) for step in range(21)]

METHODS = ("fixed-point", "anderson", "broyden")
# Both keep as much: what torchdeq takes by default for Anderson, and for Broyden what
# neither forgets in so many steps as are needed here.
HISTORY, MEMORY = 6, 30


@dataclasses.dataclass(frozen=True)
class Peer:
    """Somebody who solves `z = f(z)`.

    - `solve`: `(f, guess, tolerance, max_steps) -> (z, name of the result or None)`,
        attached to what `f` depends on if gradients are recorded.
    """

    name: str
    solve: Callable[[Callable[..., Tensor], Tensor, float, int], tuple[Tensor, Any]]
    required: bool


def parafix(method: str) -> Peer:
    make = {
        "fixed-point": FixedPoint,
        "anderson": functools.partial(Anderson, history=HISTORY),
        "broyden": functools.partial(Broyden, memory=MEMORY),
    }[method]

    def solve(f, guess, tolerance, max_steps):
        solver = make(tolerance, tolerance)
        # The tolerance of the linear solve behind the gradient, too.
        adjoint = ImplicitAdjoint(linear_solver=GMRES(rtol=tolerance))
        options = {"solver": solver, "adjoint": adjoint, "max_steps": max_steps}
        solution = fixed_point(f, guess, **options, throw=False)
        return solution.value, RESULTS(int(solution.result.max())).name

    return Peer(f"parafix {method}", solve, True)


def torchdeq(method: str) -> Peer:
    name = {"fixed-point": "fixed_point_iter"}.get(method, method)
    options: dict[str, Any] = {"f_solver": name, "b_solver": name, "ift": True}
    if method == "anderson":
        options["f_anderson_m"] = options["b_anderson_m"] = HISTORY

    def solve(f, guess, tolerance, max_steps):
        layer = _torchdeq_layer(tolerance, max_steps, **options)
        # Without gradients it solves only in this mode; with them only in the other.
        layer.train(torch.is_grad_enabled())
        states, _ = layer(f, guess)
        return states[-1], None

    return Peer(f"torchdeq {method}", solve, False)


@functools.cache
def _torchdeq_layer(tolerance, max_steps, **options):
    with warnings.catch_warnings():
        # It uses what is deprecated.
        warnings.simplefilter("ignore")
        try:
            from torchdeq import get_deq
        except ModuleNotFoundError as error:
            message = "torchdeq is not installed: pip install torchdeq==0.1.0"
            raise ModuleNotFoundError(message) from error
    limits = {"f_max_iter": max_steps, "b_max_iter": MAX_STEPS}
    tolerances = {f"{pass_}_tol": tolerance for pass_ in "fb"}
    return get_deq(**limits, **tolerances, **options)


def _loosest(good: Callable[[float], float]) -> float:
    """The loosest tolerance for which this is at most one; else that of the least."""
    best, lowest = TOLERANCES[0], np.inf
    for tolerance in TOLERANCES:
        found = good(tolerance)
        if found <= 1:
            return tolerance
        if found < lowest:
            best, lowest = tolerance, found
    return best


def forward(layer: Layer, peer: Peer) -> Program:
    """A solve without gradients, to a residual of `TOLERANCE`."""
    weight, x, _ = layer.tensors
    guess = layer.guess

    def f(z):
        return torch.tanh(z @ weight + x)

    def run(tolerance, max_steps=MAX_STEPS, f=f):
        with torch.no_grad():
            return peer.solve(f, guess, tolerance, max_steps)

    def residual(tolerance):
        z, _ = run(tolerance)
        return float(np.max(abs(layer.residual(z, TOLERANCE))))

    def answer(output) -> Answer:
        return {"residual": layer.residual(output[0], TOLERANCE)}

    tolerance = _loosest(residual)
    counter = Counted(f)
    _, result = run(tolerance, f=counter)
    facts = _facts(counter, tolerance, result, each=1)
    return torch_cpu_program(
        functools.partial(run, tolerance, counter.calls), answer, lambda: facts
    )


def with_gradient(layer: Layer, peer: Peer, order: int = 1) -> Program:
    """A solve and the gradient of a loss, or its change along the loss's weights."""
    weight, x, cotangent = layer.tensors
    parameters = [weight.requires_grad_(), x.requires_grad_()]
    guess = layer.guess
    reference = _gradient(layer, order)

    def f(z):
        return torch.tanh(z @ weight + x)

    def run(tolerance, max_steps=MAX_STEPS, f=f):
        z, result = peer.solve(f, guess, tolerance, max_steps)
        loss = (z * cotangent).sum()
        found = torch.autograd.grad(loss, parameters, create_graph=order == 2)
        if order == 2:
            along = (found[1] * cotangent).sum()
            found = torch.autograd.grad(along, parameters)
        return found, result

    def answer(output) -> Answer:
        pairs = zip(("weight", "x"), output[0], strict=True)
        return {name: np.asarray(g.detach(), np.float64) for name, g in pairs}

    def error(tolerance):
        return deviation(answer(run(tolerance)), reference) / GRADIENT

    tolerance = _loosest(error) if order == 1 else 1e-10
    counter = Counted(f)
    _, result = run(tolerance, f=counter)
    facts = _facts(counter, tolerance, result)
    return torch_cpu_program(
        functools.partial(run, tolerance, counter.calls), answer, lambda: facts
    )


def _facts(counter, tolerance, result, **more) -> Facts:
    facts = {"evaluations": counter.calls, "tolerance": tolerance, **more}
    return facts if result is None else {**facts, "result": result}


def _gradient(layer: Layer, order: int) -> Answer:
    return layer.gradient if order == 1 else layer.second()


STEP = "time of a step"
BACKWARD = "forward and backward"
TWICE = "second derivatives"


def cases(quick: bool) -> Iterator[Case]:
    for method in METHODS:
        tiny = Layer(1, 12, 0.95)
        yield _case(STEP, method, tiny, forward, TOLERANCE)
        wide = Layer(4, 16, 0.8) if quick else Layer(32, 128, 0.8)
        yield _case(BACKWARD, method, wide, with_gradient, GRADIENT)
        twice = Layer(2, 6, 0.7, torch.float64)
        build = functools.partial(with_gradient, order=2)
        yield _case(TWICE, method, twice, build, SECOND)


def _case(group, method, layer, build, limit):
    peers = (torchdeq(method), parafix(method))
    if group == STEP:
        zeros = np.zeros((layer.samples, layer.size))
        reference, limit, measure = (lambda: {"residual": zeros}), 1.0, "residual"
    else:
        order = 2 if group == TWICE else 1
        reference = functools.partial(_gradient, layer, order)
        measure = "deviation"
    return Case(
        f"{group}, {method}",
        f"{layer.samples} x {layer.size}",
        [
            Contestant(peer.name, functools.partial(build, layer, peer), peer.required)
            for peer in peers
        ],
        [Comparison(*(peer.name for peer in peers))],
        reference,
        limit,
        measure,
    )


def _half_of_a_step() -> Target:
    def assess(records):
        words, met = [], True
        for method in METHODS:
            (record,) = of_group(records, f"{STEP}, {method}")
            names = f"torchdeq {method}", f"parafix {method}"
            theirs, ours = (contestant(record, name) for name in names)
            if theirs["problem"] or ours["problem"]:
                return f"{method}: {theirs['problem'] or ours['problem']}", False
            # A busy machine interrupts what takes longer, so minima must do it, too.
            medians, minima = (
                (theirs[key] / theirs["evaluations"])
                / (ours[key] / ours["evaluations"])
                for key in ("median", "minimum")
            )
            words.append(f"{method} {medians:.2f} (by minima {minima:.2f})")
            met &= min(medians, minima) >= 2
        return ", ".join(words), met

    return Target(
        f"{STEP}: an evaluation by torchdeq takes at least 2 of parafix, by medians "
        "and by minima, by each method",
        assess,
    )


def _right_twice() -> Target:
    def assess(records):
        found = [
            contestant(record, f"parafix {method}")
            for method in METHODS
            for record in of_group(records, f"{TWICE}, {method}")
        ]
        wrong = [item["problem"] for item in found if item["problem"]]
        worst = max(item["deviation"] or 0.0 for item in found)
        return "; ".join(wrong) or f"off by {worst:.1e} at most", not wrong

    return Target(f"{TWICE}: parafix right by each method", assess)


TABLE = Table(
    "Dense fixed points in PyTorch beside torchdeq",
    "The layer is z = tanh(z W + x) from zero, W an orthogonal matrix times a gain "
    "(.95 with 1 x 12, .8 with 32 x 128, .7 for second derivatives), x of deviation "
    ".3; one thread. Of the forward solves, in float32 without gradients, the residual "
    f"is max |f(z) - z| / ({TOLERANCE:g} (1 + |z|)) in float64 of what is returned; "
    "with gradients, in float32, the deviation is that of the gradients with respect "
    "to W and x from dense algebra in float64, and above "
    f"{GRADIENT:g} a row is wrong. Everybody gets the loosest of {len(TOLERANCES)} "
    f"tolerances from {TOLERANCES[0]:g} to {TOLERANCES[-1]:g} with which that is met, "
    "and when it is timed no more steps than that took: torchdeq fills its traces up "
    "to the last. Second derivatives are in float64 with tolerance 1e-10: the change "
    "of the gradient along a direction of x, held against differences of NumPy's "
    f"gradient; above {SECOND:g} a row is wrong. Evaluations are calls of f, counted "
    "in another run; beside those of forward solves stands the time of one, with "
    f"everything that the solver does. Anderson with m={HISTORY}; Broyden of parafix "
    f"with memory {MEMORY}, that of torchdeq as it comes. torchdeq differentiates by "
    "ift=True and solves for the gradient by the same method; parafix does that by "
    "GMRES to the same tolerance as forward, whatever the method. A peer that is wrong "
    "is a finding, and no error.",
    cases,
    [_half_of_a_step(), _right_twice()],
    torch_cpu_environment,
)
