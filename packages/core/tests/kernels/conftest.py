import pytest
import torch

from parafix.core.kernels import interpreted


torch.set_num_threads(1)

# Triton decides at import whether kernels are interpreted, for the whole process.
collect_ignore_glob = [] if interpreted() else ["test_*.py"]


def _scan_by_rows(self, inputs):
    """What Triton's interpreter does entry by entry, a whole row at a time."""
    data = [x.handle.data for x in inputs]
    out = [x.copy() for x in data]
    lead = (slice(None),) * self.axis
    state = None
    for t in range(data[0].shape[self.axis]):
        at = (*lead, t)
        row = [
            self.to_tensor(x[at], given.dtype)
            for x, given in zip(data, inputs, strict=True)
        ]
        state = row if state is None else self.combine_fn.fn(*state, *row)
        for x, new in zip(out, state, strict=True):
            x[at] = new.handle.data
    return [
        self.to_tensor(x, given.dtype) for x, given in zip(out, inputs, strict=True)
    ]


@pytest.fixture(autouse=True)
def _fast_interpreter(request, monkeypatch):
    if "plain_interpreter" not in request.fixturenames:
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter.ScanOps, "generic_scan", _scan_by_rows)


@pytest.fixture
def plain_interpreter():
    """Triton's interpreter as it is: slow."""


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Memory that nobody has written to is full of NaN."""
    empty, empty_like = torch.empty, torch.empty_like
    fill = lambda x: x.fill_(torch.nan) if x.is_floating_point() else x
    spoilt = lambda x: (fill(torch.view_as_real(x)), x)[1] if x.is_complex() else fill(x)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: spoilt(empty(*a, **k)))
    monkeypatch.setattr(
        torch, "empty_like", lambda *a, **k: spoilt(empty_like(*a, **k))
    )
