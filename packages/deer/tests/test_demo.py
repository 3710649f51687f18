"""The demo up to the framework: its command line and its recordings."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from parafix.deer._demo import main


np = pytest.importorskip("numpy")

from parafix.deer._demo_data import (  # noqa: E402
    batch_of,
    built_in,
    InputError,
    read,
    Recording,
    sizes,
)
from parafix.deer._demo_network import network  # noqa: E402
from parafix.deer._demo_report import comparison_table, duration  # noqa: E402
from parafix.deer._demo_results import Comparison, Sweep, Sweeps, Timing  # noqa: E402


WAVE = np.sin(np.arange(40) / 3)


def saved(folder: Path, array, name: str = "x.npy") -> str:
    path = folder / name
    np.save(path, array)
    return str(path)


def written(folder: Path, text: str, name: str = "x.csv", encoding="utf-8") -> str:
    path = folder / name
    path.write_text(text, encoding)
    return str(path)


def lines(values) -> str:
    return "\n".join(str(value) for value in values)


def complaint(capsys) -> str:
    """What was printed: one line, and nothing but that."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("parafix demo deer: ")
    return err


def test_help_teaches(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "--input my.npy" in text
    assert "exit code" in text


def test_help_and_wrong_arguments_load_nothing_heavy():
    code = (
        "import sys; from parafix.deer._demo import main; main(['--help']); "
        "main(['--hidden', '0']); "
        "print({'jax', 'torch', 'numpy', 'matplotlib', 'tqdm'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--hidden", "0"], "--hidden"),
        (["--hidden", "many"], "--hidden"),
        (["--hidden"], "--hidden"),
        (["--length", "-3"], "--length"),
        (["--length", "1e4"], "--length"),
        (["--batch", "0"], "--batch"),
        (["--seed", "-1"], "--seed"),
        (["--repeats", "0"], "--repeats"),
        (["--window", "0"], "--window"),
        (["--tolerance", "0"], "--tolerance"),
        (["--tolerance", "nan"], "--tolerance"),
        (["--tolerance", "1e-9"], "--dtype float64"),
        (["--cell", "transformer"], "--cell"),
        (["--backend", "tensorflow"], "--backend"),
        (["--backend"], "--backend"),
        (["--dtype", "float16"], "--dtype"),
        (["--hiden", "8"], "did you mean --hidden"),
        (["recording.npy"], "unknown argument recording.npy"),
        (["--picture", "x.jpg"], "--picture"),
        (["--picture", "/no/such/folder/x.png"], "--picture"),
        (["--picture", "x.png", "--no-picture"], "--picture"),
    ],
)
def test_wrong_arguments_are_named(arguments, named, capsys):
    assert main(arguments) == 2
    assert named in complaint(capsys)


# What is missing, the framework asked for, and what is looked for before.
@pytest.mark.parametrize(
    ("name", "backend", "before"),
    [
        ("jax", None, None),
        ("jax", "jax", None),
        ("equinox", None, "jax"),
        ("numpy", None, None),
        ("matplotlib", "jax", None),
        ("torch", "torch", None),
        ("numpy", "torch", None),
        ("matplotlib", "torch", None),
    ],
)
def test_missing_extras(name, backend, before, tmp_path):
    if before:
        pytest.importorskip(before)
    # In a fresh process, for what is loaded already is not looked for again.
    code = (
        "import sys; sys.modules[sys.argv[1]] = None; "
        "from parafix.deer._demo import main; sys.exit(main(sys.argv[2:]))"
    )
    arguments = ["--input", saved(tmp_path, WAVE)]
    if backend:
        arguments += ["--backend", backend]
    if name != "matplotlib":
        arguments.append("--no-picture")
    done = subprocess.run(
        [sys.executable, "-c", code, name, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    hint = "" if backend else " (for PyTorch: parafix demo deer --backend torch)"
    assert done.stderr == (
        f"parafix demo deer: needs {name}, which is not installed: "
        f"pip install 'parafix-deer[{backend or 'jax'},demo]'{hint}\n"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("something else"), False),
    ],
)
def test_too_little_memory(error, said, capsys, monkeypatch):
    def run(options, backend):
        assert backend == "torch"
        raise error

    monkeypatch.setattr("parafix.deer._demo_run.run", run)
    arguments = ["--backend", "torch"]
    if said:
        assert main(arguments) == 1
        assert "--window" in complaint(capsys)
    else:
        with pytest.raises(RuntimeError, match="something else"):
            main(arguments)


def test_built_in_recording():
    pytest.importorskip("matplotlib")
    recording = built_in()
    assert recording.values.shape == (1, 12_000, 1)
    assert recording.unit == "mV"
    assert recording.interval == 0.5e-3
    assert np.isclose(np.median(recording.values[0, :900]), -67, atol=1)
    assert 0 < recording.values.max() < 10


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (WAVE, (1, 40, 1)),
        (WAVE.reshape(20, 2), (1, 20, 2)),
        (WAVE.reshape(2, 10, 2), (2, 10, 2)),
        (np.arange(40) % 7, (1, 40, 1)),
        (WAVE > 0, (1, 40, 1)),
        (WAVE.astype(np.float16), (1, 40, 1)),
    ],
)
def test_npy(array, shape, tmp_path):
    recording = read(saved(tmp_path, array))
    assert recording.values.shape == shape
    assert recording.values.dtype == np.float64
    assert np.array_equal(recording.values.ravel(), array.ravel())


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (lines(WAVE), 1),
        ("volts\n" + lines(WAVE), 1),
        ("a,b\n" + lines(f"{x}, {x + 1}" for x in WAVE), 2),
        ("a;b\r\n" + lines(f"{x};{x + 1}" for x in WAVE) + "\r\n\r\n", 2),
        ("a\tb\n" + lines(f"{x}\t{x + 1}" for x in WAVE), 2),
        ('"a, b",c\n' + lines(f"{x},1e0" for x in WAVE), 2),
    ],
)
def test_csv(text, columns, tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        values = read(written(tmp_path, text, "X.CSV", encoding)).values
        assert values.shape == (1, 40, columns)
        assert np.array_equal(values[0, :, 0], WAVE)


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.array([1, "a", None], object), "numpy.asarray"),
        (np.array(["a"] * 20), "convert it to float"),
        (WAVE * 1j, "convert it to float"),
        (np.zeros(20, [("a", float)]), "convert it to float"),
        (np.arange(20).astype("M8[s]"), "convert it to float"),
        (WAVE.reshape(2, 2, 5, 2), "reshape it"),
        (np.float64(1), "reshape it"),
        (WAVE[:0], "record more"),
        (WAVE[:9], "record more"),
        (WAVE.reshape(2, 20), "transpose it"),
        (np.ones((20, 0)), "must hold samples"),
        (np.ones(20), "varies"),
        (np.where(np.arange(40) == 17, np.nan, WAVE), "sample 17"),
        (np.where(np.arange(40) == 17, np.inf, WAVE).reshape(2, 20, 1), "sequence 0"),
    ],
)
def test_unfit_arrays(array, remedy, tmp_path, capsys):
    path = saved(tmp_path, array)
    with pytest.raises(InputError, match=re.escape(remedy)):
        read(path)
    assert main(["--no-picture", "--input", path]) == 2
    text = complaint(capsys)
    assert "--input" in text
    assert "x.npy" in text
    assert remedy in text


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("a,b\n", "no samples"),
        ("a,b\n1,2\n3,x\n", "'x' in line 3, column 2 (b)"),
        ("1,2\nx,3\n", "'x' in line 2, column 1,"),
        # A line with a number in it is no header, or a sample would be lost.
        ("1,x\n2,3\n", "'x' in line 1"),
        ("1,2\n3\n", "1 columns in line 2"),
        ("a,b\n1,2\n3,\n", "no value in line 3, column 2 (b)"),
        ("a;b\n1,5;2\n", "decimals with a point"),
        ("date,v\n2020-01-01,3\n", "'2020-01-01'"),
        (lines([1, 2, "nan", *range(20)]), "sample 2"),
        (lines([1, 2, 3]), "record more"),
    ],
)
def test_unfit_tables(text, remedy, tmp_path, capsys):
    path = written(tmp_path, text)
    assert main(["--no-picture", "--input", path]) == 2
    text = complaint(capsys)
    assert "--input" in text
    assert remedy in text


def test_damaged_files(tmp_path):
    whole = Path(saved(tmp_path, WAVE)).read_bytes()
    for content in (
        b"",
        b"hello",
        whole[:20],
        whole[:200],
        whole[:12] + b"((((" + whole[16:],
    ):
        path = tmp_path / "damaged.npy"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"numpy\.save"):
            read(str(path))
    archive = tmp_path / "archive.npy"
    with archive.open("wb") as file:
        np.savez(file, WAVE)
    with pytest.raises(InputError, match="npz"):
        read(str(archive))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="UTF-8"):
        read(str(binary))


def test_pickles_are_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    array = np.array([Trap()], object)
    np.save(tmp_path / "trap.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match="Python objects"):
        read(str(tmp_path / "trap.npy"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["missing.npy", "missing.csv"])
def test_missing_file(name, tmp_path, capsys):
    assert main(["--no-picture", "--input", str(tmp_path / name)]) == 2
    assert f"{name} does not exist" in complaint(capsys)


@pytest.mark.parametrize("name", ["x.txt", "x.npz", "x", ""])
def test_other_endings(name, tmp_path, capsys):
    (tmp_path / "x.txt").write_text("1\n2\n")
    path = str(tmp_path / name) if name else ""
    assert main(["--no-picture", "--input", path]) == 2
    assert "neither .npy nor .csv" in complaint(capsys)


def test_a_folder_is_no_file(tmp_path, capsys):
    (tmp_path / "folder.npy").mkdir()
    path = str(tmp_path / "folder.npy")
    assert main(["--no-picture", "--input", path]) == 2
    assert "is not a file" in complaint(capsys)


def test_too_large_is_said_at_once(tmp_path, capsys):
    path = saved(tmp_path, WAVE)
    arguments = ["--no-picture", "--input", path, "--length", "1000000000"]
    assert main(arguments) == 2
    assert "--length 1000000000" in complaint(capsys)


def test_standardised():
    values = np.stack([WAVE * 1e300, np.full(40, 7.0)], -1)[None]
    values = Recording(values, "").standardised
    assert np.allclose(values[0, :, 0].std(), 1)
    assert np.allclose(values[0, :, 0].mean(), 0)
    # A column that never changes says nothing, and is no reason to stop.
    assert np.array_equal(values[0, :, 1], np.zeros(40))


def test_batch_of_one_recording():
    recording = Recording(WAVE[None, :, None], "")
    assert sizes(recording, None, None) == (4, 40)
    batch = batch_of(recording, 4, 50)
    assert batch.inputs.shape == (4, 50, 2)
    assert batch.columns == 1
    # Started 10 later each, as a circle.
    for i in range(4):
        expected = recording.standardised[0, (10 * i + np.arange(50)) % 40, 0]
        assert np.array_equal(batch.inputs[i, :, 0], expected)
    change = np.diff(batch.inputs[:, :, 0])
    ratio = batch.inputs[:, 1:, 1] / change
    assert np.allclose(ratio, ratio[0, 0])
    assert np.array_equal(batch.inputs[:, 0, 1], np.zeros(4))
    assert np.array_equal(batch.shown[:40, 0], WAVE)


def test_batch_of_several_sequences():
    values = np.random.default_rng(0).standard_normal((3, 20, 2))
    recording = Recording(values, "")
    assert sizes(recording, None, None) == (3, 20)
    assert sizes(recording, 5, 7) == (5, 7)
    batch = batch_of(recording, 5, 20)
    standardised = recording.standardised
    assert np.array_equal(batch.inputs[:3, :, :2], standardised)
    assert np.array_equal(batch.inputs[4, :, :2], np.roll(standardised[1], -10, 0))
    assert batch_of(recording, 2, 7).description == "2 of 3 recorded sequences"


@pytest.mark.parametrize(("cell", "gates"), [("gru", 3), ("lstm", 4), ("tanh", 1)])
def test_networks_are_seeded(cell, gates):
    one, same = network(cell, 5, 2, 1, 7), network(cell, 5, 2, 1, 7)
    other = network(cell, 5, 2, 1, 8)
    for name, weight in one.weights.items():
        assert np.array_equal(weight, same.weights[name])
    assert not np.array_equal(one.weights["state"], other.weights["state"])
    u = one.weights["state"]
    assert u.shape == (gates, 5, 5)
    assert np.allclose(u @ u.transpose(0, 2, 1), np.eye(5))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.34, "12.3 s"), (0.5, "500 ms"), (0.0123, "12.3 ms"), (4.2e-5, "42.0 us")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def comparison(**changes) -> Comparison:
    values = {
        "sequential": Timing(0.1, [0.02, 0.01, 0.03]),
        "deer": Timing(1.0, [0.04, 0.04]),
        "sweeps": (4, 5),
        "residual": 0.1,
        "prefix": 40,
        "deviation": 1e-7,
        "allowed": 1e-6,
        "outputs": (-1.0, 1.0),
        "baseline": "the.loop",
    }
    return Comparison(**{**values, **changes})


def test_ratio_only_of_equal_results():
    text = "\n".join(comparison_table(comparison(), 40, None, of_gradient=False))
    assert "DEER takes 2 times as long" in text
    assert "4 to 5" in text
    assert "sequential: the.loop" in text
    assert "compile time" in text
    for wrong in (
        {"deviation": 1e-5},
        {"deviation": float("nan")},
        {"failure": "The solver used up `max_steps`."},
    ):
        one = comparison(**wrong)
        text = "\n".join(comparison_table(one, 40, None, of_gradient=True))
        assert "sequential / DEER" not in text
        assert "times as" not in text


def test_what_is_not_compiled_has_no_time_for_it():
    one = comparison(sequential=Timing(None, [0.02]), deer=Timing(None, [0.04]))
    text = "\n".join(comparison_table(one, 40, None, of_gradient=False))
    assert "compil" not in text
    assert "DEER takes 2 times as long" in text


@pytest.mark.parametrize("columns", [1, 2, 9])
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_picture(ending, columns, tmp_path):
    pytest.importorskip("matplotlib")
    from parafix.deer._demo_picture import draw, Story

    recording = Recording(np.outer(WAVE, np.arange(1, columns + 1))[None], "", "mV")
    # More times than the heat map has columns, and an iterate that is right exactly.
    errors = np.logspace(0, -9, 3 * 2500).reshape(3, 2500)
    errors[2] = 0
    sweeps = [Sweep(0, 0, 0.5, error.mean(), error.max()) for error in errors]
    story = Story(
        "title",
        batch_of(recording, 1, 2500),
        Sweeps(sweeps, errors, 1.0),
        {"Forward": comparison(), "Value and gradient": comparison()},
        tolerance=1e-6,
        eps=1e-7,
    )
    path = tmp_path / f"story.{ending}"
    draw(story, str(path))
    start = b"\x89PNG" if ending == "png" else b"<?xml"
    assert path.read_bytes().startswith(start)


def test_the_heat_map_hides_no_error():
    pytest.importorskip("matplotlib")
    from parafix.deer._demo_picture import _binned

    errors = np.zeros((1, 12_345))
    errors[0, 777] = 1
    binned, edges = _binned(errors)
    assert binned.shape[1] == len(edges) - 1 <= 1000
    (found,) = np.flatnonzero(binned[0])
    assert edges[found] <= 777 < edges[found + 1]
