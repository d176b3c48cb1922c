"""Keys: what a step's result depends on, hashed without any data.

A key hashes a step's arguments and its *code*: the definition of the step and every definition of ``lib`` that it reaches by
name, nothing else of their modules. Positions, comments, docstrings and formatting do not count. An object that is passed
as an argument (a probe, a view, a penalty) is hashed as what it is: its fields and the code of its class. What stands outside
``lib`` (a notebook's cell, a reader's script) is hashed by its source and by what its names stand for when it is called.

Names are followed as they are written: ``getattr`` on a module and imports inside functions are not.
"""

import ast
import functools
import hashlib
import inspect
import json
import re
import symtable
import sys
import sysconfig
import types
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from lib import config

_LEFT_OUT = ("lib.config.", "lib.store.")  # settings pass by argument, and the store only moves bytes

_SCOPE = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_DEFINITION = _SCOPE | ast.Assign | ast.AnnAssign | ast.AugAssign
_IMPORT = ast.Import | ast.ImportFrom

Use = tuple[str, ...]  # a name, and the attributes asked of it one after the other


class Keyed:
    """What stands in a key by a key of its own, as an artifact does."""

    key: str


def digest(value: Any) -> str:
    """SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def bare(node: Any) -> Any:
    """A syntax tree as plain lists: no positions, docstrings or empty fields, so the same from Python 3.11 to 3.13."""
    if isinstance(node, list):
        return [bare(item) for item in node if not _is_idle(item)]
    if not isinstance(node, ast.AST):
        return ascii(node)  # not repr, which depends on the Unicode tables of this Python
    if isinstance(node, ast.JoinedStr):  # Python 3.12 puts empty texts into some
        return ["JoinedStr", [bare(part) for part in node.values if getattr(part, "value", "") != ""]]
    kept = {k: v for k, v in ast.iter_fields(node) if v not in (None, []) and k not in ("kind", "type_comment")}
    return [type(node).__name__, {name: bare(value) for name, value in kept.items()}]


def _is_idle(node: Any) -> bool:
    """A statement that does nothing: a docstring, ``...`` or ``pass``."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def binds(node: ast.AST) -> Iterator[str]:
    """Names that a statement of a module binds, imports left out."""
    for part in [node] if isinstance(node, _SCOPE) else ast.walk(node):
        if isinstance(part, _SCOPE):
            yield part.name
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id


def _chains(node: ast.AST) -> Iterator[Use]:
    inner, chain = node, list[str]()
    while isinstance(inner, ast.Attribute):
        chain.insert(0, inner.attr)
        inner = inner.value
    if isinstance(inner, ast.Name):
        yield (inner.id, *chain)
    for child in ast.iter_child_nodes(inner):
        yield from _chains(child)


def _is_flat(scope: symtable.SymbolTable, within: bool) -> bool:
    """Classes are; comprehensions are from Python 3.12 on a part of what they stand in."""
    return scope.get_type() == "class" or (within and scope.get_name() in ("listcomp", "setcomp", "dictcomp"))


def uses(nodes: Sequence[ast.AST]) -> set[Use]:
    """Names that statements take from outside, each with the attributes asked of it."""
    text = re.sub("^( *)nonlocal .*$", r"\1pass", "\n".join(map(ast.unparse, nodes)), flags=re.MULTILINE)
    scopes, outside = [(symtable.symtable(text, "", "exec"), True)], set[str]()
    for scope, flat in scopes:  # which grows; in a flat one a name that is bound may have been read from outside first
        scopes += [(inner, _is_flat(inner, flat)) for inner in scope.get_children()]
        taken = (x for x in scope.get_symbols() if x.is_imported() or (x.is_referenced() if flat else x.is_global()))
        outside |= {symbol.get_name() for symbol in taken}
    return {use for node in nodes for use in _chains(node) if use[0] in outside}


class Room(NamedTuple):
    """A module: the statements that define each name, and the dotted paths that an imported name stands for.

    Under "" is what the module does when it is imported, which counts for all in it.
    """

    code: dict[str, list[ast.stmt]]
    imports: dict[str, list[str]]


def room(source: str) -> Room:
    """A module of its source."""
    found, tree = Room({}, {}), ast.parse(source)
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, _IMPORT) else ():
            path = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            bound = alias.asname or alias.name.split(".")[0]  # "import a.b" binds a
            whole = isinstance(node, ast.ImportFrom) or alias.asname is not None
            found.imports.setdefault(bound, []).append(path if whole else bound)
    for node in tree.body:
        checking = isinstance(node, ast.If) and any(use[-1] == "TYPE_CHECKING" for use in uses([node.test]))
        if not (checking or _is_idle(node) or isinstance(node, _IMPORT)):
            names, parts = list(binds(node)), [] if isinstance(node, _SCOPE) else ast.walk(node)
            stored = (x for x in parts if isinstance(x, ast.Attribute | ast.Subscript))
            changes = any(isinstance(x.ctx, ast.Store) for x in stored)  # what is defined elsewhere
            for name in names if names and isinstance(node, _DEFINITION) and not changes else [*names, ""]:
                found.code.setdefault(name, []).append(node)
    return found


def _sources() -> dict[str, str]:
    """The source of every module of lib that counts, by its name."""
    paths = sorted((config.ROOT / "lib").rglob("*.py"))
    named = {".".join(p.relative_to(config.ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    return {n: p.read_text(encoding="utf-8") for n, p in named.items() if not f"{n}.".startswith(_LEFT_OUT)}


_SOURCES = _sources()  # now, at import: the files may change while this process runs the old ones
_REWRITTEN: dict[str, Any] = json.loads((config.ROOT / "data" / "rewritten.json").read_text(encoding="utf-8"))


@functools.cache
def _room(module: str) -> Room:
    return room(_SOURCES.get(module, ""))


@functools.cache
def _definition(module: str, name: str) -> tuple[str, list[tuple[str, str]]]:
    """(hash of a definition's bare tree, the definitions of lib that it names). One that was rewritten to give the same bits in less time
    counts as what it ``was`` (``data/rewritten.json``), for as long as it reads as it did ``then``."""
    nodes = _room(module).code.get(name, [])
    found, row = digest(bare(nodes)), _REWRITTEN.get(f"{module}.{name}")
    found = row["was"] if row and row["then"] == found else found
    return found, [target for use in uses(nodes) for target in _targets(module, use)]


def _targets(module: str, use: Use) -> Iterator[tuple[str, str]]:
    """The definitions of lib that a dotted name stands for in a module."""
    if use[0] in _room(module).code:
        yield module, use[0]
    for path in _room(module).imports.get(use[0], []):
        yield from _along(path, use[1:])


def _along(path: str, rest: Use) -> Iterator[tuple[str, str]]:
    """The definition of lib that ``path`` stands for, or where it is a module the attributes asked of it."""
    if path not in _SOURCES:
        module, _, name = path.rpartition(".")
        yield from _targets(module, (name,))
    elif rest:
        inner = f"{path}.{rest[0]}"
        yield from _along(inner, rest[1:]) if inner in _SOURCES else _targets(path, rest)


def reached(module: str, name: str) -> dict[str, str]:
    """{"module.name": hash of its tree} of a definition of lib and of all that it reaches by name within lib."""
    seen: dict[str, str] = {}
    todo = [*_targets(module, (name,))]
    while todo:
        where, what = todo.pop()
        if f"{where}.{what}" not in seen:
            seen[f"{where}.{what}"], names = _definition(where, what)
            todo += [*names, (where, "")]
    return seen


@functools.cache
def _in_lib(module: str, name: str) -> str:
    return digest(sorted(reached(module, name).items()))


def _is_installed(module: str) -> bool:
    """Whether a module is of another package, which counts by name: constraints.txt pins what is installed."""
    path = Path(getattr(sys.modules.get(module), "__file__", None) or sysconfig.get_path("stdlib"))
    known = path.is_relative_to(sysconfig.get_path("stdlib")) or {"site-packages", "dist-packages"} & {*path.parts}
    return module != "__main__" and bool(known)


def _code(thing: Any, seen: list[Any]) -> Any:
    """The form of a function or class; those in ``seen`` count by number, since functions may name each other."""
    module, name = str(getattr(thing, "__module__", "")), thing.__qualname__
    if module.startswith("lib."):
        return _in_lib(module, name.split(".")[0])
    if _is_installed(module):
        return f"{module}.{name}"
    if found := [number for number, other in enumerate(seen) if other is thing]:
        return found[0]
    seen.append(thing)
    if not isinstance(thing, type):
        return _source(thing, seen)
    written = {n: canonical(v, seen) for n, v in sorted(vars(thing).items()) if _is_written(thing, n, v)}
    return [list(vars(thing).get("__annotations__", {})), [canonical(base, seen) for base in thing.__bases__], written]


def _is_written(owner: type, name: str, value: Any) -> bool:
    """Whether an attribute stands in the text of a class, not made by Python, by @dataclass or for abstract classes."""
    function = inspect.unwrap(value)
    if name.startswith("__"):
        made = not inspect.isfunction(function) or function.__code__.co_filename == "<string>"
        return not made and function.__module__ == owner.__module__
    return name != "_abc_impl" and (isinstance(value, property) or not inspect.isdatadescriptor(value))


def _source(function: Any, seen: list[Any]) -> Any:
    """The tree of a function, and what the names in it stand for now."""
    try:
        text = inspect.getsource(function)
        nodes = ast.parse(f"if 1:\n{text}" if text[0].isspace() else text).body  # a method is indented
    except (OSError, SyntaxError):
        nodes = []
    if not nodes or function.__name__ == "<lambda>":
        raise TypeError(f"{function.__qualname__} has no source of its own: write it with def, in a cell or a file")
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    scope = function.__globals__ | {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}
    named = {}
    for use in sorted(use for use in uses(nodes) if use[0] in scope):
        try:
            named[".".join(use)] = _meant(scope[use[0]], use[1:], seen)
        except TypeError as error:
            raise TypeError(f"{function.__qualname__} names {use[0]}: {error}") from None
    return [bare(nodes), named]


def _meant(value: Any, rest: Use, seen: list[Any]) -> Any:
    """The form of what a dotted name stands for; of modules count those of lib and a reader's own."""
    while inspect.ismodule(value):
        if value.__name__.split(".")[0] == "lib":
            return {".".join(target): _in_lib(*target) for target in _along(value.__name__, rest)}
        if not rest or _is_installed(value.__name__):
            return None
        value, rest = getattr(value, rest[0]), rest[1:]
    return canonical(value, seen)


def canonical(value: Any, seen: list[Any] | None = None) -> Any:
    """A JSON form of an argument, the same in every process; ``seen`` are the functions and classes that it stands in. TypeError
    for what has none (an open file, an array), also where a cell's function or class names it."""
    seen = [] if seen is None else seen
    if isinstance(value, Keyed):
        return {"artifact": value.key}
    if isinstance(value, BaseModel):
        return {type(value).__name__: canonical({n: getattr(value, n) for n in type(value).model_fields}, seen)}
    if is_dataclass(value) and not isinstance(value, type):
        given = {field.name: canonical(getattr(value, field.name), seen) for field in fields(value)}
        return {type(value).__name__: given, "code": digest(_code(type(value), seen))}
    if isinstance(value, dict):
        return {str(k): canonical(v, seen) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [canonical(v, seen) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((canonical(v, seen) for v in value), key=json.dumps)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, property):
        return [canonical(f, seen) for f in (value.fget, value.fset, value.fdel)]
    if isinstance(value, types.GenericAlias | types.UnionType) or type(value).__module__ == "typing":
        return repr(value)
    thing = inspect.unwrap(value.func if isinstance(value, functools.cached_property) else value)
    owner = getattr(thing, "__self__", None)  # of a function: None or a module
    if hasattr(thing, "__qualname__") and (owner is None or inspect.ismodule(owner)):
        return _code(thing, seen)
    raise TypeError(f"a step's arguments must be plain values, models or artifacts, not {type(value).__name__}")


def code_of(thing: Any) -> str:
    """Hash of what a function or class reaches."""
    return digest(canonical(thing))
