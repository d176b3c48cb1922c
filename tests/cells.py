"""A notebook's own functions and classes as a module, for tests of them."""

import ast
import functools
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from lib import config


def _kept(node: ast.stmt) -> bool:
    """Imports, functions, classes, and constants, which are written in capitals."""
    named = isinstance(node, ast.Assign) and all(
        name.id.isupper() for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)
    )
    return named or isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def _bare(node: ast.stmt) -> ast.stmt:
    """A default that stands for what a cell has computed is not there: None."""
    if isinstance(node, ast.FunctionDef):
        computed = (isinstance(default, ast.Name) and not default.id.isupper() for default in node.args.defaults)
        pairs = zip(computed, node.args.defaults, strict=True)
        node.args.defaults = [ast.Constant(None) if gone else default for gone, default in pairs]
    return node


@functools.cache
def cells_of(notebook: str) -> Any:
    """The module. No other process can import it, as of a notebook."""
    tree = ast.parse((config.ROOT / "notebooks" / f"{notebook}.py").read_text(encoding="utf-8"))
    name = f"notebook_{notebook[:2]}"
    path = Path(tempfile.mkdtemp()) / f"{name}.py"
    path.write_text("\n\n".join(ast.unparse(_bare(node)) for node in tree.body if _kept(node)), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
