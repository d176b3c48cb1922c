"""Artifacts: every heavy step is a recipe, known by its key before anything is computed.

Calling a *step* computes nothing: it returns an :class:`Artifact`, of which ``.path`` or ``.value`` asks the open store
(:mod:`lib.store.store`), which computes only what is missing. :func:`cached` writes files into a folder, :func:`together` into several, in one pass or side by side; :func:`result` returns
plain JSON, which git tracks. :func:`apart` and :func:`solo` do as these in a process of their own and on one thread, so to the same bits on any number of cores.
"""

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from lib.config import Expected
from lib.store.keys import Keyed, canonical, code_of, digest


class ArtifactError(Expected, RuntimeError):
    """A result that is missing, stale or unreadable and may not be recomputed here."""


@dataclass(frozen=True)
class Artifact(Keyed):
    """A recipe: a step with its arguments. Nothing is computed until ``path`` or ``value`` is read."""

    step: str
    kind: str  # "cached", "together" or "result"
    function: Callable[..., Any] = field(repr=False, compare=False)
    arguments: dict[str, Any] = field(repr=False, compare=False)
    key: str
    code: str = field(repr=False, compare=False)  # hash of what the step reached when this recipe was made
    name: str  # file name under results/; the step's name in the cache
    shared: Any = field(default=None, repr=False, compare=False)  # what steps of one pass have in common
    alone: bool = field(default=False, repr=False, compare=False)  # in a process of its own, on one thread

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to another process as its recipe."""
        module, function = self.step.rsplit(".", 1)
        recipe = getattr(importlib.import_module(module), function)
        return functools.partial(recipe, **self.arguments, name=self.name), ()

    @property
    def path(self) -> Path:
        """Folder (cache) or file (results) holding the artifact, computed if need be."""
        return active().path(self)

    @property
    def value(self) -> Any:
        """Payload of a results artifact (plain JSON values)."""
        return active().value(self)


def _step(kind: str, by: Any = None, alone: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Artifact]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Artifact]:
        step, signature = f"{function.__module__}.{function.__name__}", inspect.signature(function)
        kept = function.__module__.startswith("lib.")  # a cell's code, and what it names, may change until it is called
        code_then = code_of(function) if kept else None

        @functools.wraps(function)
        def recipe(*args: Any, name: str | None = None, **kwargs: Any) -> Artifact:
            given: tuple[Any, ...] = () if kind == "result" else (None,)  # where to write, told by the store
            bound = signature.bind(*given, *args, **kwargs)
            bound.apply_defaults()
            arguments = dict(list(bound.arguments.items())[len(given) :])
            code = code_then or code_of(function)
            key = digest([step, code, canonical(arguments)])[:24]
            shared = None if by is None else digest([step, canonical(by(*arguments.values()))])
            return Artifact(step, kind, function, arguments, key, code, name or function.__name__, shared, alone)

        return recipe

    return decorate


cached, result = _step("cached"), _step("result")
apart, solo = _step("cached", alone=True), _step("result", alone=True)


class Job(NamedTuple):
    """One of the artifacts that a pass makes: where to write, where half-done work may stay, and its arguments."""

    out: Path
    partial: Path
    arguments: dict[str, Any]


def together(by: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Artifact]]:
    """Make ``function(jobs, ...)`` a cache step that can make artifacts for which ``by(*arguments)`` is the same all at once: on a GPU, and those of
    a notebook's own classes; else one a process, side by side. Given a list of :class:`Job`, and the arguments of the first, it returns for each job an error or None."""
    return _step("together", by)


def parts_of(value: Any) -> Iterator[Any]:
    """``value`` and all that stands in it, in whatever dicts, sequences and objects, in order; artifacts are not opened."""
    yield value
    inside: Iterable[Any] = ()
    if isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        inside = value
    elif isinstance(value, BaseModel):
        inside = (getattr(value, name) for name in type(value).model_fields)
    elif is_dataclass(value) and not isinstance(value, type | Artifact):
        inside = (getattr(value, field.name) for field in fields(value))
    for part in inside:
        yield from parts_of(part)


def inputs_of(value: Any) -> Iterator[Artifact]:
    """The artifacts among :func:`parts_of` a value."""
    return (part for part in parts_of(value) if isinstance(part, Artifact))


def plain(value: Any) -> Any:
    """``value`` with numpy and torch scalars and arrays turned into plain JSON values, floats rounded to 7 digits. TypeError for
    what has no JSON form; ValueError for NaN or infinity: a result must say ``None`` where it has no number."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a result holds NaN or infinity")
        return float(f"{value:.7g}")
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"a result must be plain JSON values, not {type(value).__name__}")


_active: Any = None


def use(reader: Any) -> Any:
    """Make ``reader`` the one that artifacts are read through."""
    global _active
    _active = reader
    return reader


def active() -> Any:
    """The store in use; ArtifactError if none has been opened."""
    if _active is None:
        raise ArtifactError("no store is open: call lib.study.open_study(profile) first")
    return _active


def values(recipes: Any) -> Any:
    """The values of result artifacts, in whatever dicts and lists they stand; what is missing is computed side by side."""
    active().ensure(list(inputs_of(recipes)))
    if isinstance(recipes, Artifact):
        return recipes.value
    return {k: values(v) for k, v in recipes.items()} if isinstance(recipes, dict) else [values(v) for v in recipes]
