"""Lets the API pages show what is written after a class about its constructor.

`Name.__init__.__doc__ = "..."` keeps the arguments of a dataclass out of the summary at
its top. The pages are read from source files, where such an assignment would go unseen.
"""

import ast
import inspect
from typing import Any

import griffe


class ConstructorDocs(griffe.Extension):
    """Appends the text of such assignments to the docstring of their class."""

    def on_module_members(
        self, *, node: ast.AST | griffe.ObjectNode, mod: griffe.Module, **_: Any
    ) -> None:
        if not isinstance(node, ast.Module):
            return
        # Several classes may share a text that the module holds under a name.
        texts = {}
        for statement in node.body:
            match statement:
                case ast.Assign([ast.Name(name)], ast.Constant(str(text))):
                    texts[name] = text
                case ast.Assign(
                    [
                        ast.Attribute(
                            ast.Attribute(ast.Name(name), "__init__"), "__doc__"
                        )
                    ],
                    ast.Constant(str(text)) | ast.Name(text),
                ) if name in mod.members:
                    _append(mod.members[name], texts.get(text, text))


def _append(described: griffe.Object | griffe.Alias, text: str) -> None:
    before = described.docstring.value if described.docstring else ""
    whole = f"{before}\n\n{inspect.cleandoc(text)}".strip()
    described.docstring = griffe.Docstring(whole, parent=described)
