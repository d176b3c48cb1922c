"""The store: what is computed when, kept whole, refused, swept, and noted."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import psutil
import pytest
import torch

from lib import store
from lib.store import artifacts
from lib.store import store as room


def note(what: str) -> None:
    """Tell a test what has been computed, in a file: a global list would be a value that the steps' keys depend on."""
    with (store.active().cache.parent / "calls").open("a") as stream:
        stream.write(what + "\n")


def noted() -> list[str]:
    path = store.active().cache.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


@store.cached
def number(out: Path, value: int) -> None:
    note("number")
    (out / "n.txt").write_text(str(value))


@store.result
def doubled(source: store.Artifact, factor: int = 2) -> dict:
    note("doubled")
    return {"x": factor * int((source.path / "n.txt").read_text()), "array": np.array([0.1, 0.2], np.float32)}


# -------------------------------------------------------------------------------------------- what is computed when


def test_nothing_is_computed_until_read_and_then_once(empty_store: store.Store) -> None:
    recipe = doubled(number(21), name="answer")
    assert noted() == []
    assert recipe.value["x"] == 42
    assert doubled(number(21), name="answer").value["array"] == [0.1, 0.2]
    assert noted() == ["number", "doubled"]


def test_keys_follow_arguments_and_inputs_not_names(empty_store: store.Store) -> None:
    base = doubled(number(1))
    assert base.key == doubled(number(1), factor=2, name="other").key
    assert len({base.key, doubled(number(2)).key, doubled(number(1), factor=3).key}) == 3


def test_an_input_that_is_wanted_too_is_computed_once(empty_store: store.Store) -> None:
    inner = number(4)
    empty_store.ensure([inner, doubled(inner, name="r")])
    assert noted() == ["number", "doubled"]


def test_one_recipe_may_have_two_names(empty_store: store.Store) -> None:
    empty_store.ensure([doubled(number(1), name="a"), doubled(number(1), name="b")])
    assert sorted(path.name for path in empty_store.results.iterdir()) == ["a.json", "b.json"]


def test_values_of_nested_recipes(empty_store: store.Store) -> None:
    found = store.values({"one": [doubled(number(1), name="1"), doubled(number(2), name="2")]})
    assert [value["x"] for value in found["one"]] == [2, 4]


def test_a_step_that_writes_nothing_is_an_error(empty_store: store.Store) -> None:
    @store.cached
    def idle(out: Path) -> None:
        pass

    with pytest.raises(store.ArtifactError, match="idle wrote no file"):
        idle().path


# ------------------------------------------------------------------------------------------- damage, modes, failures


def test_flipped_byte_in_the_cache_is_noticed_and_rebuilt(
    empty_store: store.Store, capsys: pytest.CaptureFixture
) -> None:
    path = number(7).path
    (path / "n.txt").write_text("8")
    fresh = store.use(store.Store("report", empty_store.cache, empty_store.results, None))
    assert (fresh.path(number(7)) / "n.txt").read_text() == "7"
    assert capsys.readouterr().err.count("damaged") == 1


@pytest.mark.parametrize("gone", ["n.txt", "meta.json"])
def test_a_folder_that_lacks_a_file_is_rebuilt(empty_store: store.Store, gone: str) -> None:
    (number(7).path / gone).unlink()
    fresh = store.use(store.Store("report", empty_store.cache, empty_store.results, None))
    assert not fresh.has(number(7))
    assert (number(7).path / gone).exists()


@pytest.mark.parametrize("damage", ["", "{", '{"key": 1}', "edit"])
def test_damaged_result_is_rebuilt(empty_store: store.Store, damage: str) -> None:
    recipe = doubled(number(3), name="r")
    text = recipe.path.read_text()
    recipe.path.write_text(text.replace('"x": 6', '"x": 7') if damage == "edit" else damage)
    assert doubled(number(3), name="r").value["x"] == 6


def test_frozen_reads_current_results_and_refuses_stale_ones(empty_store: store.Store) -> None:
    value = doubled(number(3), name="r").value
    empty_store.results.rename(empty_store.committed)
    before = noted()
    store.use(store.Store("report", empty_store.cache, empty_store.results, empty_store.committed, "frozen"))
    assert doubled(number(3), name="r").value == value
    assert noted() == before
    with pytest.raises(store.ArtifactError, match="make report PROFILE=report"):
        doubled(number(4), name="r").value
    with pytest.raises(store.ArtifactError, match="frozen"):
        number(3).path  # although the cache has it: a fresh clone has not


def test_fresh_ignores_committed_results(empty_store: store.Store) -> None:
    doubled(number(3), name="r").path
    empty_store.results.rename(empty_store.committed)
    for mode, times in (("auto", 1), ("fresh", 2)):
        store.use(store.Store("report", empty_store.cache, empty_store.results, empty_store.committed, mode))
        doubled(number(3), name="r").value
        assert noted().count("doubled") == times


def test_failed_step_leaves_nothing(empty_store: store.Store) -> None:
    @store.cached
    def broken(out: Path) -> None:
        (out / "half").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        broken().path
    assert [p for p in empty_store.cache.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_results_refuse_what_json_cannot_hold(value: float) -> None:
    with pytest.raises(ValueError, match="NaN"):
        artifacts.plain({"x": [value]})


def test_a_second_process_that_finishes_first_wins(empty_store: store.Store) -> None:
    @store.cached
    def slow(out: Path) -> None:
        (out / "x").write_text("late")
        there = out.with_name(out.name.split(".")[1])  # as another process would, meanwhile
        there.mkdir()
        (there / "x").write_text("early")
        meta = {"key": there.name, "files": {"x": room._file_hash(there / "x")}}
        (there / "meta.json").write_text(json.dumps(meta))

    assert (slow().path / "x").read_text() == "early"
    assert len(list(empty_store.cache.rglob("x"))) == 1


def test_leavings_are_swept_only_when_their_process_is_dead(empty_store: store.Store) -> None:
    folder = empty_store.folder(number(1))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    left, mine = (folder.with_name(f".{folder.name}.{pid}") for pid in (child.pid, os.getpid()))
    left.mkdir(parents=True)
    mine.mkdir()  # of a killed process that had this one's number, as in a container
    number(1).path
    assert left.exists() and not mine.exists()
    child.kill()
    child.wait()
    empty_store.folder(number(1)).rename(empty_store.cache / "elsewhere")
    store.use(store.Store("report", empty_store.cache, empty_store.results, None))
    number(1).path
    assert not left.exists()


def test_half_done_work_of_an_abandoned_recipe_does_not_stay_for_ever(empty_store: store.Store) -> None:
    """It goes when it is old, since a run that was broken off may still want it; the recipe's own goes when it is done."""
    old, young, own = (empty_store.partial(number(value)) for value in (2, 3, 1))
    for folder, days in ((old, 15), (young, 13), (own, 15)):
        folder.mkdir(parents=True)
        (folder / "state").write_text("half")
        os.utime(folder, (time.time() - days * 86400,) * 2)

    assert (number(1).path / "n.txt").exists()
    assert (old.exists(), young.exists(), own.exists()) == (False, True, False)


@store.together(lambda value: 0)
def resumed(jobs: list[store.Job], value: int) -> list:
    for job in jobs:
        (job.out / "x").write_text((job.partial / "state").read_text())
    return [None for _ in jobs]


@pytest.mark.parametrize("many", [1, 2])
def test_own_half_done_work_is_there_however_old(
    empty_store: store.Store, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """Also where another that is finished before it sweeps what is abandoned."""
    monkeypatch.setattr(room, "_processes", lambda need=0: many)
    recipes = [resumed(n) for n in range(5)]
    for recipe in recipes:
        empty_store.partial(recipe).mkdir(parents=True)
        (empty_store.partial(recipe) / "state").write_text("half")
        os.utime(empty_store.partial(recipe), (0, 0))
    empty_store.ensure(recipes)
    assert [(recipe.path / "x").read_text() for recipe in recipes] == ["half"] * 5


def test_files_are_as_readable_as_the_user_wants(empty_store: store.Store) -> None:
    before = os.umask(0o027)
    try:
        result = doubled(number(5), name="r").path
        store.write_atomic(empty_store.cache.parent / "more" / "note", "text")
    finally:
        os.umask(before)
    folder = number(5).path
    modes = {path: path.stat().st_mode & 0o777 for path in (folder, folder / "n.txt", folder / "meta.json", result)}
    assert list(modes.values()) == [0o750, 0o640, 0o640, 0o640]
    assert (empty_store.cache.parent / "more" / "note").stat().st_mode & 0o777 == 0o640


def test_files_are_synced_before_they_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    store.write_atomic(tmp_path / "x", "text")
    assert done == ["sync", "replace"] and (tmp_path / "x").read_text() == "text"
    with pytest.raises(TypeError), store.atomic(tmp_path / "x") as temporary:
        temporary.write_bytes(b"half" + None)  # type: ignore[operator]
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "text"


def test_memory_goes_back_after_each_step(empty_store: store.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(room, "give_back", lambda: given_back.append(0))
    doubled(number(1), name="r").value
    assert given_back == [0, 0]


# ---------------------------------------------------------------------------------------------------- the run's log


def test_what_a_used_result_was_made_of_is_noted_once(
    empty_store: store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any depth, also when nothing of it is computed: a run that finds results done promotes them all."""

    @store.cached
    def kept(out: Path, source: store.Artifact) -> None:
        (out / "n.txt").write_text(str(source.value["x"]))

    inner = doubled(number(1), name="inner")
    outer = doubled(kept(inner), name="outer")
    assert outer.value["x"] == 4
    monkeypatch.setenv("SAE_REPORT_STEPS", str(tmp_path / "steps.jsonl"))
    store.use(store.Store("report", empty_store.cache, empty_store.results, None))
    assert outer.value["x"] == 4 and outer.value["x"] == 4
    events = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [(e["event"], e["name"], e["key"]) for e in events] == [
        ("used", "outer", outer.key),
        ("used", "inner", inner.key),
    ]


def test_steps_are_noted_as_they_begin_and_end(
    empty_store: store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_REPORT_STEPS", str(tmp_path / "steps.jsonl"))
    store.values([doubled(number(1), name="r")])
    events = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["start", "end", "start", "end", "used"]
    assert all(e["seconds"] >= 0 for e in events if e["event"] == "end")


# ------------------------------------------------------------------------------------------------- other processes


@store.apart
def fitted(out: Path, value: int, source: store.Artifact | None = None) -> None:
    if value < 0:
        raise ValueError(f"cannot fit {value}")
    if value == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    more = int((source.path / "n.txt").read_text()) if source else 0
    (out / "where.json").write_text(
        json.dumps({"pid": os.getpid(), "threads": torch.get_num_threads(), "n": value + more})
    )


@store.result
def gathered(parts: dict) -> list:
    return [json.loads((part.path / "where.json").read_text()) for part in parts.values()]


def test_steps_apart_run_in_other_processes_on_one_thread(empty_store: store.Store) -> None:
    """Together or alone, computed first or last: always elsewhere, always one thread, so always the same bits."""
    shared = number(7)
    parts = {str(n): fitted(n, shared) for n in range(4)}
    found = gathered(parts, name="first").value
    assert [row["n"] for row in found] == [7, 8, 9, 10]
    assert {row["threads"] for row in found} == {1}
    assert os.getpid() not in {row["pid"] for row in found}
    alone = gathered({"x": fitted(50)}, name="second").value
    assert alone[0]["threads"] == 1 and alone[0]["pid"] != os.getpid()
    assert json.loads((fitted(60).path / "where.json").read_text())["pid"] != os.getpid()
    assert noted().count("number") == 1, "what several share is computed once, and here"
    again = gathered({**parts, "4": fitted(4, shared)}, name="third").value
    assert again[:4] == found, "what was there is not computed again"


@store.apart
def endless(out: Path, folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(300)


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Killed, it cannot stop them, and what they compute would go on beside the next run."""
    script = "import sys, test_store as t; from lib import store; from pathlib import Path; root = Path(sys.argv[1])\n"
    script += "store.use(store.Store('report', root, root, None)).ensure([t.endless(sys.argv[2])])"
    (seen := tmp_path / "seen").mkdir()
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{room.config.ROOT}"}
    started = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), str(seen)], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        while not (there := [int(path.name) for path in seen.iterdir()]):
            assert started.poll() is None
            time.sleep(0.1)
    finally:
        started.kill()
        started.wait()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(there[0]) and psutil.Process(there[0]).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.1)


@store.solo
def measured(source: store.Artifact) -> dict:
    return {"pid": os.getpid(), "threads": torch.get_num_threads(), "n": int((source.path / "n.txt").read_text())}


def test_a_result_alone_is_computed_elsewhere_and_filed(empty_store: store.Store) -> None:
    """As a step apart, its inputs first; what is filed is read as any result, also by a run that computes nothing."""
    wanted = {str(n): measured(number(n), name=f"measured_{n}") for n in range(3)}
    found = store.values(wanted)
    assert [row["n"] for row in found.values()] == [0, 1, 2]
    assert {row["threads"] for row in found.values()} == {1}
    assert os.getpid() not in {row["pid"] for row in found.values()}
    frozen = store.use(store.Store("report", empty_store.cache, empty_store.results, empty_store.results, "frozen"))
    assert store.values(wanted) == found and frozen.filed("measured_2") == found["2"]


@store.cached
def large(out: Path, count: int) -> None:
    (out / "sae.safetensors").write_bytes(b"0" * count)


@store.solo
def weighed(sae: store.Artifact) -> int:
    return (sae.path / "sae.safetensors").stat().st_size


def test_processes_are_bounded_by_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, gibibytes, expected in ((2, 64, 2), (64, 64, 4), (64, 2.9, 2), (4, 0.2, 1)):
        free = SimpleNamespace(available=int(gibibytes * 2**30))
        monkeypatch.setattr(joblib, "cpu_count", lambda cores=cores: cores)  # knows affinity and container limits
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: free)
        assert room._processes() == expected
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * 2**30))
    assert room._processes(30 * 2**30) == 2, "where each needs more"


def test_the_size_of_saes_bounds_how_many_run_side_by_side(
    empty_store: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds an SAE and a batch of its latents: eight times its file."""
    needed: list[int] = []
    monkeypatch.setattr(room, "_processes", lambda need=0: needed.append(need) or 1)
    sae = large(5000)
    store.values([weighed(sae, name="weighed")])
    assert needed == [40_000]


def test_code_that_changed_meanwhile_is_told(empty_store: store.Store) -> None:
    """Processes import the code as it is now; what they would compute is not what this one asked for."""
    old = dataclasses.replace(fitted(1), key="0" * 24)  # as if the source had been another when this process began
    with pytest.raises(store.ArtifactError, match=r"code of .*fitted changed while this process ran: restart"):
        empty_store.path(old)
    assert not empty_store.has(old) and not empty_store.has(fitted(1))


def test_a_recipe_travels(empty_store: store.Store) -> None:
    again, given = fitted(1, number(2)).__reduce__()
    there = again(*given)
    assert there == fitted(1, number(2)) and there.alone
    assert there.arguments["source"].key == number(2).key


def test_a_failure_apart_is_told_and_leaves_nothing(empty_store: store.Store) -> None:
    with pytest.raises(ValueError, match="cannot fit -1"):
        gathered({"good": fitted(70), "bad": fitted(-1)}, name="bad").value
    assert not empty_store.has(fitted(-1)) and not (empty_store.results / "bad.json").exists()
    with pytest.raises(store.ArtifactError, match="out of memory"):
        gathered({"killed": fitted(99)}, name="killed").value
    assert gathered({"good": fitted(70)}, name="good").value[0]["n"] == 70, "the next one gets new processes"


CELLS = """
    import dataclasses, json, os, sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import numpy, torch
    from threadpoolctl import threadpool_info
    import test_store as t
    from lib import store
    store.use(store.Store("report", Path({root!r}) / "c", Path({root!r}) / "r", None))
"""


def run_cells(tmp_path: Path, body: str) -> list[str]:
    """What a script prints that stands for a notebook: its steps and classes are those of ``__main__``."""
    script = tmp_path / "cells.py"
    text = textwrap.dedent(CELLS).format(tests=str(Path(__file__).parent), root=str(tmp_path))
    script.write_text(text + textwrap.dedent(body))
    many = os.environ | {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=many)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_notebooks_own_step_may_stand_in_a_recipe(tmp_path: Path) -> None:
    """No other process can import it, so what needs it is computed here, on one thread as elsewhere."""
    body = """
        @store.cached
        def mine(out):
            (out / "n.txt").write_text("5")
        row, = t.gathered({"x": t.fitted(1, mine())}, name="x").value
        print(row["n"], row["pid"] == os.getpid(), row["threads"], torch.get_num_threads() > 1)
    """
    assert run_cells(tmp_path, body) == ["6", "True", "1", str((os.cpu_count() or 1) > 1)]


def test_a_notebooks_own_object_is_used_here_on_one_thread(tmp_path: Path) -> None:
    body = """
        @dataclasses.dataclass(frozen=True)
        class Mine:
            by: int
            def of(self):
                most = max(pool["num_threads"] for pool in threadpool_info())
                return [os.getpid(), torch.get_num_threads(), most, self.by]
        @dataclasses.dataclass(frozen=True)
        class Inside:
            mine: Mine
        pid, *rest = json.loads((t.told({"deep": [Inside(Mine(5))]}).path / "x.json").read_text())
        print(pid == os.getpid(), *rest)
    """
    assert run_cells(tmp_path, body) == ["True", "1", "1", "5"]


@store.apart
def told(out: Path, things: dict) -> None:
    (out / "x.json").write_text(json.dumps(things["deep"][0].mine.of()))


def test_a_cell_that_changed_after_the_recipe_was_made_is_told(tmp_path: Path) -> None:
    """Else the new code's result would be kept under the old code's key."""
    body = """
        factor = 2
        @store.result
        def times(n):
            return factor * n
        old = times(3)
        factor = 5
        try:
            old.value
        except store.ArtifactError as error:
            print("changed" in str(error))
        print(times(3).value, times(3).key != old.key)
    """
    assert run_cells(tmp_path, body) == ["True", "15", "True"]


# -------------------------------------------------------------------------------------------------------- one pass


@store.together(lambda value, shared: shared)
def several(jobs: list[store.Job], value: int, shared: str) -> list:
    note(f"pass of {len(jobs)}")
    errors: list[Exception | None] = []
    for job in jobs:
        mine = job.arguments["value"]
        (job.out / "n.txt").write_text(str(mine))
        (job.out / "pid.txt").write_text(str(os.getpid()))
        errors.append(ValueError(f"cannot fit {mine}") if mine < 0 else None)
    return errors


@pytest.mark.parametrize(("gpu", "many"), [(False, 2), (True, 2), (False, 1)])
def test_artifacts_of_passes_are_made_side_by_side_but_not_on_a_gpu(
    empty_store: store.Store, monkeypatch: pytest.MonkeyPatch, gpu: bool, many: int
) -> None:
    """What is left over of a number of processes is made here, on all cores; an error comes when the others are there."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    monkeypatch.setattr(room, "_processes", lambda need=0: many)
    in_passes = gpu or many == 1
    where = {v: several(v, shared) for v, shared in ((-5, "a"), (1, "a"), (2, "a"), (3, "b"), (4, "b"))}
    with pytest.raises(ValueError, match="cannot fit -5"):
        empty_store.ensure(where.values())
    assert all(empty_store.has(a) == (v > 0) for v, a in where.items())
    here = {v for v, a in where.items() if v > 0 and int((a.path / "pid.txt").read_text()) == os.getpid()}
    assert here == ({1, 2, 3, 4} if in_passes else set())
    assert noted().count("pass of 3") == noted().count("pass of 2") == in_passes


def test_one_pass_makes_what_is_missing_and_each_as_if_alone(
    empty_store: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_travels", lambda artifact: False)
    found = store.values({str(v): doubled(several(v, "a"), name=f"r{v}") for v in (1, 2, 3)})
    assert [r["x"] for r in found.values()] == [2, 4, 6]
    assert noted().count("pass of 3") == 1
    store.values([doubled(several(v, s), name=f"q{v}{s}") for v in (3, 4) for s in "ab"])
    assert noted().count("pass of 1") == 1 and noted().count("pass of 2") == 1  # 4a alone, 3b and 4b together


def test_one_that_fails_does_not_keep_the_others_of_its_pass_from_being_kept(empty_store: store.Store) -> None:
    with pytest.raises(ValueError, match="cannot fit -1"):
        store.values([doubled(several(v, "c"), name=f"z{v}") for v in (-1, 5)])
    assert empty_store.has(several(5, "c")) and not empty_store.has(several(-1, "c"))
    assert not [p for p in empty_store.cache.rglob(".*") if p.is_dir()]


# ------------------------------------------------------------------------------------------------------------ kills


def test_kill_9_in_a_step_then_run_again(tmp_path: Path) -> None:
    """A killed step leaves no entry under its key; finished steps are kept; the second run has the same results."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            from pathlib import Path
            from lib import store
            @store.cached
            def first(out):
                (out / "a").write_text("a" * 1000)
                print("first computed", flush=True)
            @store.cached
            def second(out, source, slow):
                (out / "b").write_text("half")
                print("second begun", flush=True)
                if Path(slow).exists():
                    time.sleep(60)
                (out / "b").write_text((source.path / "a").read_text() + "b")
            @store.result
            def last(source):
                return (source.path / "b").read_text()
            root = Path(sys.argv[1])
            store.use(store.Store("report", root / "cache", root / "results", None))
            print(len(last(second(first(), str(root / "slow")), name="last").value), flush=True)
            """
        )
    )
    (tmp_path / "slow").touch()
    command = [sys.executable, str(script), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(2)] == ["first computed", "second begun"]
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / "slow").unlink()
    assert [p.name for p in (tmp_path / "cache").rglob("b")], "the killed step's half-written folder"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["second begun", "1001"], "the first step was computed again"
    assert len(list((tmp_path / "cache").rglob("b"))) == 1, "what the killed step left is gone"
    assert len(json.loads((tmp_path / "results" / "last.json").read_text())["payload"]) == 1001


def test_kill_9_while_steps_run_apart_then_run_again(tmp_path: Path) -> None:
    """Their processes end by themselves; what was finished is kept, the rest comes out as in a run that was not killed."""
    (tmp_path / "steps.py").write_text(
        textwrap.dedent(
            """
            import time
            from pathlib import Path
            from lib import store
            @store.apart
            def fit(out, n, root):
                (Path(root) / f"begun{n}").touch()
                if n and (Path(root) / "slow").exists():
                    time.sleep(2)
                (out / "x").write_text(str(n) * 1000)
            @store.result
            def last(parts):
                return [len((p.path / "x").read_text()) for p in parts]
            """
        )
    )
    script = (
        "import sys; from pathlib import Path; import steps; from lib import store; root = Path(sys.argv[1]);"
        "store.use(store.Store('report', root / 'cache', root / 'results', None));"
        "print(steps.last([steps.fit(n, str(root)) for n in range(6)], name='last').value)"
    )
    paths = os.pathsep.join(path for path in (str(tmp_path), os.environ.get("PYTHONPATH")) if path)
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", script, str(tmp_path)]
    (tmp_path / "slow").touch()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun1").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / "slow").unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([1000] * 6), done.stderr
    time.sleep(3)  # what was in hand when the first run was killed has ended, and its process with it
    assert {p.read_text() for p in (tmp_path / "cache").rglob("x")} == {str(n) * 1000 for n in range(6)}
    assert len(list((tmp_path / "cache").rglob("x"))) == 6


def test_no_store_no_values() -> None:
    before = artifacts._active
    try:
        store.use(None)
        with pytest.raises(store.ArtifactError, match="no store is open"):
            number(1).path
    finally:
        store.use(before)


def test_what_is_filed_is_found_by_name_whatever_its_key(empty_store: store.Store) -> None:
    with pytest.raises(store.ArtifactError, match="no result 'r' yet: run the notebooks first"):
        empty_store.filed("r")
    recipe = doubled(number(3), name="r")
    assert empty_store.filed("r") == recipe.value if recipe.path else None
    stale = recipe.path.read_text().replace(recipe.key, "0" * 24)
    recipe.path.write_text(stale)
    assert empty_store.filed("r")["x"] == 6, "of another key"
    recipe.path
    (empty_store.results / "r.json").write_text(stale.replace('"x": 6', '"x": 7'))
    with pytest.raises(store.ArtifactError, match="no result 'r' yet"):
        empty_store.filed("r")
