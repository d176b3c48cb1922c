"""The store: looks artifacts up by key, checks what it reads, writes atomically, and computes what is missing.

Two tiers: *cache* (folders under ``data/cache``, each file hashed) and *results* (small JSON files, tracked by git in ``data/results``).
"""

import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any, Literal

import joblib
import psutil
import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from lib import config
from lib.cpu import give_back
from lib.store.artifacts import Artifact, ArtifactError, Job, inputs_of, parts_of, plain, use
from lib.store.keys import canonical, code_of, digest

PROCESSES, PROCESS_BYTES = 4, 2**30  # side by side at most, and the memory that each may need
ABANDONED_SECONDS = 14 * 24 * 3600  # half-done work that nobody has gone on with for so long is given up

Mode = Literal["auto", "fresh", "frozen"]


def _file_hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` when the block ends well: whole, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds either its old or its new content, never a part."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def by_umask(*paths: Path) -> None:
    """Give files the mode that this process gives new ones: safetensors keeps all others from reading its own."""
    os.umask(mask := os.umask(0))
    for path in paths:
        path.chmod(0o666 & ~mask)


class Store:
    """``mode``: "auto" reads committed results whose key is current and computes the rest; "fresh" ignores them (a run that
    regenerates them); "frozen" reads committed results only and computes nothing."""

    def __init__(self, profile: str, cache: Path, results: Path, committed: Path | None, mode: Mode = "auto") -> None:
        self.profile, self.cache, self.results, self.committed, self.mode = profile, cache, results, committed, mode
        self._verified: set[Path] = set()
        self._used: set[tuple[str, str]] = set()

    def _filed(self, name: str, key: str | None = None) -> tuple[Path, Any] | None:
        """(file, payload) of the undamaged result of a name, and of ``key`` if one is given; None if there is none."""
        both = (self.results, self.committed)[:: 1 if key else -1]
        order = {"frozen": (self.committed,), "fresh": (self.results,), "auto": both}
        for folder in filter(None, order[self.mode]):
            path = folder / f"{name}.json"
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                if key in (None, record["key"]) and record["sha256"] == digest(record["payload"]):
                    return path, record["payload"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    def filed(self, name: str) -> Any:
        """Payload of the result filed under ``name``, whatever its key, a committed one before a run's own; or ArtifactError."""
        if (found := self._filed(name)) is None:
            raise ArtifactError(f"no result {name!r} yet: run the notebooks first, make report PROFILE={self.profile}")
        return found[1]

    def folder(self, artifact: Artifact) -> Path:
        """Where a cache artifact lives, there or not."""
        return self.cache / artifact.step.removeprefix("lib.") / artifact.key

    def partial(self, artifact: Artifact) -> Path:
        """A folder beside the artifact where its step may keep half-done work: a kill leaves it, completion removes it."""
        return self.folder(artifact).with_name(f"partial.{artifact.key}")

    def has(self, artifact: Artifact) -> bool:
        """Whether an artifact is there, current and whole; for a frozen store no cache is."""
        if artifact.kind == "result":
            return self._filed(artifact.name, artifact.key) is not None
        folder = self.folder(artifact)
        if self.mode != "frozen" and folder not in self._verified:
            try:
                meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
                whole = meta["key"] == artifact.key and bool(meta["files"])
                whole = whole and all(_file_hash(folder / name) == found for name, found in meta["files"].items())
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return False
            self._verified |= {folder} if whole else set()
        return folder in self._verified

    def path(self, artifact: Artifact) -> Path:
        """Folder or file of an artifact, computed first; ArtifactError if a frozen store has no current committed result of it."""
        return self._current(artifact)[0]

    def value(self, artifact: Artifact) -> Any:
        """Payload of a result; it and the results that it was made of are noted as used."""
        if artifact.kind != "result":
            raise TypeError(f"{artifact.step} is a cache step: read its .path")
        found = self._current(artifact)[1]
        self._note_used(artifact)
        return found

    def _current(self, artifact: Artifact) -> tuple[Path, Any]:
        """(file, payload) of a result, computed first: of the record that was checked, as another run may file one."""
        self.ensure([artifact])
        if artifact.kind != "result":
            return self.folder(artifact), None
        if (found := self._filed(artifact.name, artifact.key)) is None:
            raise ArtifactError(f"result {artifact.name!r} vanished while it was read")
        return found

    def _note_used(self, artifact: Artifact) -> None:
        """Note once, for promotion, the results that stand in a recipe at any depth; a run may find them done."""
        if (artifact.key, artifact.name) not in self._used:
            self._used.add((artifact.key, artifact.name))
            if artifact.kind == "result":
                _note(artifact, event="used")
            for part in inputs_of(artifact.arguments):
                self._note_used(part)

    def ensure(self, wanted: Iterable[Artifact]) -> None:
        """Compute what is missing of these artifacts, their inputs first: steps apart, and trainings, side by side.
        ArtifactError as for :meth:`path`, or if a step changed meanwhile, wrote nothing, or its process was killed."""
        missing = {(a.key, a.name if a.kind == "result" else ""): a for a in wanted if not self.has(a)}
        for artifact in missing.values():
            if self.mode == "frozen":
                where = f"{self.committed}/{artifact.name}.json" if artifact.kind == "result" else "the cache"
                raise ArtifactError(
                    f"frozen: {artifact.name!r} ({artifact.step}, key {artifact.key}) is missing or stale in {where}. "
                    f"Rebuild the committed results with: make report PROFILE={self.profile}"
                )
            if artifact.kind != "result" and self.folder(artifact).exists():
                print(f"damaged cache entry, computing it again: {artifact.step} {artifact.key}", file=sys.stderr)
        if not missing:
            return
        self.ensure(i for a in missing.values() for i in inputs_of(a.arguments))
        passes: dict[str, list[Artifact]] = {}
        elsewhere = []
        for artifact in (a for a in missing.values() if not self.has(a)):  # some are by now, as an input of another
            if artifact.kind == "together":
                passes.setdefault(str(artifact.shared), []).append(artifact)
                with suppress(FileNotFoundError):
                    os.utime(self.partial(artifact))  # somebody goes on with it, so it is not abandoned
            elif artifact.alone and _travels(artifact):
                elsewhere.append(artifact)
            else:
                with _announced(artifact):
                    self._compute(artifact)
        apart = [a for of in passes.values() for a in of if _travels(a) and not torch.accelerator.is_available()]
        rest = len(apart) % many if apart and (many := _processes()) > 1 else len(apart)
        elsewhere += apart[rest:]  # the rest here with all cores, so that none is idle at the end
        here = filter(None, ([a for a in group if a not in elsewhere] for group in passes.values()))
        errors = [error for group in here for error in self._compute_together(group)]
        for error in errors + (self._compute_apart(elsewhere) if elsewhere else []):
            raise error

    def _compute(self, artifact: Artifact) -> None:
        _check(artifact)
        torch.get_num_threads()  # the first call sets it, so not within the limit
        with threadpool_limits(1 if artifact.alone else None):
            if artifact.kind == "result":
                payload = plain(artifact.function(**artifact.arguments))
                record = {**_about(artifact), "sha256": digest(payload), "payload": payload}
                said = re.sub(r"\n +(?=[-\d\]n])", "", json.dumps(record, indent=1))  # numbers of a list on one line
                write_atomic(self.results / f"{artifact.name}.json", said + "\n")
                return
            with self._writing(artifact) as out:
                artifact.function(out, **artifact.arguments)
        if not self.has(artifact):
            raise ArtifactError(f"{artifact.step} wrote no file")

    @contextmanager
    def _writing(self, artifact: Artifact) -> Iterator[Path]:
        """A new folder that becomes the cache artifact when the block ends well, and vanishes when it does not."""
        folder = self.folder(artifact)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary = folder.with_name(f".{artifact.key}.{os.getpid()}")
        temporary.mkdir()
        try:
            yield temporary
            paths = sorted(path for path in temporary.rglob("*") if path.is_file())
            by_umask(*paths)
            if not paths:  # of a pass, one that failed
                return
            files = {str(path.relative_to(temporary)): _file_hash(path) for path in paths}
            write_atomic(temporary / "meta.json", json.dumps({**_about(artifact), "files": files}, indent=1))
            if not self.has(artifact):  # else another process was first
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
                self._verified.add(folder)
            shutil.rmtree(self.partial(artifact), ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _compute_together(self, group: list[Artifact]) -> list[Exception]:
        """Compute cache artifacts in one pass and return the errors of those that fail; the others are kept."""
        for artifact in group:
            _check(artifact)
        with _announced(group[0]), ExitStack() as kept:
            outs = [kept.enter_context(self._writing(a)) for a in group]
            jobs = [Job(out, self.partial(a), a.arguments) for out, a in zip(outs, group, strict=True)]
            errors = group[0].function(jobs, **group[0].arguments)
            for out in (out for out, error in zip(outs, errors, strict=True) if error is not None):
                shutil.rmtree(out)
        return list(filter(None, errors))

    def _compute_apart(self, missing: list[Artifact]) -> list[Exception]:
        saes = (self.folder(part) / "sae.safetensors" for a in missing for part in inputs_of(a.arguments))
        count = _processes(8 * max((sae.stat().st_size for sae in saes if sae.is_file()), default=0))
        # Processes serve again for a while, since starting one takes seconds; then they end and give their memory back.
        with parallel_config("loky", n_jobs=count, inner_max_num_threads=1, idle_worker_timeout=20):
            name = missing[0].step.removeprefix("lib.")
            jobs = (delayed(_compute_here)(self, a, a.key, os.getpid()) for a in missing)
            done = Parallel(return_as="generator_unordered")(jobs)
            try:
                return [e for es in tqdm(done, name, len(missing), disable=None) for e in es]
            except TerminatedWorkerError:
                raise ArtifactError(
                    f"a process that computed {name} was killed, probably out of memory: close other programs, or take a "
                    "smaller profile, and run again; what is finished is kept"
                ) from None


def _sweep(folder: Path) -> None:
    """Remove what killed runs left of this artifact, and half-done work of its step that nobody has gone on with for long."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        owner = int(left.name.split(".")[2])
        if owner == os.getpid() or not psutil.pid_exists(owner):  # numbers come again
            shutil.rmtree(left, ignore_errors=True)
    for partial in folder.parent.glob("partial.*"):
        with suppress(FileNotFoundError):  # another process may sweep too
            if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def _processes(need: int = 0) -> int:
    """How many to start side by side: one for each core that this process may use, within the free memory; each may ``need`` bytes."""
    return max(1, min(joblib.cpu_count(), PROCESSES, psutil.virtual_memory().available // max(PROCESS_BYTES, need)))


def _travels(artifact: Artifact) -> bool:
    """Another process can import every step, class and function that the recipe names; those of a notebook it cannot."""
    parts = [artifact.function, *parts_of(artifact.arguments)]
    here = any(getattr(part, "__module__", None) == "__main__" for part in parts)
    return not here and all(_travels(part) for part in parts if isinstance(part, Artifact))


def _about(artifact: Artifact) -> dict[str, Any]:
    return {"key": artifact.key, "step": artifact.step, "config": canonical(artifact.arguments)}


def _check(artifact: Artifact) -> None:
    """What is computed under a key is what the key says."""
    if code_of(artifact.function) != artifact.code:
        raise ArtifactError(f"{artifact.step}, or what it names, changed since its recipe was made: make it again")


def _watch(parent: int) -> None:
    """End this process when the one that started it is gone: killed, it cannot say so, and what is computed here may take minutes."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _compute_here(store: Store, artifact: Artifact, key: str, parent: int) -> list[Exception]:
    """In a process of its own: compute an artifact whose inputs are there. Returns the errors of a pass, so that others go on."""
    if os.getpid() != parent and "watch" not in [thread.name for thread in threading.enumerate()]:
        threading.Thread(target=_watch, args=(parent,), name="watch", daemon=True).start()
    if artifact.key != key:
        raise ArtifactError(f"the code of {artifact.step} changed while this process ran: restart it, and run again")
    if artifact.kind == "together":
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):  # who started this process shows progress
            return use(store)._compute_together([artifact])
    with _announced(artifact):
        use(store)._compute(artifact)
    return []


def _note(artifact: Artifact, **event: Any) -> None:
    """Add a line to ``$SAE_REPORT_STEPS``, which the runner reads: which steps run, which results a run uses."""
    if log := os.environ.get("SAE_REPORT_STEPS"):
        line = json.dumps({"step": artifact.step, "name": artifact.name, "key": artifact.key, **event})
        with Path(log).open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")


@contextmanager
def _announced(artifact: Artifact) -> Iterator[None]:
    _note(artifact, event="start")
    start = time.perf_counter()
    yield
    _note(artifact, event="end", seconds=round(time.perf_counter() - start, 2))
    give_back()  # what a step held goes to the system, not only to its process


def open_store(profile: str, frozen: bool = False) -> Store:
    """Open and activate the store of ``profile``; ``$SAE_REPORT_STORE`` (fresh or frozen) overrides the mode."""
    mode = os.environ.get("SAE_REPORT_STORE") or ("frozen" if frozen else "auto")
    if mode not in ("auto", "fresh", "frozen"):
        raise config.ConfigError(f"SAE_REPORT_STORE={mode!r}: use auto, fresh or frozen")
    committed = config.ROOT / "data" / "results" if profile == "report" else None
    results = config.build_dir() / profile / "results"
    return use(Store(profile, config.cache_dir(), results, committed, mode))  # type: ignore[arg-type]
