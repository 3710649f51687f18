"""What `solver="auto"` of the recurrent layers takes, and what it does then."""

import copy

import pytest
import torch
from torch import nn

from parafix.core.testing.torch import assert_close, assert_identical
from parafix.deer.torch import choose_layer, GRU, LSTM, RNN


PAIRS = [(RNN, nn.RNN), (GRU, nn.GRU), (LSTM, nn.LSTM)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def chosen(mode="GRU", length=10_000, batch=1, size=2, **options):
    options = {"gradient": True, "platform": "cpu", **options}
    return choose_layer(mode, length, batch, size, **options)


def test_small_states_over_long_times_are_solved():
    for mode in ("RNN_TANH", "RNN_RELU", "GRU", "LSTM"):
        choice = chosen(mode)
        assert choice.solver == "deer"
        assert choice.max_steps >= 9
        assert "10000 times" in choice.reason


@pytest.mark.parametrize(
    "options",
    [{"length": 100}, {"size": 64}, {"batch": 1000}, {"mode": "LSTM", "fused": True}],
)
def test_the_kernel_is_taken_where_it_is_faster(options):
    choice = chosen(**options)
    assert choice.solver == "sequential"
    assert choice.max_steps is None
    assert choice.reason


def test_more_work_never_speaks_for_a_solve():
    def worth(**options):
        choice = chosen(**options)
        return 0 if choice.solver == "sequential" else choice.max_steps

    for name, values in (
        ("size", (1, 2, 4, 8, 16, 32)),
        ("batch", (1, 4, 16, 64, 256)),
    ):
        found = [worth(length=2000, **{name: value}) for value in values]
        assert found == sorted(found, reverse=True)
        assert found[0] > found[-1] == 0
    found = [worth(length=length) for length in (1, 10, 100, 1000, 10_000)]
    assert found == sorted(found)
    assert found[0] == 0 < found[-1]
    # A backward pass is what the kernel is slow at.
    assert worth(length=1000, gradient=False) <= worth(length=1000)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_short_sequences_run_the_kernel(ours, theirs):
    mine, other = ours(2, 3, 2, dropout=0.5), theirs(2, 3, 2, dropout=0.5)
    mine.load_state_dict(other.state_dict())
    x = torch.randn(50, 4, 2)
    torch.manual_seed(1)
    found = mine(x)
    torch.manual_seed(1)
    assert_identical(found, other(x))
    assert [info.solver for info in mine.info] == ["sequential"] * 2
    assert all(info.result is None and info.reason for info in mine.info)


def test_the_lstm_of_onednn_is_left_to_it():
    x = torch.randn(5000, 1, 2)
    module = LSTM(2, 3)
    module(x)
    assert module.info[0].solver == "sequential"
    # There is none in float64, or with a projection.
    for other in (LSTM(2, 3).double(), LSTM(2, 3, proj_size=2)):
        other(x.to(other.weight_ih_l0.dtype))
        assert other.info[0].solver == "deer"
        assert other.info[0].successful


def test_without_a_gradient_more_is_left_to_the_kernel():
    module, x = GRU(2, 4), torch.randn(800, 1, 2)
    module(x)
    assert module.info[0].solver == "deer"
    with torch.no_grad():
        module(x)
    assert module.info[0].solver == "sequential"
    frozen = copy.deepcopy(module).requires_grad_(False)
    frozen(x)
    assert frozen.info[0].solver == "sequential"
    frozen(x.requires_grad_())
    assert frozen.info[0].solver == "deer"


def hard(**options):
    """A chaotic network, which no solve can finish, and the same of `torch.nn`."""
    options = {"num_layers": 2, "dropout": 0.3, **options}
    module, kernel = RNN(2, 4, **options), nn.RNN(2, 4, **options)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(20)
    kernel.load_state_dict(module.state_dict())
    return module, kernel, torch.randn(3000, 1, 2)


@pytest.mark.filterwarnings("error")
def test_a_solve_that_fails_is_left_to_the_kernel():
    module, kernel, x = hard()
    torch.manual_seed(2)
    found = module(x)
    after = torch.get_rng_state()
    torch.manual_seed(2)
    # The same bits, dropout included, and nobody is warned or raised at.
    assert_identical(found, kernel(x))
    assert_identical(after, torch.get_rng_state())
    assert [info.solver for info in module.info] == ["sequential"] * 2
    assert "deer failed, layer 0: " in module.info[0].reason


def test_after_failures_it_rests():
    module, _, x = hard()
    tried = []
    for _ in range(12):
        module(x)
        tried.append("failed, layer" in module.info[0].reason)
    # One call, then three, then seven.
    assert [k for k, t in enumerate(tried) if t] == [0, 2, 6]
    # What succeeds ends it.
    module._rest = 0
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(0.01)
    for _ in range(2):
        module(x)
        assert [info.solver for info in module.info] == ["deer"] * 2
    assert module._pause == 0


@pytest.mark.parametrize("ours", [RNN, GRU])
def test_long_sequences_agree_with_the_kernel(ours):
    module = ours(2, 3, 2, bidirectional=True, batch_first=True)
    kernel = copy.deepcopy(module)
    kernel.solver = "sequential"
    x = torch.randn(1, 2000, 2)
    assert_close(module(x), kernel(x), 1e-5)
    for info in module.info:
        assert (info.solver, info.successful) == ("deer", True)
        assert info.reason
