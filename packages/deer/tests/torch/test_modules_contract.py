"""What RNN, GRU and LSTM share with `torch.nn` beside numbers, and what they say."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from parafix.core.testing.torch import assert_close, assert_identical
from parafix.core.torch import RESULTS
from parafix.deer.torch import DEER, GRU, LSTM, RNN


PAIRS = [(RNN, nn.RNN), (GRU, nn.GRU), (LSTM, nn.LSTM)]
both = pytest.mark.parametrize(("ours", "theirs"), PAIRS)
each = pytest.mark.parametrize("ours", [RNN, GRU, LSTM])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def raised(function, *args, **kwargs):
    with pytest.raises(Exception) as info:  # noqa: PT011 (compared with another)
        function(*args, **kwargs)
    return type(info.value), str(info.value)


@both
def test_checkpoints_go_both_ways(ours, theirs):
    options = {"num_layers": 2, "bidirectional": True}
    mine, other = ours(2, 3, solver="deer", **options), theirs(2, 3, **options)
    assert list(mine.state_dict()) == list(other.state_dict())
    mine.load_state_dict(other.state_dict())
    assert_identical(dict(mine.state_dict()), dict(other.state_dict()))
    mine.reset_parameters()
    other.load_state_dict(mine.state_dict())
    assert_identical(dict(mine.state_dict()), dict(other.state_dict()))


@both
def test_the_same_seed_makes_the_same_weights(ours, theirs):
    torch.manual_seed(3)
    mine = ours(2, 3, num_layers=2, solver="deer")
    torch.manual_seed(3)
    other = theirs(2, 3, num_layers=2)
    assert_identical(dict(mine.state_dict()), dict(other.state_dict()))


@both
def test_a_checkpoint_of_another_size(ours, theirs):
    wrong = theirs(2, 4).state_dict()
    mine = raised(ours(2, 3).load_state_dict, wrong)
    assert mine == raised(theirs(2, 3).load_state_dict, wrong)
    assert "size mismatch for weight_ih_l0" in mine[1]


@both
def test_an_unknown_keyword(ours, theirs):
    mine = raised(ours, 2, 3, solvr="deer")
    assert mine == raised(theirs, 2, 3, solvr="deer")
    assert mine[0] is TypeError
    assert "solvr" in mine[1]


def test_options_of_the_solve_are_checked_at_construction():
    with pytest.raises(LookupError, match="deer"):
        GRU(2, 3, solver="dear")
    with pytest.raises(ValueError, match="max_steps"):
        GRU(2, 3, max_steps=-1)
    with pytest.raises(ValueError, match="rtol"):
        GRU(2, 3, rtol=-1.0)
    with pytest.raises(ValueError, match="rtol"):
        GRU(2, 3, solver=DEER(rtol=1e-6, atol=1e-6), rtol=1e-6)


@both
@pytest.mark.parametrize("batch_first", [False, True])
def test_bad_input_gets_the_words_of_torch(ours, theirs, batch_first):
    mine = ours(2, 3, batch_first=batch_first, solver="deer")
    other = theirs(2, 3, batch_first=batch_first)
    x = torch.randn(5, 4, 2)

    def states(*shape, dtype=None):
        h = torch.zeros(*shape, dtype=dtype)
        return (h, h) if theirs is nn.LSTM else h

    batch = 5 if batch_first else 4
    calls = [
        (x[0, 0],),
        (torch.randn(5, 4, 7),),
        (x.double(),),
        (x[:0] if not batch_first else x[:, :0],),
        (x, states(1, batch, 2)),
        (x, states(2, batch, 3)),
        (x, states(1, batch + 1, 3)),
        (x, states(1, 3)),
        (x, states(1, batch, 3, dtype=torch.float64)),
        (x[0], states(1, 1, 3)),
        (pack_sequence([x[:, 0], x[:3, 1]]), states(1, 3, 3)),
    ]
    for call in calls:
        assert raised(mine, *call) == raised(other, *call)


@both
def test_an_empty_batch(ours, theirs):
    mine, other = ours(2, 3, solver="deer"), theirs(2, 3)
    x = torch.randn(5, 0, 2)
    assert_identical(mine(x), other(x))


@each
def test_copies_and_pickles(ours):
    module = ours(2, 3, num_layers=2, solver="deer", window=3, throw=True)
    x = torch.randn(5, 4, 2)
    expected = module(x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [
        copy.deepcopy(module),
        copy.copy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert type(other) is ours
        assert (other.solver, other.window, other.throw) == ("deer", 3, True)
        assert_identical(other(x), expected)
        assert_identical(other.info[1].result, module.info[1].result)


@both
def test_moving_between_dtypes(ours, theirs):
    mine, other = ours(2, 3, solver="deer"), theirs(2, 3)
    mine.load_state_dict(other.state_dict())
    mine.flatten_parameters()
    x = torch.randn(5, 4, 2)
    assert_close(mine(x), other(x), 1e-5)
    mine, other, x = mine.double(), other.double(), x.double()
    assert_close(mine(x), other(x), 1e-9)
    assert_close(
        mine.to("cpu", torch.float32)(x.float()), other.float()(x.float()), 1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@both
def test_half_precision(ours, theirs, dtype):
    # Solved in float32 and rounded at the end: nearer to the truth than the kernel.
    mine, other = ours(2, 3, num_layers=2, solver="deer", dtype=dtype), theirs(2, 3, 2)
    other.load_state_dict(mine.state_dict())
    x = torch.randn(20, 4, 2, dtype=dtype)
    found = mine(x)
    expected = other(x.float())
    unrounded = torch.utils._pytree.tree_map(lambda y: y.to(dtype), expected)
    assert_close(found, unrounded, 4 * torch.finfo(dtype).eps)
    assert all(item.successful for item in mine.info)
    found[0].float().square().sum().backward()
    expected[0].square().sum().backward()
    for p, q in zip(mine.parameters(), other.parameters(), strict=True):
        assert p.grad.dtype == dtype
        assert_close(p.grad, q.grad.to(dtype), 20 * torch.finfo(dtype).eps)


@both
def test_autocast(ours, theirs):
    # The products with the inputs are rounded, the recurrence is not.
    mine, other = ours(2, 3, num_layers=2, solver="deer"), theirs(2, 3, 2)
    mine.load_state_dict(other.state_dict())
    x = torch.randn(20, 4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = mine(x)
    found[0].sum().backward()
    assert found[0].dtype == torch.float32
    assert all(item.successful for item in mine.info)
    assert all(p.grad.dtype == torch.float32 for p in mine.parameters())
    expected = other(x)
    assert_close(found, expected, 0.02)
    assert not torch.equal(found[0], expected[0])
    # What comes in may have been rounded before.
    with torch.autocast("cpu", torch.bfloat16):
        again = mine(x.bfloat16())
    assert_close(again[0].float(), expected[0], 0.02)


@both
def test_autocast_leaves_the_recurrence_alone(ours, theirs):
    mine, other = ours(2, 3, solver="deer"), theirs(2, 3)
    x = torch.randn(20, 4, 2)
    gates = nn.Linear(2, len(mine.weight_ih_l0), bias=False)
    with torch.no_grad():
        mine.weight_ih_l0.copy_(mine.weight_ih_l0.bfloat16())
        mine.bias_ih_l0.zero_()
        mine.bias_hh_l0.zero_()
        gates.weight.copy_(mine.weight_ih_l0)
    other.load_state_dict(mine.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        found = mine(x)
        rounded = gates(x).float()
    # The same from a layer whose inputs are the gates, rounded.
    wide = theirs(rounded.shape[-1], 3)
    state = other.state_dict()
    state["weight_ih_l0"] = torch.eye(rounded.shape[-1])
    wide.load_state_dict(state)
    assert_close(found, wide(rounded), 1e-5)


@both
def test_functional_calls(ours, theirs):
    mine, other = ours(2, 3, solver="deer").double(), theirs(2, 3).double()
    x = torch.randn(5, 4, 2, dtype=torch.float64)
    weights = {name: torch.randn_like(p) for name, p in mine.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(mine, weights, (x,))[0].square().sum()

    found = torch.func.grad(loss, argnums=(0, 1))(weights, x)
    other.load_state_dict(weights)
    x = x.clone().requires_grad_()
    value = other(x)[0].square().sum()
    expected = torch.autograd.grad(value, [*other.parameters(), x])
    names = [name for name, _ in other.named_parameters()]
    expected = dict(zip(names, expected[:-1], strict=True)), expected[-1]
    assert_close(found, expected, 1e-9)


@each
def test_transforms(ours):
    # `torch.nn` itself knows neither `vmap` nor forward mode here.
    module = ours(2, 3, num_layers=2, solver="deer").double()
    kernel = copy.deepcopy(module)
    kernel.solver = "sequential"
    x = torch.randn(3, 5, 2, 2, dtype=torch.float64)

    def loss(x):
        return module(x)[0].square().sum()

    states = torch.func.vmap(lambda x: module(x)[0])(x)
    assert_close(states, torch.stack([kernel(y)[0] for y in x]), 1e-9)
    assert module.info[1].result.shape == (3, 2)
    assert module.info[1].successful
    expected = []
    for y in x:
        y = y.clone().requires_grad_()
        value = kernel(y)[0].square().sum()
        expected.append(torch.autograd.grad(value, y)[0])
    assert_close(torch.func.vmap(torch.func.grad(loss))(x), torch.stack(expected), 1e-9)
    assert_close(torch.func.jacfwd(loss)(x[0]), expected[0], 1e-9)
    assert not any(z.requires_grad for z in module.info[0].stats.values())


def expanding(ours=GRU, **options):
    """A module whose states take more than a sweep, and inputs to it."""
    module = ours(2, 3, **options)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(3)
    return module, torch.randn(30, 4, 2)


@each
def test_a_solve_that_fails_says_so_once(ours):
    module, x = expanding(ours, solver="deer", max_steps=1)
    with pytest.warns(UserWarning, match=f"{ours.__name__}.*layer 0.*info") as caught:
        out, _ = module(x)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    (info,) = module.info
    assert info.solver == "deer"
    assert (info.result == RESULTS.max_steps_reached).all()
    assert not info.successful
    assert info.message(2) == info.message()
    assert info.message() in str(caught[0].message)
    # One sweep makes the first state right.
    kernel = copy.deepcopy(module)
    kernel.solver = "sequential"
    assert_close(out[0], kernel(x)[0][0], 1e-6)
    assert not torch.allclose(out, kernel(x)[0], atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = module(x)
        again.sum().backward()
    assert not module.info[0].successful
    module.max_steps = None
    module(x)
    assert module.info[0].successful
    assert module.info[0].message() == ""


@each
def test_a_solve_that_fails_raises_if_wanted(ours):
    module, x = expanding(ours, solver="deer", max_steps=1, throw=True)
    with pytest.raises(RuntimeError):
        module(x)


def test_infos_have_the_order_of_the_samples():
    # The long one of three cannot be solved in three sweeps, the others can.
    module, _ = expanding(GRU, solver="deer", max_steps=3, bidirectional=True)
    lengths = (1, 20, 2)
    packed = pack_sequence([torch.randn(n, 2) for n in lengths], enforce_sorted=False)
    with pytest.warns(UserWarning, match="layer 0"):
        module(packed)
    for info in module.info:
        assert (info.result == RESULTS.successful).tolist() == [True, False, True]
        assert info.message(0) == ""
        assert info.message() == info.message(1) != ""
    assert [info.reverse for info in module.info] == [False, True]
    module.max_steps = None
    module(torch.randn(5, 2))
    assert module.info[0].result.shape == ()
    assert set(module.info[0].stats) >= {"num_steps", "residual", "converged_prefix"}


@each
def test_a_sample_that_is_not_finite_stays_alone(ours):
    module = ours(2, 3, num_layers=2, solver="deer").double()
    x = torch.randn(9, 3, 2, dtype=torch.float64)
    broken = x.clone()
    broken[4, 1] = torch.nan
    kept = [0, 2]

    def outcome(x):
        x = x.clone().requires_grad_()
        out = module(x)[0]
        (gradient,) = torch.autograd.grad(out[:, kept].square().sum(), x)
        return out, gradient

    expected, expected_gradient = outcome(x)
    with pytest.warns(UserWarning, match="layer 0"):
        found, gradient = outcome(broken)
    assert_identical(found[:, kept], expected[:, kept])
    assert_identical(gradient[:, kept], expected_gradient[:, kept])
    assert_identical(found[:4, 1], expected[:4, 1])
    assert found[4:, 1].isnan().all()
    for info in module.info:
        expected = [RESULTS.successful, RESULTS.nonfinite, RESULTS.successful]
        assert info.result.tolist() == expected


@both
def test_sequential_is_the_kernel(ours, theirs):
    mine, other = ours(2, 3, 2, solver="sequential"), theirs(2, 3, 2)
    mine.load_state_dict(other.state_dict())
    x = torch.randn(5, 4, 2)
    assert_identical(mine(x), other(x))
    assert [info.solver for info in mine.info] == ["sequential"] * 2
    assert mine.info[0].result is None
    assert mine.info[0].stats == {}
    assert mine.info[0].successful
    assert mine.info[0].message() == ""


@both
def test_a_solver_object(ours, theirs):
    solver = DEER(rtol=1e-12, atol=1e-12)
    mine, other = ours(2, 3, solver=solver).double(), theirs(2, 3).double()
    mine.load_state_dict(other.state_dict())
    x = torch.randn(5, 4, 2).double()
    assert_close(mine(x), other(x), 1e-9)
    assert mine.info[0].solver is solver


def test_dropout_draws_the_numbers_of_torch():
    # In float32, where `torch.nn` has kernels of its own for some.
    for ours, theirs in PAIRS:
        mine = ours(2, 3, 3, dropout=0.5, solver="deer")
        other = theirs(2, 3, 3, dropout=0.5)
        mine.load_state_dict(other.state_dict())
        x = torch.randn(20, 4, 2)
        torch.manual_seed(5)
        found = mine(x)
        torch.manual_seed(5)
        assert_close(found, other(x), 1e-5)


def test_the_representation_says_what_is_set():
    assert repr(GRU(2, 3)) == "GRU(2, 3, solver='auto')"
    text = repr(LSTM(2, 3, 2, solver="deer", window=8))
    assert text == "LSTM(2, 3, num_layers=2, solver='deer', window=8)"


@each
def test_the_info_keeps_no_graph_alive(ours):
    module = ours(2, 3, solver="deer")
    module(torch.randn(5, 4, 2))
    (info,) = module.info
    assert info.solution.value is None
    assert not any(x.requires_grad for x in info.stats.values())
