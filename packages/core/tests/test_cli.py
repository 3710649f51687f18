import json
import os
import re
import subprocess
import sys

import pytest

import parafix.core
from parafix.core import Component, demos
from parafix.core._cli import main
from parafix.core._known import KNOWN_DEMOS
from parafix.core._table import table


BIBTEX = "@article{someone2000,\n  title = {On Nothing}\n}"

DEMO = """
import argparse

def main(argv=None):
    parser = argparse.ArgumentParser(prog="parafix demo shown")
    parser.add_argument("--cell", default="none")
    parser.add_argument("rest", nargs="*")
    parsed = parser.parse_args(argv)
    print("cell", parsed.cell, "rest", parsed.rest)
    return 7
"""


@pytest.fixture
def alone(monkeypatch, site):
    """No plugin but those that the test installs."""
    monkeypatch.setenv("PARAFIX_BLOCK_PLUGINS", "core,deer,feedforward")
    return site


def complaint(capsys, arguments, code=2) -> str:
    """The one line on stderr that a command ends with."""
    assert main(arguments) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("parafix: ")
    return output.err


class TestList:
    def test_table(self, alone, capsys):
        alone.add_component("wonder", "wonder", options="summary='a b c'")
        alone.add_component("second", "a-longer-name", kind="scan", backend="torch")
        assert main(["list"]) == 0
        header, *rows = capsys.readouterr().out.splitlines()
        assert header.split() == ["KIND", "NAME", "BACKEND", "DISTRIBUTION", "SUMMARY"]
        assert [row.split() for row in rows] == [
            ["rootfinder", "wonder", "jax", "wonder", "a", "b", "c"],
            ["scan", "a-longer-name", "torch", "second"],
        ]
        # Columns begin where their headings do.
        assert rows[0].index("wonder") == header.index("NAME")
        assert rows[1].index("torch") == header.index("BACKEND")

    def test_filters(self, alone, capsys):
        alone.add_component("one", "one")
        alone.add_component("two", "two", kind="scan")
        alone.add_component("three", "three", kind="scan", backend="torch")
        main(["list", "--kind", "scan", "--backend", "jax"])
        output = capsys.readouterr().out
        assert "two" in output
        assert "one" not in output
        assert "three" not in output

    def test_json(self, alone, capsys):
        alone.add_component("wonder", "wonder", options="aliases=('marvel',)")
        assert main(["list", "--json"]) == 0
        (item,) = json.loads(capsys.readouterr().out)
        assert item == {
            "kind": "rootfinder",
            "name": "wonder",
            "backend": "jax",
            "target": "wonder._target:Thing",
            "summary": "",
            "aliases": ["marvel"],
            "cite": [],
            "distribution": "wonder",
        }

    def test_empty(self, alone, capsys):
        assert main(["list"]) == 0
        assert capsys.readouterr().out == "nothing is registered\n"
        assert main(["list", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []

    def test_failures_are_mentioned(self, alone, capsys):
        alone.add("broken", "1 / 0")
        alone.add_component("wonder", "wonder")
        assert main(["list", "--json"]) == 0
        output = capsys.readouterr()
        assert len(json.loads(output.out)) == 1
        assert output.err == "parafix: 1 plugin is broken; `parafix doctor` says why\n"


class TestDoctor:
    def test_healthy(self, alone, capsys):
        alone.add_component("wonder", "wonder")
        alone.add_demo("shown", "shown", DEMO)
        assert main(["doctor"]) == 0
        output = capsys.readouterr().out
        assert re.search(r"^  python +\d+\.\d+", output, re.MULTILINE)
        assert re.search(r"^  parafix-core +0\.1", output, re.MULTILINE)
        assert re.search(r"^  wonder +wonder 1\.0 +ok$", output, re.MULTILINE)
        assert re.search(r"^  rootfinder 'wonder' for jax +wonder +ok$", output, re.M)
        assert re.search(r"^  demo 'shown' +shown +ok$", output, re.MULTILINE)
        assert "blocked by PARAFIX_BLOCK_PLUGINS" in output
        assert output.endswith("all is well\n")

    def test_scans(self, alone, capsys):
        assert main(["doctor"]) == 0
        _, _, scans = capsys.readouterr().out.partition("\nscans\n")
        for backend in ("jax", "torch"):
            # What is taken here, or what is missing; the backends' own tests say more.
            assert re.search(rf"^  {backend} +(auto takes|needs)", scans, re.MULTILINE)

    def test_broken_target(self, alone, capsys):
        alone.add_component("wonder", "wonder", target_source="1 / 0")
        assert main(["doctor"]) == 1
        output = capsys.readouterr().out
        assert "broken: ZeroDivisionError: division by zero" in output
        assert output.endswith("1 thing is broken\n")

    def test_target_that_cannot_be_called(self, alone, capsys):
        alone.add_component("wonder", "wonder", target_source="Thing = 1")
        assert main(["doctor"]) == 1
        assert "cannot be called" in capsys.readouterr().out

    def test_broken_plugin(self, alone, capsys):
        alone.add("broken", "def helper():\n    1 / 0\nhelper()\n")
        assert main(["doctor"]) == 1
        output = capsys.readouterr().out
        assert "broken, see below" in output
        assert "broken (broken): importing broken._plugin raised" in output
        assert "in helper" in output

    def test_conflict(self, alone, capsys):
        alone.add_component("one", "same")
        alone.add_component("two", "same")
        assert main(["doctor"]) == 1
        output = capsys.readouterr().out
        assert "conflicts\n" in output
        assert "write 'one:same' or 'two:same'" in output

    def test_absent_framework_is_not_broken(self, alone, capsys, without):
        without("torch")
        alone.add_component(
            "wonder",
            "wonder",
            backend="torch",
            target_source="import torch",
            extras=["torch"],
        )
        assert main(["doctor"]) == 0
        output = capsys.readouterr().out
        assert re.search(r"^  torch +not installed$", output, re.MULTILINE)
        assert "needs torch" in output
        assert "pip install 'wonder[torch]'" in output

    def test_devices(self, alone, capsys, monkeypatch):
        torch = """
class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
    get_device_name = staticmethod(lambda index: f"Fast {index}")

class backends:
    class mps:
        is_available = staticmethod(lambda: False)
"""
        alone.add("torch", version="9.9", files={"__init__.py": torch})
        for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
            monkeypatch.delitem(sys.modules, name)
        assert main(["doctor"]) == 0
        output = capsys.readouterr().out
        assert "cpu, cuda:0 (Fast 0), cuda:1 (Fast 1)" in output
        assert re.search(r"^  torch +9\.9$", output, re.MULTILINE)

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("raise OSError('no driver')", "OSError: no driver"),
            ("import wonder_that_is_missing", "No module named 'wonder_that_is_"),
        ],
    )
    def test_broken_framework(self, alone, capsys, monkeypatch, source, words):
        alone.add("torch", version="9.9", files={"__init__.py": source})
        for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
            monkeypatch.delitem(sys.modules, name)
        assert main(["doctor"]) == 1
        output = capsys.readouterr().out
        assert words in output

    def test_block_list_with_a_typo(self, alone, capsys, monkeypatch):
        monkeypatch.setenv("PARAFIX_BLOCK_PLUGINS", "core,deer,feedforward,wodner")
        assert main(["doctor"]) == 0
        assert "names 'wodner', which is no plugin" in capsys.readouterr().out


class TestDemo:
    def test_list(self, alone, capsys):
        alone.add_demo("shown", "shown", "1 / 0")
        assert main(["demo"]) == 0
        output = capsys.readouterr().out
        assert "shows shown" in output
        assert "parafix demo shown --help" in output

    def test_none_installed(self, alone, capsys):
        assert main(["demo"]) == 0
        assert "pip install 'parafix-deer[jax,demo]'" in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["shown", "shown:shown"])
    def test_arguments_pass_through(self, alone, capsys, name):
        alone.add_demo("shown", "shown", DEMO)
        arguments = ["--cell", "gru", "--", "--json", "list"]
        assert main(["demo", name, *arguments]) == 7
        assert capsys.readouterr().out == "cell gru rest ['--json', 'list']\n"

    def test_help_reaches_the_demo(self, alone, capsys):
        alone.add_demo("shown", "shown", DEMO)
        with pytest.raises(SystemExit) as caught:
            main(["demo", "shown", "--help"])
        assert caught.value.code == 0
        assert "usage: parafix demo shown" in capsys.readouterr().out

    def test_own_help(self, alone, capsys):
        assert main(["demo", "--help"]) == 0
        assert "parafix demo [NAME" in capsys.readouterr().out

    def test_no_code_is_success(self, alone):
        alone.add_demo("shown", "shown", "def main(argv): return None")
        assert main(["demo", "shown"]) == 0

    def test_errors_of_a_demo_are_its_own(self, alone):
        alone.add_demo("shown", "shown", "def main(argv): return {}['key']")
        with pytest.raises(KeyError):
            main(["demo", "shown"])

    def test_missing_module_of_its_own(self, alone):
        source = "def main(argv): import wonder_that_is_missing"
        alone.add_demo("shown", "shown", source)
        with pytest.raises(ModuleNotFoundError):
            main(["demo", "shown"])

    def test_interrupt(self, alone):
        alone.add_demo("shown", "shown", "def main(argv): raise KeyboardInterrupt")
        assert main(["demo", "shown"]) == 130

    @pytest.mark.parametrize(
        "source",
        ["import matplotlib", "def main(argv):\n    import matplotlib\n"],
        ids=["at import", "when run"],
    )
    def test_missing_library(self, alone, capsys, without, source):
        without("matplotlib")
        alone.add_demo("shown", "shown", source, extras=["demo"])
        message = complaint(capsys, ["demo", "shown"], code=1)
        assert "needs matplotlib" in message
        assert "pip install 'shown[demo]'" in message

    def test_missing_library_without_an_extra(self, alone, capsys, without):
        without("matplotlib")
        alone.add_demo("shown", "shown", "import matplotlib")
        message = complaint(capsys, ["demo", "shown"], code=1)
        assert message.endswith("pip install matplotlib\n")

    def test_broken(self, alone, capsys):
        alone.add_demo("shown", "shown", "1 / 0")
        message = complaint(capsys, ["demo", "shown"], code=1)
        assert "ZeroDivisionError" in message

    def test_unknown(self, alone, capsys):
        alone.add_demo("shown", "shown", DEMO)
        message = complaint(capsys, ["demo", "shwon", "--cell", "gru"])
        assert "did you mean 'shown'?" in message

    def test_not_installed(self, site, capsys, monkeypatch):
        monkeypatch.setitem(KNOWN_DEMOS, "wonder", ("parafix-wonder", ("torch",)))
        message = complaint(capsys, ["demo", "wonder"])
        assert "pip install 'parafix-wonder[torch]'" in message

    def test_conflict(self, alone, capsys):
        alone.add_demo("one", "same", DEMO)
        alone.add_demo("two", "same", DEMO)
        assert "'one:same' or 'two:same'" in complaint(capsys, ["demo", "same"])


class TestCite:
    def test_each_key_once(self, alone, capsys):
        alone.add_component("one", "same", options=f"cite=({BIBTEX!r},)")
        alone.add_component("two", "same", kind="scan", options=f"cite=({BIBTEX!r},)")
        assert main(["cite", "same", "one:same"]) == 0
        output = capsys.readouterr()
        assert output.out == BIBTEX + "\n"
        assert output.err == ""

    def test_no_paper(self, alone, capsys):
        alone.add_component("one", "bare")
        alone.add_component("two", "cited", options=f"cite=({BIBTEX!r},)")
        assert main(["cite", "bare", "cited"]) == 0
        output = capsys.readouterr()
        assert output.out == BIBTEX + "\n"
        assert output.err == "parafix: bare names no paper\n"

    def test_unknown(self, alone, capsys):
        alone.add_component("one", "wonder")
        assert "did you mean 'wonder'?" in complaint(capsys, ["cite", "wnder"])
        complaint(capsys, ["cite", "two:wonder"])

    def test_our_own_are_whole(self, registry, capsys):
        cited = [item for item in parafix.core.components() if item.cite]
        assert main(["cite", *(item.name for item in cited)]) == 0
        output = capsys.readouterr().out
        entries = output.strip().split("\n\n")
        for entry in entries:
            fields = re.findall(r"^  (\w+) = \{", entry, re.MULTILINE)
            assert {"title", "author", "year"} <= set(fields)
            assert len(fields) == len(set(fields))
            # Every field but the last ends with a comma.
            assert len(re.findall(r"\},$", entry, re.MULTILINE)) == len(fields) - 1


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["lst"], "did you mean 'list'?"),
            (["frobnicate"], "the commands are: list, doctor, demo, cite"),
            (["list", "--kind", "solver"], "'rootfinder', 'scan', 'adjoint'"),
            (["list", "--backend", "numpy"], "'jax', 'torch'"),
            (["list", "extra"], "extra"),
            (["doctor", "--frobnicate"], "--frobnicate"),
            (["cite"], "NAME"),
            (["--frobnicate"], "--help"),
            (["demo", ""], "no demo ''"),
        ],
    )
    def test_one_line(self, registry, capsys, arguments, words):
        assert words in complaint(capsys, arguments)


class TestCommand:
    def test_help_teaches(self, capsys):
        assert main(["--help"]) == 0
        helped = capsys.readouterr().out
        assert main([]) == 0
        assert capsys.readouterr().out == helped
        for words in ("parafix list", "doctor", "parafix cite deer", "BLOCK_PLUGINS"):
            assert words in helped

    def test_help_fits_a_terminal(self, capsys):
        main(["--help"])
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 88

    def test_version(self, capsys):
        assert main(["--version"]) == 0
        version = capsys.readouterr().out
        assert version == f"parafix-core {parafix.core.__version__}\n"

    @pytest.mark.parametrize("arguments", [["list", "--json"], ["lst"]])
    def test_process(self, arguments):
        done = subprocess.run(
            [sys.executable, "-m", "parafix.core", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if arguments == ["lst"]:
            assert done.returncode == 2
            assert "did you mean 'list'?" in done.stderr
            assert "Traceback" not in done.stderr
        else:
            assert done.returncode == 0, done.stderr
            found = {item["name"] for item in json.loads(done.stdout)}
            assert "associative" in found

    def test_closed_pipe(self):
        # As `parafix list | true` does.
        with subprocess.Popen(
            [sys.executable, "-m", "parafix.core", "list"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        ) as process:
            process.stdout.close()
            complaints = process.stderr.read()
        assert complaints == ""
        assert process.returncode == 1


def test_own_components_show(registry, capsys):
    undo = parafix.core.register(Component("scan", "mine", "jax", "a:B"))
    main(["list"])
    assert re.search(r"scan +mine +jax +local", capsys.readouterr().out)
    undo()
    assert all(demo.name != "mine" for demo in demos())


def test_table():
    assert table([]) == []
    assert table([("a", "bcd"), ("efg", "")]) == ["a    bcd", "efg"]
