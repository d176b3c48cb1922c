"""Keys: what a step's result depends on, hashed without any data.

A key hashes a step's arguments and its *code*: the definition of the step and every definition of ``lib`` that it reaches by
name, nothing else of their modules. Positions, comments, docstrings and formatting do not count. An object that is passed
as an argument (a probe, a view, a penalty) is hashed as what it is: its fields and the code of its class. So a definition
that no step reaches renews nothing, and a step needs no list of the kinds that it may be given.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from pydantic import BaseModel

from lib import config

# Settings pass by argument and the store only moves bytes: neither belongs to the code that matters.
_LEFT_OUT = ("lib.config", "lib.store")


def digest(value: Any) -> str:
    """SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def bare(node: Any) -> Any:
    """A syntax tree as plain lists: no positions, docstrings or empty fields, so the same from every Python."""
    if isinstance(node, list):
        return [bare(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    kept = {k: v for k, v in ast.iter_fields(node) if v not in (None, []) and k not in ("kind", "type_comment")}
    if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
        kept["body"] = node.body[1:]
    return [type(node).__name__, {name: bare(value) for name, value in kept.items()}]


class Code(NamedTuple):
    """A definition: its trees, and the names that it uses, each with the attribute asked of it ("" for none)."""

    nodes: list[ast.stmt]
    uses: set[tuple[str, str]]


class Room(NamedTuple):
    """A module: its definitions by name ("" holds what it does on import), and where imported names come from."""

    code: dict[str, Code]
    imports: dict[str, tuple[str, str]]


def _names(node: ast.stmt) -> list[str]:
    """What a statement of a module defines; "" stands for what it does on import."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    stored = (x for x in ast.walk(node) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store))
    return [x.id for x in stored] if isinstance(node, ast.Assign | ast.AnnAssign) else [""]


def room(source: str) -> Room:
    """A module of its source."""
    found = Room({}, {})
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            whence = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            found.imports.update({a.asname or a.name: (whence, a.name) for a in node.names})
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            for name in _names(node):
                code = found.code.setdefault(name, Code([], set()))
                code.nodes.append(node)
                walked = list(ast.walk(node))
                code.uses.update((x.id, "") for x in walked if isinstance(x, ast.Name))
                code.uses.update(
                    (x.value.id, x.attr)
                    for x in walked
                    if isinstance(x, ast.Attribute) and isinstance(x.value, ast.Name)
                )
    return found


@functools.cache
def _room(module: str) -> Room | None:
    """A module of lib; None for what is no file of it, or is left out."""
    if not module.startswith("lib.") or any(module == m or module.startswith(f"{m}.") for m in _LEFT_OUT):
        return None
    base = config.ROOT.joinpath(*module.split("."))
    found = [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
    return room(found[0].read_text(encoding="utf-8")) if found else None


def reached(module: str, name: str) -> dict[str, Any]:
    """{"module.name": tree} of a definition and all that it reaches by name within lib."""
    seen: dict[str, Any] = {}
    todo = [(module, name)]
    while todo:
        where, what = todo.pop()
        here = _room(where)
        if here is None or f"{where}.{what}" in seen:
            continue
        if what not in here.code:
            todo += _imported(here, what, "")
            continue
        code = here.code[what]
        seen[f"{where}.{what}"] = bare(code.nodes)
        todo += [(where, "")] if "" in here.code else []
        for used, attribute in code.uses:
            todo += [(where, used)] if used in here.code else _imported(here, used, attribute)
    return seen


def _imported(here: Room, name: str, attribute: str) -> Iterator[tuple[str, str]]:
    """What an imported name stands for: a definition of another module, or ``attribute`` of the module that it is."""
    if name in here.imports:
        whence, what = here.imports[name]
        module = f"{whence}.{what}".lstrip(".")
        if _room(module) is None:
            yield whence, what
        elif attribute:
            yield module, attribute


@functools.cache
def code_of(thing: Any) -> str:
    """Hash of what a function or class reaches; those of a notebook's cells count with their own source alone."""
    if thing.__module__.startswith("lib."):
        return digest(sorted(reached(thing.__module__, thing.__qualname__.split(".")[0]).items()))
    parts = [thing] if inspect.isfunction(thing) else [f for f in vars(thing).values() if inspect.isfunction(f)]
    written = [f for f in parts if inspect.unwrap(f).__code__.co_filename != "<string>"]  # not made by @dataclass
    return digest([bare(ast.parse(textwrap.dedent(inspect.getsource(f))).body) for f in written])


def canonical(value: Any) -> Any:
    """A JSON form of an argument, the same in every process; raises TypeError for what has none."""
    if hasattr(value, "key"):  # an artifact
        return {"artifact": value.key}
    if isinstance(value, BaseModel):
        return {type(value).__name__: canonical({n: getattr(value, n) for n in type(value).model_fields})}
    if is_dataclass(value) and not isinstance(value, type):
        given = {field.name: canonical(getattr(value, field.name)) for field in fields(value)}
        return {type(value).__name__: given, "code": code_of(type(value))}
    if isinstance(value, dict):
        return {str(k): canonical(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a step's arguments must be plain values, models or artifacts, not {type(value).__name__}")
