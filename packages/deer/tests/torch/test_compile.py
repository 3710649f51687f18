"""Layers and verbs under `torch.compile`."""

import subprocess
import sys

import pytest


_LAYERS = """
import torch
from parafix.deer.torch import GRU

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = GRU(2, 3, solver="deer")
        self.head = torch.nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.gru(torch.sin(x))[0].cos()).square().sum()

torch.manual_seed(0)
for model in (Model(), GRU(2, 3, solver="deer")):
    x = torch.randn(20, 2, 2)
    of = lambda out: out if out is None or out.ndim == 0 else out.square().sum()
    loss = lambda f: of(f(x) if isinstance(model, Model) else f(x)[0])
    weights = [*model.parameters()]
    plain = torch.autograd.grad(loss(model), weights)
    compiled = torch.autograd.grad(loss(torch.compile(model, backend="eager")), weights)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)
    gru = model.gru if isinstance(model, Model) else model
    assert gru.info[0].solver == "deer" and gru.info[0].successful
print("done")
"""

_VERBS = """
import torch
from parafix.deer.torch import scan, solve_ivp

torch.manual_seed(0)
cell, field = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
y0, t = torch.randn(2, 3), torch.linspace(0, 1, 9)
xs = torch.randn(8, 2, 3)

def step(h, x):
    h = torch.tanh(cell(h) + x)
    return h, h

def loss(solver):
    _, hs = scan(step, torch.sin(y0), xs, solver=solver)
    ys = solve_ivp(lambda t, y: torch.sin(t * field(y)), y0, t, solver=solver)
    return (hs.cos() * ys[1:]).sum()

weights = [*cell.parameters(), *field.parameters()]
plain = torch.autograd.grad(loss("deer"), weights)
compiled = torch.compile(loss, backend="eager")
for solver in ("deer", "sequential"):
    gradient = torch.autograd.grad(compiled(solver), weights)
    torch.testing.assert_close(gradient, plain)
print("done")
"""


@pytest.mark.parametrize("program", [_LAYERS, _VERBS], ids=["layers", "verbs"])
def test_a_solve_breaks_the_graph_and_runs(program):
    # By itself: the compiler cannot follow the checks of types in these tests.
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]
