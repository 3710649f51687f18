"""The demo from end to end, small."""

import dataclasses
import pathlib
import re
import warnings

import numpy as np
import pytest
import torch

from parafix.deer._demo import main
from parafix.deer._demo_data import batch_of, Recording
from parafix.deer._demo_network import network
from parafix.deer.torch._demo import computation
from parafix.deer.torch._demo_cells import cell_of, layer_of


LENGTH = 60


@pytest.fixture
def recording(tmp_path, monkeypatch):
    """A recording of one's own, and a folder in which nothing gets in the way."""
    monkeypatch.chdir(tmp_path)
    time = np.arange(LENGTH)
    np.save("mine.npy", np.sin(time / 4) + 0.1 * np.cos(time))
    return "mine.npy"


def run(*arguments):
    given = ["--backend", "torch", "--no-picture", "--repeats", "1", "--hidden", "2"]
    return main([*given, *arguments])


def small(cell="gru", dtype="float64", **options):
    values = np.sin(np.arange(LENGTH) / 4)[None, :, None]
    batch = batch_of(Recording(values, ""), 2, LENGTH)
    options = {"tolerance": None, "window": None, "repeats": 1, **options}
    return computation(network(cell, 2, 2, 1, 1), batch.inputs, dtype=dtype, **options)


def ignore(what):
    del what


def test_from_end_to_end(recording, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--input", recording, "--repeats", "2", "--picture", "story.png"]
    assert main(["--backend", "torch", *arguments, "--batch", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for title in ("Problem", "Forward", "Value and gradient", "Converged prefix"):
        assert f"\n{title}" in out
    assert out.count("sequential / DEER") == 2
    assert out.count("sequential: torch.nn.GRU") == 2
    assert 'parafix.deer.torch.GRU(solver="deer")' in out
    assert re.search(r"forward +sequential\n +because +the kernel", out)
    assert re.search(r"with a gradient +sequential\n +because +the kernel", out)
    assert "faster here for" in out
    assert "compil" not in out
    assert "both on one thread" in out
    assert out.endswith("story.png\n")
    assert max(map(len, out.splitlines())) <= 88
    assert pathlib.Path("story.png").read_bytes().startswith(b"\x89PNG")


def test_settings_are_left_alone(recording, capsys):
    threads, before = torch.get_num_threads(), torch.get_default_dtype()
    precision = torch.backends.cudnn.rnn.fp32_precision
    torch.set_num_threads(2)
    try:
        options = ["--cell", "lstm", "--dtype", "float64", "--window", "20"]
        assert run("--input", recording, *options) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.get_default_dtype() == before
    assert torch.backends.cudnn.rnn.fp32_precision == precision
    out = capsys.readouterr().out
    assert "in windows of 20" in out
    assert "in all windows together" in out


def test_a_failed_solve_is_told(recording, capsys, monkeypatch):
    from parafix.deer.torch import _demo

    monkeypatch.setattr(_demo, "_MOST_SWEEPS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("--input", recording) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "DEER did not succeed" in out
    assert "used up `max_steps`" in out
    assert "The demo allows 2 sweeps" in out
    assert "sequential / DEER" not in out
    assert "Value and gradient" not in out


def test_no_ratio_of_different_results(recording, capsys, monkeypatch):
    from parafix.deer.torch import _demo

    compare = _demo.Computation.forward
    monkeypatch.setattr(
        _demo.Computation,
        "forward",
        lambda self, advance: dataclasses.replace(
            compare(self, advance), deviation=float("nan")
        ),
    )
    assert run("--input", recording) == 1
    out = capsys.readouterr().out
    assert "The results differ by nan" in out
    assert "sequential / DEER" not in out


@pytest.mark.parametrize("wrong", [float("nan"), 1.0])
def test_one_wrong_entry_of_a_gradient_is_seen(wrong, monkeypatch):
    from parafix.deer.torch import _demo

    judge = _demo.Computation._gradients

    def spoiled(self, sequential, deer, info):
        value, (*others, offset) = deer
        offset = torch.full_like(offset, wrong)
        return judge(self, sequential, (value, (*others, offset)), info)

    monkeypatch.setattr(_demo.Computation, "_gradients", spoiled)
    with small("tanh") as demo:
        assert not demo.gradient(ignore).agrees


@pytest.mark.parametrize("cell", ["gru", "lstm", "tanh"])
def test_sequential_and_deer_agree(cell):
    with small(cell) as demo:
        forward, gradient = demo.forward(ignore), demo.gradient(ignore)
        sweeps = demo.sweeps(forward.sweeps[1], ignore)
        choices = demo.choices()
    for comparison in (forward, gradient):
        assert comparison.agrees
        assert comparison.failure == ""
        assert comparison.deviation < 1e-12
        assert comparison.prefix == LENGTH
        assert comparison.residual <= 1
        assert comparison.sweeps[0] > 1
    # The guess and one row for every sweep.
    assert sweeps.errors.shape == (forward.sweeps[1] + 1, LENGTH)
    for number, sweep in enumerate(sweeps.sweeps):
        # `k` sweeps leave the first `k` states exact.
        assert sweep.prefix >= number
        assert sweep.certified <= sweep.prefix
        assert np.all(sweeps.errors[number, :number] <= 1e-15)
    assert sweeps.sweeps[-1].certified == LENGTH
    assert sweeps.sweeps[-1].within == 1
    assert sweeps.sweeps[-1].largest < 1e-12
    assert [what for what, *_ in choices] == ["forward", "with a gradient"]
    for _, solver, reason in choices:
        assert solver in ("sequential", "deer")
        assert reason


def test_the_loss_and_its_gradient_by_differences():
    """What the table of gradients compares is the gradient of what it says."""
    with small("gru") as demo:
        loss, gradient = None, None

        def keep(sequential, deer, info):
            nonlocal loss, gradient
            (loss, gradient), _ = deer, info
            return 0.0, 1.0, (0.0, 1.0)

        demo._gradients = keep
        demo.gradient(ignore)
        xs = demo._xs.numpy()

        def by_hand(offset):
            states = demo._kernel(demo._xs)[0].detach().numpy()
            predicted = states @ demo._readout.detach().numpy().T + offset
            return np.mean((predicted[:-1] - xs[1:, :, :1]) ** 2)

        assert np.isclose(float(loss), by_hand(0.0), rtol=1e-12)
        slope = (by_hand(1e-6) - by_hand(-1e-6)) / 2e-6
        assert np.isclose(float(gradient[-1]), slope, rtol=1e-7)
        weight = demo._kernel.weight_hh_l0.data
        before = weight[3, 1].clone()
        ends = []
        for change in (1e-5, -1e-5):
            weight[3, 1] = before + change
            ends.append(by_hand(0.0))
        assert np.isclose(float(gradient[1][3, 1]), (ends[0] - ends[1]) / 2e-5, 1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def stepped(net, carry, x):
    """One step in NumPy, by the equations."""
    w, u, b = (net.weights[key] for key in ("input", "state", "bias"))
    if net.cell == "gru":
        (h,) = carry
        r, z = (sigmoid(w[i] @ x + u[i] @ h + b[i]) for i in (0, 1))
        candidate = np.tanh(w[2] @ x + r * (u[2] @ h) + b[2])
        return (z * h + (1 - z) * candidate,)
    if net.cell == "lstm":
        h, c = carry
        i, f, o, g = (w[k] @ x + u[k] @ h + b[k] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    (h,) = carry
    return (np.tanh(w[0] @ x + u[0] @ h + b[0]),)


@pytest.mark.parametrize("cell", ["gru", "lstm", "tanh"])
def test_cells_and_layers_are_their_equations(cell):
    random = np.random.default_rng(0)
    net = network(cell, 2, 3, 1, 0)
    net.weights["bias"] += random.standard_normal(net.weights["bias"].shape)
    carry = tuple(random.standard_normal((2 if cell == "lstm" else 1, 2)))
    xs = random.standard_normal((5, 3))

    def packed(parts, axes):
        parts = tuple(torch.from_numpy(x)[axes] for x in parts)
        return parts if cell == "lstm" else parts[0]

    states = [carry]
    for x in xs:
        states.append(stepped(net, states[-1], x))
    new, y = cell_of(net, dtype=torch.float64)(
        packed(carry, None), torch.from_numpy(xs[:1])
    )
    for found, expected in zip(
        new if cell == "lstm" else (new,), states[1], strict=True
    ):
        np.testing.assert_allclose(found[0].detach(), expected, atol=1e-14)
    assert y is (new[0] if cell == "lstm" else new)

    start = packed(carry, (None, None))
    for solver in ("sequential", "deer"):
        layer = layer_of(net, dtype=torch.float64, solver=solver)
        ys, _ = layer(torch.from_numpy(xs)[:, None], start)
        expected = np.stack([state[0] for state in states[1:]])
        np.testing.assert_allclose(ys[:, 0].detach(), expected, atol=1e-12)
