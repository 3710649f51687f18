"""The demo from end to end, small."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parafix.deer._demo import main
from parafix.deer._demo_data import batch_of, Recording
from parafix.deer._demo_network import network
from parafix.deer.jax._demo import computation
from parafix.deer.jax._demo_cells import CELLS


LENGTH = 60


@pytest.fixture
def recording(tmp_path, monkeypatch):
    """A recording of one's own, and a folder in which nothing gets in the way."""
    monkeypatch.chdir(tmp_path)
    time = np.arange(LENGTH)
    np.save("mine.npy", np.sin(time / 4) + 0.1 * np.cos(time))
    return "mine.npy"


def run(*arguments):
    return main(["--no-picture", "--repeats", "1", "--hidden", "2", *arguments])


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
    assert main([*arguments, "--batch", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for title in ("Problem", "Forward", "Value and gradient", "Converged prefix"):
        assert f"\n{title}" in out
    assert out.count("sequential / DEER") == 2
    assert re.search(r"solver +sequential\n +because +on a CPU", out)
    assert "faster here for" in out
    assert out.endswith("story.png\n")
    assert max(map(len, out.splitlines())) <= 88
    assert pathlib.Path("story.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_float64_leaves_the_setting_alone(recording, capsys):
    before = jax.config.read("jax_enable_x64")
    options = ["--cell", "lstm", "--dtype", "float64", "--window", "20"]
    assert run("--input", recording, *options) == 0
    assert jax.config.read("jax_enable_x64") == before
    out = capsys.readouterr().out
    assert "in windows of 20" in out
    assert "in all windows together" in out


def test_a_failed_solve_is_told(recording, capsys, monkeypatch):
    from parafix.deer.jax import _demo

    monkeypatch.setattr(_demo, "_MOST_SWEEPS", 2)
    assert run("--input", recording) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "DEER did not succeed" in out
    assert "used up `max_steps`" in out
    assert "The demo allows 2 sweeps" in out
    assert "sequential / DEER" not in out
    assert "Value and gradient" not in out


def test_no_ratio_of_different_results(recording, capsys, monkeypatch):
    from parafix.deer.jax import _demo

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
    from parafix.deer.jax import _demo

    judge = _demo.Computation._gradients

    def spoiled(self, sequential, deer):
        value, gradient = deer
        offset = gradient["offset"].at[0].set(wrong)
        return judge(self, sequential, (value, {**gradient, "offset": offset}))

    monkeypatch.setattr(_demo.Computation, "_gradients", spoiled)
    with small("tanh") as demo:
        assert not demo.gradient(ignore).agrees


@pytest.mark.parametrize("cell", ["lstm", pytest.param("tanh", marks=pytest.mark.slow)])
def test_sequential_and_deer_agree(cell):
    with small(cell) as demo:
        forward, gradient = demo.forward(ignore), demo.gradient(ignore)
        sweeps = demo.sweeps(forward.sweeps[1], ignore)
    for comparison in (forward, gradient):
        assert comparison.agrees
        assert comparison.failure == ""
        assert comparison.deviation < 1e-12
        assert comparison.prefix == LENGTH
        assert comparison.residual <= 1
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


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_cells_are_their_equations():
    random = np.random.default_rng(0)
    h, c = random.standard_normal((2, 2))
    x = random.standard_normal(3)

    def stepped(cell, carry):
        weights = network(cell, 2, 3, 1, 0).weights
        w, u, b = weights["input"], weights["state"], weights["bias"]
        b += random.standard_normal(b.shape)
        with jax.enable_x64(True):
            new, y = CELLS[cell](jax.tree.map(jnp.asarray, weights), carry, x)
        return (w, u, b), new, y

    (w, u, b), new, y = stepped("gru", h)
    r, z = (sigmoid(w[i] @ x + u[i] @ h + b[i]) for i in (0, 1))
    candidate = np.tanh(w[2] @ x + r * (u[2] @ h) + b[2])
    assert np.allclose(new, z * h + (1 - z) * candidate, atol=1e-14)
    assert np.array_equal(new, y)

    (w, u, b), (new_h, new_c), y = stepped("lstm", (h, c))
    i, f, o, g = (w[k] @ x + u[k] @ h + b[k] for k in range(4))
    expected = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    assert np.allclose(new_c, expected, atol=1e-14)
    assert np.allclose(new_h, sigmoid(o) * np.tanh(expected), atol=1e-14)
    assert np.array_equal(new_h, y)

    (w, u, b), new, _ = stepped("tanh", h)
    assert np.allclose(new, np.tanh(w[0] @ x + u[0] @ h + b[0]), atol=1e-14)
