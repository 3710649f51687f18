import numpy as np
import pytest
import torch

from parafix.core.kernels import interpreted


torch.set_num_threads(1)

# Triton decides at import whether kernels are interpreted, for the whole process.
collect_ignore_glob = [] if interpreted() else ["test_*.py"]


def _scan_by_doubling(self, inputs):
    """What Triton's interpreter does entry by entry, on all at once.

    By recursive doubling, so that maps are composed with maps, as on a GPU.
    """
    out = [x.handle.data for x in inputs]
    wrap = lambda data: [
        self.to_tensor(x, given.dtype) for x, given in zip(data, inputs, strict=True)
    ]
    rows = out[0].shape[self.axis]
    lead = (slice(None),) * self.axis
    shift = 1
    while shift < rows:
        # Interpreted tensors have powers of 2 as sizes, so all rows take part.
        before = [x.take(np.arange(rows) - shift, self.axis, mode="wrap") for x in out]
        combined = self.combine_fn.fn(*wrap(before), *wrap(out))
        late = (*lead, slice(shift, None))
        out = [x.copy() for x in out]
        for x, new in zip(out, combined, strict=True):
            x[late] = new.handle.data[late]
        shift *= 2
    return wrap(out)


@pytest.fixture(autouse=True)
def _quiet():
    """A GPU does not warn of numbers that overflow, and NumPy must not here."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(autouse=True)
def _fast_interpreter(request, monkeypatch):
    if "plain_interpreter" not in request.fixturenames:
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter.ScanOps, "generic_scan", _scan_by_doubling)


@pytest.fixture
def plain_interpreter():
    """Triton's interpreter as it is: slow."""


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Memory that nobody has written to is full of NaN."""
    empty, empty_like = torch.empty, torch.empty_like
    fill = lambda x: x.fill_(torch.nan) if x.is_floating_point() else x
    spoilt = lambda x: (
        (fill(torch.view_as_real(x)), x)[1] if x.is_complex() else fill(x)
    )
    monkeypatch.setattr(torch, "empty", lambda *a, **k: spoilt(empty(*a, **k)))
    monkeypatch.setattr(
        torch, "empty_like", lambda *a, **k: spoilt(empty_like(*a, **k))
    )
