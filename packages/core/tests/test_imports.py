import json
import subprocess
import sys

import pytest

import parafix


FRAMEWORKS = {
    "diffrax",
    "equinox",
    "jax",
    "jaxlib",
    "jaxtyping",
    "lineax",
    "numpy",
    "optimistix",
    "scipy",
    "torch",
    "triton",
}

# Loaded on first need: each costs as much as the whole package.
LAZY = {"argparse", "difflib", "email", "importlib.metadata", "json", "zipfile"}


def modules_after(source: str) -> set[str]:
    """The modules that `source` loads in a process of its own."""
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        f"{source}\n"
        "loaded = sorted(set(sys.modules) - before)\n"
        "import json\n"
        "sys.stderr.write(json.dumps(loaded))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr))


@pytest.mark.parametrize(
    "source",
    [
        "import parafix.core",
        "import parafix.core; parafix.core.components(); parafix.core.demos()",
        "import parafix.core._cli as cli; assert cli.main(['list']) == 0",
        "import parafix.core._cli as cli; assert cli.main(['cite', 'jacobi']) == 0",
        "import parafix.core._doctor",
    ],
)
def test_no_framework(source):
    loaded = modules_after(source)
    assert "parafix.core" in loaded
    assert {name.partition(".")[0] for name in loaded} & FRAMEWORKS == set()


def test_nothing_slow_at_import():
    assert modules_after("import parafix.core") & LAZY == set()


def test_plugins_are_not_loaded_at_import():
    loaded = modules_after("import parafix.core")
    assert not [name for name in loaded if name.endswith("._plugin")]


def test_namespace():
    # A file here would hide every other distribution of parafix.
    assert getattr(parafix, "__file__", None) is None
