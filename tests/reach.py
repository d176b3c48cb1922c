"""A trace of every call while steps run: what a step calls of lib must be in what its key says that it reaches."""

from __future__ import annotations

import ast
import inspect
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from lib import config, store
from lib.store import keys
from lib.store.artifacts import parts_of

FILES = {str(config.ROOT.joinpath(*name.split("."))): name for name in keys._SOURCES}
run_here: set[tuple[str, ...]] = set()  # steps that run apart, with the kinds of their arguments, that were traced here


def definitions(code: CodeType) -> list[str]:
    """The names under which keys know the definition of lib that a piece of code stands in; [] for code of others.

    What @dataclass writes is in no file, and imports run modules: neither counts.
    """
    module = FILES.get(code.co_filename.removesuffix(".py").removesuffix("/__init__"))
    if module is None or code.co_name == "<module>":
        return []
    for node in ast.parse(keys._SOURCES[module]).body:
        first = min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", []))])
        if first <= code.co_firstlineno <= (node.end_lineno or 0):
            return [f"{module}.{name}" for name in keys.binds(node)] or [f"{module}."]
    return [f"{module}.{code.co_qualname}"]


def named_outside(thing: Any, seen: list[Any]) -> Iterator[Any]:
    """What of lib a class or function of a notebook's cells names, itself or by others of these cells."""
    scope = vars(sys.modules[thing.__module__])
    seen.append(thing)
    for base, *rest in keys.uses(ast.parse(textwrap.dedent(inspect.getsource(thing))).body):
        value = scope.get(base)
        while inspect.ismodule(value) and rest:
            value = getattr(value, rest.pop(0), None)
        if str(getattr(value, "__module__", "")).startswith("lib."):
            yield value
        elif getattr(value, "__module__", "") == thing.__module__ and value not in seen:
            yield from named_outside(value, seen)


def reach(artifact: store.Artifact) -> set[str]:
    """The definitions of lib that the key of an artifact follows."""
    things = [artifact.function, *(type(part) for part in parts_of(artifact.arguments))]
    things += [part for part in parts_of(artifact.arguments) if callable(part)]
    own = [thing for thing in things if str(getattr(thing, "__module__", "")).startswith("notebook_")]
    things += [value for thing in own for value in named_outside(thing, [])]
    named = [(str(t.__module__), t.__qualname__.split(".")[0]) for t in things if hasattr(t, "__qualname__")]
    return {name for target in named for name in keys.reached(*target)}


@contextmanager
def traced(group: list[store.Artifact]) -> Iterator[None]:
    """Run the steps of a pass inside, and fail if they call what is outside of their reach.

    Raises:
        AssertionError: names the functions of lib that an edit of would not renew the step.
    """
    calls: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        of_the_store = frame.f_back is not None and "/lib/store/" in frame.f_back.f_code.co_filename
        if event == "call" and not of_the_store:  # which is left out of keys, with what it does for itself
            calls.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)
    if group[0].step.startswith("lib."):
        within = set().union(*map(reach, group))
        found = [names for code in calls if (names := definitions(code))]
        outside = sorted(names[0] for names in found if within.isdisjoint(names))
        assert not outside, f"{group[0].step} calls what its key does not follow: {', '.join(outside)}"


def guard(patch: pytest.MonkeyPatch) -> None:
    """Trace every step that a test computes; of those that run in other processes, one of each kind again here."""
    compute, together, apart = store.Store._compute, store.Store._compute_together, store.Store._compute_apart

    def _compute(self: store.Store, artifact: store.Artifact) -> None:
        with traced([artifact]):
            compute(self, artifact)

    def _compute_together(self: store.Store, group: list[store.Artifact]) -> list[Exception]:
        with traced(group):
            return together(self, group)

    def _compute_apart(self: store.Store, missing: list[store.Artifact]) -> list[Exception]:
        errors = apart(self, missing)
        for artifact in missing:
            what = str(getattr(artifact.arguments.get("config"), "variant", ""))
            kind = (artifact.step, what, *sorted({type(part).__name__ for part in parts_of(artifact.arguments)}))
            if artifact.step.startswith("lib.") and kind not in run_here:
                run_here.add(kind)
                with tempfile.TemporaryDirectory() as out, traced([artifact]):
                    where: tuple[Any, ...] = () if artifact.kind == "result" else (Path(out),)
                    if artifact.kind == "together":
                        where = ([store.Job(Path(out), Path(out) / "partial", artifact.arguments)],)
                    artifact.function(*where, **artifact.arguments)
        return errors

    patch.setattr(store.Store, "_compute", _compute)
    patch.setattr(store.Store, "_compute_together", _compute_together)
    patch.setattr(store.Store, "_compute_apart", _compute_apart)
