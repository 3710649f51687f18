"""The recurrent layers under `torch.compile`."""

import subprocess
import sys


_PROGRAM = """
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


def test_a_solve_breaks_the_graph_and_runs():
    # By itself: the compiler cannot follow the checks of types in these tests.
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]
