"""Outside plugins that are broken, all at once, beside some that are not.

What single mistakes lead to is tested in test_registry.py; here a whole environment is
full of them, and everything that is not broken has to go on.
"""

import os
import re
import subprocess
import sys

import pytest

import parafix.core
from parafix.core import (
    AmbiguousComponentError,
    ComponentImportError,
    MissingFrameworkError,
    UnknownComponentError,
)
from parafix.core._cli import main


IMPORTS = "from parafix.core import Component, Demo, hookimpl\n\n\n@hookimpl\n"

# Distribution -> the plugin, and all that is to be recorded of it.
BROKEN = {
    "imports-nothing": (
        "import a_module_that_is_missing",
        "importing imports_nothing._plugin raised ModuleNotFoundError: No module named "
        "'a_module_that_is_missing'",
    ),
    "imports-torch": (
        "import torch",
        "importing imports_torch._plugin raised ModuleNotFoundError: import of torch "
        "halted; None in sys.modules",
    ),
    "leaves": (
        "raise SystemExit('no licence')",
        "importing leaves._plugin raised SystemExit: no licence",
    ),
    "forgets-to-yield": (
        IMPORTS + "def parafix_scans():\n    Component('scan', 'lost', 'jax', 'a:B')\n",
        "parafix_scans() returned None: is there a `yield` missing?",
    ),
    "raises-at-once": (
        IMPORTS + "def parafix_adjoints():\n    raise OSError('no cache folder')\n",
        "parafix_adjoints() raised OSError: no cache folder",
    ),
    "raises-later": (
        IMPORTS + "def parafix_scans():\n"
        "    yield Component('scan', 'kept', 'jax', 'raises_later._target:Thing')\n"
        "    raise RuntimeError('no more')\n",
        "parafix_scans() raised RuntimeError: no more",
    ),
    "wrong-field": (
        IMPORTS + "def parafix_scans():\n"
        "    yield Component('scan', 'Upper', 'jax', 'a:B')\n",
        "parafix_scans() raised ValueError: name must be lower-case letters and "
        "digits, with single hyphens or underscores between them, got 'Upper'",
    ),
    "wrong-hook": (
        IMPORTS + "def parafix_rootfinders():\n"
        "    yield Component('scan', 'misplaced', 'jax', 'a:B')\n",
        "parafix_rootfinders yields rootfinders, but yielded Component(kind='scan', "
        "name='misplaced', backend='jax', target='a:B', summary='', aliases=(), "
        "cite=(), distribution='')",
    ),
    "wrong-type": (
        IMPORTS + "def parafix_demos():\n    yield ('demo', 'a:b')\n",
        "parafix_demos yields Demos, but yielded ('demo', 'a:b')",
    ),
}

AMBIGUOUS = (
    "rootfinder 'same' for jax is registered by one and by two: write 'one:same' or "
    "'two:same' to choose"
)
TAKEN = (
    "scan 'sequential' for jax is registered by parafix-core and by second-hand: write "
    "'parafix-core:sequential' or 'second-hand:sequential' to choose"
)
NEEDS_TORCH = (
    "needs torch, which is not installed: pip install 'framework-missing[torch]'"
)


@pytest.fixture
def crowd(site, without):
    """A site with every broken plugin, a missing framework, two clashes and a hale
    plugin.
    """
    without("torch")
    for distribution, (plugin, _) in BROKEN.items():
        target = {"_target.py": "class Thing: ...\n"}
        site.add(distribution, plugin, files=target)
    site.add_component(
        "framework-missing",
        "elsewhere",
        backend="torch",
        target_source="import torch",
        extras=["torch"],
    )
    site.add_component("broken-target", "hollow", target_source="1 / 0")
    site.add_component("one", "same")
    site.add_component("two", "same")
    site.add_component("second-hand", "sequential", kind="scan")
    site.add_component("hale", "hale", kind="adjoint", options="summary='is there'")
    site.add_demo("hale-demo", "hale", "def main(argv): print(argv); return 5")
    return site


def raised(error, kind, name, backend="jax"):
    with pytest.raises(error) as caught:
        parafix.core.get(kind, name, backend=backend)
    return str(caught.value)


class TestRegistry:
    def test_every_failure_is_recorded_once(self, crowd):
        found = [(item.distribution, item.reason) for item in parafix.core.failures()]
        expected = [(name, reason) for name, (_, reason) in BROKEN.items()]
        assert found == sorted(expected)

    def test_what_was_raised_has_a_traceback(self, crowd):
        for failure in parafix.core.failures():
            where = f"{failure.plugin}{os.sep}_plugin.py"
            assert (where in failure.traceback) == (" raised " in failure.reason)

    def test_the_rest_is_there(self, crowd):
        for kind, name in [
            ("adjoint", "hale"),
            ("scan", "kept"),
            ("rootfinder", "one:same"),
            ("rootfinder", "two:same"),
            ("scan", "second-hand:sequential"),
        ]:
            assert parafix.core.get(kind, name, backend="jax").__name__ == "Thing"
        names = {
            item.name
            for item in parafix.core.components()
            if item.distribution == "parafix-core"
        }
        assert names >= {"sequential", "associative", "implicit"}

    def test_clash(self, crowd):
        assert raised(AmbiguousComponentError, "rootfinder", "same") == AMBIGUOUS
        # Nor may anybody take over a name of the core in silence.
        assert raised(AmbiguousComponentError, "scan", "sequential") == TAKEN

    def test_missing_framework(self, crowd):
        message = raised(MissingFrameworkError, "rootfinder", "elsewhere", "torch")
        assert message == f"rootfinder 'elsewhere' for torch {NEEDS_TORCH}"

    def test_broken_target(self, crowd):
        message = raised(ComponentImportError, "rootfinder", "hollow")
        assert message == (
            "rootfinder 'hollow' for jax is registered by broken-target, but its "
            "target broken_target._target:Thing cannot be imported: "
            "ZeroDivisionError: division by zero"
        )

    def test_target_that_leaves(self, site):
        site.add_component("leaves", "gone", target_source="raise SystemExit('no')")
        assert "SystemExit: no" in raised(ComponentImportError, "rootfinder", "gone")

    def test_what_a_broken_plugin_may_have_had(self, crowd):
        plugins = sorted(name.replace("-", "_") for name in BROKEN)
        message = raised(UnknownComponentError, "adjoint", "misplaced-by-somebody")
        assert message.startswith(
            "no adjoint 'misplaced-by-somebody' for jax is registered; the adjoints "
        )
        assert message.endswith(
            " (what these plugins should have registered may be missing: "
            f"{', '.join(plugins)}; `parafix doctor` says why)"
        )


class TestCommands:
    def test_doctor(self, crowd, capsys):
        assert main(["doctor"]) == 1
        output = capsys.readouterr().out
        sections = dict(
            section.split("\n", 1) for section in output.strip().split("\n\n")[:-1]
        )
        plugins = dict(
            re.fullmatch(r"  (\S+) +\S+ \S+ +(.*)", line).groups()
            for line in sections["plugins"].splitlines()
        )
        broken = {name for name, state in plugins.items() if state != "ok"}
        assert broken == {name.replace("-", "_") for name in BROKEN}
        assert {plugins[name] for name in broken} == {"broken, see below"}
        failures = [
            line
            for line in sections["failures"].splitlines()
            if not line.startswith("    ")
        ]
        assert failures == [
            f"  {name.replace('-', '_')} ({name}): {reason}"
            for name, (_, reason) in sorted(BROKEN.items())
        ]
        assert "    ModuleNotFoundError: No module named" in sections["failures"]
        conflicts = sections["conflicts"].splitlines()
        assert conflicts == [f"  {AMBIGUOUS}", f"  {TAKEN}"]
        components = sections["components"]
        assert re.search(r"'hale' for jax +hale +ok$", components, re.MULTILINE)
        assert f"  {NEEDS_TORCH}\n" in components
        assert "broken: ZeroDivisionError: division by zero" in components

    def test_list(self, crowd, capsys):
        assert main(["list", "--kind", "adjoint"]) == 0
        output = capsys.readouterr()
        assert re.search(r"^adjoint +hale +jax +hale +is there$", output.out, re.M)
        count = len(BROKEN)
        assert output.err == (
            f"parafix: {count} plugins are broken; `parafix doctor` says why\n"
        )

    def test_cite_and_demo(self, crowd, capsys):
        assert main(["cite", "associative"]) == 0
        assert main(["demo", "hale", "--loud"]) == 5
        output = capsys.readouterr().out
        assert output.startswith("@techreport{")
        assert output.endswith("['--loud']\n")

    def test_blocked(self, crowd, capsys, monkeypatch):
        others = ("broken-target", "two", "second-hand", "deer")
        monkeypatch.setenv("PARAFIX_BLOCK_PLUGINS", ",".join([*BROKEN, *others]))
        main(["doctor"])
        output = capsys.readouterr().out
        assert "\nfailures\n" not in output
        assert "\nconflicts\n" not in output
        assert "broken, see below" not in output

    def test_process(self, crowd):
        # As a user meets it: a Python that starts with all of this on its path.
        done = subprocess.run(
            [sys.executable, "-m", "parafix.core", "list", "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(crowd.path)},
        )
        assert done.returncode == 0, done.stderr
        assert '"name": "hale"' in done.stdout
        assert '"name": "associative"' in done.stdout
        assert "plugins are broken; `parafix doctor` says why\n" in done.stderr
        assert "Traceback" not in done.stderr
