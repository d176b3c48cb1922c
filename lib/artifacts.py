"""The store: every heavy step is a recipe, kept under a content key, written atomically and checked when read.

A *step* is a function decorated with :func:`cached` or :func:`result`. Calling it computes nothing: it returns an
:class:`Artifact`, a recipe whose key hashes the step's name, its arguments, the keys of its input artifacts and the code
that matters (the step's module and every ``lib`` module it imports, without comments and docstrings). Reading
``.path`` or ``.value`` looks the key up in the active :class:`Store` and computes only what is missing. Keys need no
data, so a result can be recognised as current on a machine that holds nothing else.

Two tiers: *cache* (folders of files under ``data/cache``, each file hashed) and *results* (small JSON files, tracked by
git in ``data/results``).
"""

from __future__ import annotations

import ast
import ctypes
import functools
import hashlib
import importlib
import inspect
import io
import json
import math
import os
import shutil
import sys
import tempfile
import time
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from pydantic import BaseModel
from tqdm.auto import tqdm

from lib import config

PROCESSES = 4  # side by side at most: each holds matrices of half a gigabyte
IDLE_SECONDS = 20

Tier = Literal["cache", "results"]
Mode = Literal["auto", "fresh", "frozen"]

# Values pass from config by argument and the store only moves bytes: neither belongs to "the code that matters".
_NOT_IN_KEY = {"lib", "lib.config", "lib.artifacts"}


class ArtifactError(RuntimeError):
    """A result that is missing, stale or unreadable and may not be recomputed here."""


# ---------------------------------------------------------------------------------------------------------- keys


def _bare_source(path: Path) -> str:
    """The source without comments, docstrings and blank lines: what a key depends on."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                    lines[number] = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _imports(path: Path) -> set[str]:
    """Names of the ``lib`` modules that the file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lib":
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names if alias.name.split(".")[0] == "lib")
    return names


def _module_file(name: str) -> Path | None:
    base = config.ROOT.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def code_hash(module: str) -> str:
    """Hash of ``module`` and every ``lib`` module it imports, directly or not.

    Notebook functions (``__main__``) and test modules outside ``lib`` hash to the function's own source instead: see
    :func:`_step_code`.
    """
    seen: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        path = _module_file(name)
        if path is None or name in seen or name in _NOT_IN_KEY:
            continue
        seen[name] = _bare_source(path)
        todo.extend(_imports(path))
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()


def _step_code(function: Callable[..., Any]) -> str:
    module = function.__module__
    if module.split(".")[0] == "lib":
        return code_hash(module)
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()


def canonical(value: Any) -> Any:
    """A JSON form of an argument, the same in every process; raises TypeError for what has none."""
    if isinstance(value, Artifact):
        return {"artifact": value.key}
    if isinstance(value, BaseModel):
        return {type(value).__name__: canonical(value.model_dump())}
    if isinstance(value, dict):
        return {str(k): canonical(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a step's arguments must be plain values, models or artifacts, not {type(value).__name__}")


# ------------------------------------------------------------------------------------------------------ artifacts


@dataclass(frozen=True)
class Artifact:
    """A recipe: a step with its arguments. Nothing is computed until ``path`` or ``value`` is read."""

    step: str
    tier: Tier
    function: Callable[..., Any] = field(repr=False, compare=False)
    arguments: dict[str, Any] = field(repr=False, compare=False)
    key: str
    name: str  # file name under results/; the step's name in the cache
    apart: bool = False  # computed in a process of its own, on one thread

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to another process as its recipe."""
        return _again, (self.step, self.arguments, self.name)

    @property
    def path(self) -> Path:
        """Folder (cache) or file (results) holding the artifact, computed if need be."""
        return active().fetch(self)

    @property
    def value(self) -> Any:
        """Payload of a results artifact (plain JSON values)."""
        return active().value(self)


def _again(step: str, arguments: dict[str, Any], name: str) -> Artifact:
    module, function = step.rsplit(".", 1)
    return getattr(importlib.import_module(module), function)(**arguments, name=name)


def _make_step(tier: Tier, apart: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Artifact]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Artifact]:
        step = f"{function.__module__}.{function.__name__}"
        signature = inspect.signature(function)
        code = _step_code(function)  # now, at import: the source on disk may change while this process runs the old one

        @functools.wraps(function)
        def recipe(*args: Any, name: str | None = None, **kwargs: Any) -> Artifact:
            hidden: tuple[Any, ...] = (None,) if tier == "cache" else ()  # the output folder, given by the store
            bound = signature.bind(*hidden, *args, **kwargs)
            bound.apply_defaults()
            arguments = dict(bound.arguments)
            if tier == "cache":
                arguments.pop(next(iter(signature.parameters)))
            recipe_json = json.dumps([step, code, canonical(arguments)], sort_keys=True)
            key = hashlib.sha256(recipe_json.encode()).hexdigest()[:24]
            return Artifact(step, tier, function, arguments, key, name or function.__name__, apart)

        return recipe

    return decorate


def cached(function: Callable[..., None]) -> Callable[..., Artifact]:
    """Make ``function(out, ...)`` a cache step: it writes files into the folder ``out``, which appears whole or not."""
    return _make_step("cache")(function)


def apart(function: Callable[..., None]) -> Callable[..., Artifact]:
    """Make a cache step, as :func:`cached` does, that gains nothing from threads: the missing ones among the inputs of one
    artifact are computed side by side, each in a process of its own and on one thread, so to the same bits on any number
    of cores."""
    return _make_step("cache", apart=True)(function)


def result(function: Callable[..., Any]) -> Callable[..., Artifact]:
    """Make ``function(...)`` a results step: it returns plain JSON values. Callers give ``name=`` to tell results apart."""
    return _make_step("results")(function)


# ---------------------------------------------------------------------------------------------------------- store


def _file_hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds either its old or its new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def plain(value: Any) -> Any:
    """``value`` with numpy and torch scalars and arrays turned into plain JSON values, floats rounded to 7 digits.

    Raises:
        TypeError: for anything without a JSON form.
        ValueError: for NaN or infinity, which JSON cannot hold: a result must say ``None`` where it has no number.
    """
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


def _payload_hash(payload: Any) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


class Store:
    """Looks artifacts up by key and computes what is missing.

    ``mode``: "auto" reads committed results whose key is current and computes the rest; "fresh" ignores committed
    results (a run that regenerates them); "frozen" reads committed results only and computes nothing.
    """

    def __init__(self, profile: str, cache: Path, results: Path, committed: Path | None, mode: Mode = "auto") -> None:
        self.profile, self.cache, self.results, self.committed, self.mode = profile, cache, results, committed, mode
        self._verified: set[Path] = set()

    # results tier

    def _read_result(self, folder: Path, artifact: Artifact) -> Any | None:
        """The record if it is there and current; None if missing, stale or damaged."""
        path = folder / f"{artifact.name}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            current = record["key"] == artifact.key and record["sha256"] == _payload_hash(record["payload"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if current else None

    def value(self, artifact: Artifact) -> Any:
        if artifact.tier != "results":
            raise TypeError(f"{artifact.step} is a cache step: read its .path")
        self.fetch(artifact)
        folder = self._result_folder(artifact)
        record = self._read_result(folder, artifact) if folder else None
        if record is None:
            raise ArtifactError(f"result {artifact.name!r} vanished while it was read")
        _note(artifact, event="used")
        return record["payload"]

    def _result_folder(self, artifact: Artifact) -> Path | None:
        order: dict[Mode, tuple[Path | None, ...]] = {
            "frozen": (self.committed,),
            "fresh": (self.results,),
            "auto": (self.results, self.committed),
        }
        for folder in order[self.mode]:
            if folder is not None and self._read_result(folder, artifact) is not None:
                return folder
        return None

    def _compute_result(self, artifact: Artifact) -> None:
        payload = plain(artifact.function(**artifact.arguments))
        record = {
            "key": artifact.key,
            "step": artifact.step,
            "config": canonical(artifact.arguments),
            "sha256": _payload_hash(payload),
            "payload": payload,
        }
        write_atomic(self.results / f"{artifact.name}.json", json.dumps(record, indent=1, ensure_ascii=True) + "\n")

    # cache tier

    def _cache_is_whole(self, folder: Path, key: str) -> bool:
        if folder in self._verified:
            return True
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            whole = meta["key"] == key and bool(meta["files"])
            whole = whole and all(_file_hash(folder / name) == digest for name, digest in meta["files"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        if whole:
            self._verified.add(folder)
        return whole

    def folder(self, artifact: Artifact) -> Path:
        """Where a cache artifact lives, there or not."""
        return self.cache / artifact.step.removeprefix("lib.") / artifact.key

    def has(self, artifact: Artifact) -> bool:
        """Whether a cache artifact is there and whole."""
        return self._cache_is_whole(self.folder(artifact), artifact.key)

    @contextmanager
    def writing(self, artifact: Artifact) -> Iterator[Path]:
        """A new folder that becomes the cache artifact when the block ends well, and vanishes when it does not."""
        folder = self.folder(artifact)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{artifact.key}.*"):
            if not _alive(int(left.name.split(".")[2])):  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{artifact.key}.{os.getpid()}."))
        try:
            yield temporary
            files = {
                str(path.relative_to(temporary)): _file_hash(path)
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            meta = {
                "key": artifact.key,
                "step": artifact.step,
                "config": canonical(artifact.arguments),
                "files": files,
            }
            write_atomic(temporary / "meta.json", json.dumps(meta, indent=1))
            if folder.exists() and self._cache_is_whole(folder, artifact.key):  # another process was first
                shutil.rmtree(temporary)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._verified.add(folder)
        shutil.rmtree(self.partial(artifact), ignore_errors=True)

    def partial(self, artifact: Artifact) -> Path:
        """A folder beside the artifact where its step may keep half-done work: a kill leaves it, completion removes it."""
        folder = self.folder(artifact)
        return folder.with_name(f"partial.{folder.name}")

    def _compute_cached(self, artifact: Artifact) -> None:
        global _computing
        with self.writing(artifact) as temporary:
            before, _computing = _computing, artifact
            try:
                artifact.function(temporary, **artifact.arguments)
            finally:
                _computing = before

    def _compute_announced(self, artifact: Artifact) -> None:
        with _announced(artifact):
            self._compute_cached(artifact)

    # both

    def fetch(self, artifact: Artifact) -> Path:
        """Path of the artifact, computed first where the mode allows it.

        Raises:
            ArtifactError: the store is frozen and the artifact is not there as a current committed result.
        """
        if artifact.tier == "results":
            folder = self._result_folder(artifact)
            if folder is None:
                self._refuse_if_frozen(artifact)
                self._fetch_inputs(artifact)
                with _announced(artifact):
                    self._compute_result(artifact)
                folder = self.results
            return folder / f"{artifact.name}.json"
        self._refuse_if_frozen(artifact)
        folder = self.folder(artifact)
        if not self._cache_is_whole(folder, artifact.key):
            if folder.exists():
                print(f"damaged cache entry, computing it again: {artifact.step} {artifact.key}", file=sys.stderr)
            self._fetch_inputs(artifact)
            if artifact.apart:
                self._compute_apart([artifact])
            else:
                self._compute_announced(artifact)
        return folder

    def _fetch_inputs(self, artifact: Artifact) -> None:
        """Compute the input artifacts first, so that the time of a step is its own."""
        found = {value.key: value for value in _inputs(artifact)}
        missing = [value for value in found.values() if value.apart and not self.has(value)]
        for value in found.values():
            if not value.apart:
                self.fetch(value)
        if missing:
            for value in missing:
                self._fetch_inputs(value)
            self._compute_apart(missing)

    def _compute_apart(self, missing: list[Artifact]) -> None:
        """Compute cache artifacts in processes of their own, as many at a time as there are cores, at most
        :data:`PROCESSES`."""
        for artifact in [a for a in missing if not _travels(a)]:
            missing.remove(artifact)
            self._compute_announced(artifact)
        if not missing:
            return
        settings = (self.profile, self.cache, self.results, self.committed, self.mode)
        count, name = min(os.cpu_count() or 1, PROCESSES), missing[0].step.removeprefix("lib.")
        # Processes serve again for a while, since starting one takes seconds; then they end and give their memory back.
        with parallel_config("loky", n_jobs=count, inner_max_num_threads=1, idle_worker_timeout=IDLE_SECONDS):
            done = Parallel(return_as="generator_unordered")(
                delayed(_compute_here)(settings, a, a.key) for a in missing
            )
            try:
                for _ in tqdm(done, name, len(missing), disable=None):
                    pass
            except TerminatedWorkerError:
                raise ArtifactError(
                    f"a process that computed {name} was killed, probably out of memory: close other programs, or take a "
                    "smaller profile, and run again; what is finished is kept"
                ) from None

    def _refuse_if_frozen(self, artifact: Artifact) -> None:
        if self.mode != "frozen":
            return
        where = f"{self.committed}/{artifact.name}.json" if artifact.tier == "results" else "the cache"
        raise ArtifactError(
            f"frozen: {artifact.name!r} ({artifact.step}, key {artifact.key}) is missing or stale in {where}. "
            f"Rebuild the committed results with: make report PROFILE={self.profile}"
        )


def _inputs(artifact: Artifact) -> Iterator[Artifact]:
    """The artifacts among a recipe's arguments, in whatever dicts and sequences they stand."""
    todo = list(reversed(artifact.arguments.values()))
    while todo:
        value = todo.pop()
        if isinstance(value, Artifact):
            yield value
        elif isinstance(value, dict):
            todo.extend(reversed(value.values()))
        elif isinstance(value, list | tuple):
            todo.extend(reversed(value))


def _travels(artifact: Artifact) -> bool:
    """Another process can import every step that the recipe names; those of a notebook's own cells it cannot."""
    return not artifact.step.startswith("__main__.") and all(map(_travels, _inputs(artifact)))


@functools.cache
def _store_here(*settings: Any) -> Store:
    """One for all that a process computes: what it has verified stays verified."""
    return Store(*settings)


def _compute_here(settings: tuple[Any, ...], artifact: Artifact, key: str) -> None:
    """In a process of its own: compute a cache artifact whose inputs are there."""
    if artifact.key != key:
        raise ArtifactError(f"the code of {artifact.step} changed while this process ran: restart it, and run again")
    use(_store_here(*settings))._compute_announced(artifact)


def _note(artifact: Artifact, **event: Any) -> None:
    """Add a line to ``$SAE_REPORT_STEPS``, which the runner reads: which steps run, which results a run uses."""
    if log := os.environ.get("SAE_REPORT_STEPS"):
        with Path(log).open("a", encoding="utf-8") as stream:
            stream.write(
                json.dumps({"step": artifact.step, "name": artifact.name, "key": artifact.key, **event}) + "\n"
            )


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc has it


@contextmanager
def _announced(artifact: Artifact) -> Iterator[None]:
    _note(artifact, event="start")
    start = time.perf_counter()
    yield
    _note(artifact, event="end", seconds=round(time.perf_counter() - start, 2))
    if _trim is not None:
        _trim(0)  # what a step held goes back to the system, not only to its process


_active: Store | None = None
_computing: Artifact | None = None


def computing() -> Artifact | None:
    """The cache artifact whose step is running, if any."""
    return _computing


def use(store: Store) -> Store:
    """Make ``store`` the one that artifacts are read through."""
    global _active
    _active = store
    return store


def active() -> Store:
    """The store in use.

    Raises:
        ArtifactError: none has been opened.
    """
    if _active is None:
        raise ArtifactError("no store is open: call lib.study.open_study(profile) first")
    return _active


def open_store(profile: str, frozen: bool = False) -> Store:
    """Open and activate the store of ``profile``; ``$SAE_REPORT_STORE`` (fresh or frozen) overrides the mode."""
    mode = os.environ.get("SAE_REPORT_STORE") or ("frozen" if frozen else "auto")
    if mode not in ("auto", "fresh", "frozen"):
        raise config.ConfigError(f"SAE_REPORT_STORE={mode!r}: use auto, fresh or frozen")
    committed = config.ROOT / "data" / "results" if profile == "report" else None
    results = config.build_dir() / profile / "results"
    return use(Store(profile, config.cache_dir(), results, committed, mode))  # type: ignore[arg-type]
