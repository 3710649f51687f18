"""The diagonal affine scan in PyTorch, on a GPU."""

import functools as ft
import importlib
from collections.abc import Iterator

import numpy as np

from ..harness import Case, Comparison, Contestant, Program
from ..roofline import (
    COPY,
    FORWARD,
    GRADIENT,
    KERNEL,
    LANES_CHECKED,
    NOTES,
    reference,
    SIZES,
    targets,
    Work,
)
from ..table import Table
from ..torch_programs import torch_environment, torch_program, torch_unavailable


OURS = "parafix, associative"
ASSOCIATIVE = "torch's associative_scan, compiled"
PEER = "accelerated-scan"


@ft.lru_cache(maxsize=1)
def _data(work: Work):
    """`a`, `b` and the cotangents of the states."""
    import torch

    random = torch.Generator("cuda").manual_seed(0)
    make = ft.partial(torch.rand, (work.length, work.lanes), device="cuda")
    # Decays between 0.9 and 1, as in layers.
    a = 0.9 + 0.1 * make(generator=random)
    return a, make(generator=random) - 0.5, make(generator=random) - 0.5


def _some(x) -> np.ndarray:
    step = max(1, x.shape[1] // LANES_CHECKED)
    return x.detach()[:, ::step][:, :LANES_CHECKED].cpu().numpy()


def _reference(work: Work):
    return reference(*map(_some, _data(work)), work.group)


def _answer(outputs):
    return dict(zip(("x", "of a", "of b"), map(_some, outputs), strict=False))


def _solver(work: Work, solve, arrange=lambda x: x, back=lambda x: x) -> Program:
    """`solve(a, b)`, and its gradient in the second group.

    `arrange` puts the arguments into the layout of the solver, outside of the timing,
    and `back` undoes it.
    """
    import torch

    a, b, g = map(arrange, _data(work))

    def forward():
        with torch.no_grad():
            return (solve(a, b),)

    def gradient():
        leaves = a.detach().requires_grad_(), b.detach().requires_grad_()
        x = solve(*leaves)
        return x, *torch.autograd.grad(x, leaves, g)

    return torch_program(
        forward if work.group == FORWARD else gradient,
        lambda outputs: _answer([back(x) for x in outputs]),
        work.facts,
    )


def _ours(work: Work, scan: str) -> Program:
    import torch

    from parafix.core.torch import affine_scan

    init = torch.zeros(work.lanes, device="cuda")
    return _solver(work, lambda a, b: affine_scan(a, b, init, scan=scan))


def _compiled(work: Work) -> Program:
    import torch
    from torch._higher_order_ops.associative_scan import associative_scan

    def combine(first, second):
        (a, x), (b, y) = first, second
        return a * b, b * x + y

    @torch.compile
    def solve(a, b):
        return associative_scan(combine, (a, b), 0, combine_mode="pointwise")[1]

    return _solver(work, solve)


def _peer(work: Work) -> Program:
    # Its kernel in CUDA is documented up to this length, its other one beyond.
    module = "warp" if work.length <= 65536 else "scalar"
    scan = importlib.import_module(f"accelerated_scan.{module}").scan
    # It has time last, and the layout is not what is measured.
    arrange = lambda x: x.T.contiguous().unsqueeze(0)
    return _solver(work, scan, arrange, lambda x: x.squeeze(0).T)


def _copy(work: Work) -> Program:
    import torch

    source = torch.empty(work.bytes // 8, device="cuda").zero_()
    target = torch.empty_like(source)
    right = ft.cache(lambda: _reference(work))
    # Right by definition: what is compared is time alone.
    return torch_program(
        lambda: target.copy_(source), lambda output: right(), work.facts
    )


def cases(quick: bool) -> Iterator[Case]:
    for length, lanes in SIZES:
        for group in (FORWARD, GRADIENT):
            work = Work(length // 64 if quick else length, lanes, group)
            makers = {
                KERNEL: ft.partial(_ours, work, "triton"),
                COPY: ft.partial(_copy, work),
                OURS: ft.partial(_ours, work, "associative"),
                ASSOCIATIVE: ft.partial(_compiled, work),
                PEER: ft.partial(_peer, work),
            }
            yield Case(
                group,
                f"T={work.length} lanes={lanes}",
                [
                    Contestant(name, make, required=name in (KERNEL, COPY, OURS))
                    for name, make in makers.items()
                ],
                [Comparison(name, KERNEL) for name in (COPY, OURS, ASSOCIATIVE, PEER)],
                ft.partial(_reference, work),
                limit=1e-4,
                unavailable=torch_unavailable(),
            )


TABLE = Table(
    "The diagonal affine scan in PyTorch on a GPU",
    NOTES + " accelerated-scan gets its arguments in its own layout, time last; "
    "its kernel is `warp` up to T=65536 and `scalar` beyond.",
    cases,
    targets(ASSOCIATIVE, PEER),
    torch_environment,
)
