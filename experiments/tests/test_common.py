import json
import math
import pathlib
import subprocess
import sys

import pytest

from experiments.__main__ import NAMES, run_all
from experiments.common import load, main, number, numbers


ROOT = pathlib.Path(__file__).parents[2]


def test_numbers_of_a_record_are_json():
    assert number(math.nan) is None
    assert numbers([1 / 3, -math.inf], 3) == [0.333, None]
    json.dumps(numbers([math.nan, 1]), allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit) as error:
        main(name, ["--help"])
    assert error.value.code == 0
    words = capsys.readouterr().out
    for expected in ("--quick", "--full", "--plot-only", "exit code", f"{name} --full"):
        assert expected in words


@pytest.mark.parametrize("name", NAMES)
def test_results_are_drawn_without_a_framework(name, tmp_path):
    (tmp_path / "quick-cpu.json").write_text(
        (ROOT / "experiments" / name / "results" / "quick-cpu.json").read_text()
    )
    program = (
        "import sys\n"
        "from experiments.common import main\n"
        f"code = main({name!r}, ['--plot-only', '--out', {str(tmp_path)!r}])\n"
        "assert not {'jax', 'torch'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "quick-cpu.png").stat().st_size > 10_000
    assert "| ---" in done.stdout


def test_nothing_to_draw(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run_all(["--plot-only", "--out", str(tmp_path)])
    assert error.value.code == 2
    assert "run without it first" in capsys.readouterr().err


def test_what_is_no_result(tmp_path, capsys):
    path = tmp_path / "quick-cpu.json"
    for text in ("[1]", "{}", "no JSON", '{"format": 1, "experiment": "other"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="quick-cpu.json"):
            load(path, "deer_speed")
    with pytest.raises(SystemExit):
        main("deer_speed", ["--plot-only", "--out", str(tmp_path)])
    assert "is no result" in capsys.readouterr().err
