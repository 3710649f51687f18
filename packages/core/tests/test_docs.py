"""The documentation shows files of `examples`: their text, and all of a plugin."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "extending.md"
EXAMPLES = ROOT / "examples"
PLUGIN = EXAMPLES / "third_party_plugin"
SHOWN = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="this is not a checkout")


def blocks() -> dict[str, str]:
    """The blocks of the page with a title, which is a path."""
    found = SHOWN.findall(PAGE.read_text("utf-8"))
    assert len(found) == len(dict(found))
    return dict(found)


def sources() -> list[Path]:
    return sorted(path for path in EXAMPLES.rglob("*.py") if "build" not in path.parts)


def public_names(module: str) -> set[str]:
    """`__all__` of a module of ours, without importing it."""
    package = module.split(".")[1]
    path = ROOT.joinpath("packages", package, "src", *module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{module} has no __all__")


def test_blocks_are_the_files():
    for title, text in blocks().items():
        assert (EXAMPLES / title).read_text("utf-8") == text, title


def test_the_whole_plugin_is_shown():
    shown = {EXAMPLES / title for title in blocks()}
    empty = PLUGIN / "src" / "parafix_example" / "__init__.py"
    files = {path for path in sources() if path.is_relative_to(PLUGIN)}
    assert {PLUGIN / "pyproject.toml", *files} - shown == {empty}


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_examples_use_public_names(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules = [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            if modules[0].startswith("parafix."):
                assert {item.name for item in node.names} <= public_names(modules[0])
        else:
            continue
        parts = {part for module in modules for part in module.split(".")}
        assert not any(part.startswith("_") for part in parts)
