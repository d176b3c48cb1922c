import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from lib import store

calls: list[str] = []


@store.cached
def number(out: Path, value: int) -> None:
    calls.append("number")
    (out / "n.txt").write_text(str(value))


@store.result
def doubled(source: store.Artifact, factor: int = 2) -> dict:
    calls.append("doubled")
    return {"x": factor * int((source.path / "n.txt").read_text()), "array": np.array([0.1, 0.2], np.float32)}


@pytest.fixture(autouse=True)
def _clear() -> None:
    calls.clear()


def test_nothing_is_computed_until_read_and_then_once(empty_store: store.Store) -> None:
    recipe = doubled(number(21), name="answer")
    assert calls == []
    assert recipe.value["x"] == 42
    assert doubled(number(21), name="answer").value["array"] == [0.1, 0.2]
    assert calls == ["number", "doubled"]


def test_keys_follow_arguments_and_inputs_not_names(empty_store: store.Store) -> None:
    base = doubled(number(1))
    assert base.key == doubled(number(1), factor=2, name="other").key
    assert len({base.key, doubled(number(2)).key, doubled(number(1), factor=3).key}) == 3


def test_key_depends_on_code_but_not_on_comments(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    bare = []
    for text in ('def f():\n    return "#1"\n', '"""Doc."""\n\ndef f():\n    """Says."""\n    return "#1"  # one\n'):
        path.write_text(text)
        bare.append(artifacts._bare_source(path))
    assert bare[0] == bare[1]
    path.write_text('def f():\n    return "#2"\n')
    assert artifacts._bare_source(path) != bare[0]


def test_code_hash_follows_imports() -> None:
    files = {
        name: artifacts._imports(artifacts._module_file(name)) for name in ("lib.probes.features", "lib.sae.training")
    }
    assert "lib.surface" in files["lib.probes.features"]
    assert "lib.sae.variants" in files["lib.sae.training"]
    assert artifacts.code_hash("lib.probes.features") != artifacts.code_hash("lib.surface")


def test_flipped_byte_in_the_cache_is_noticed_and_rebuilt(
    empty_store: store.Store, capsys: pytest.CaptureFixture
) -> None:
    path = number(7).path
    (path / "n.txt").write_text("8")
    fresh = store.use(store.Store("report", empty_store.cache, empty_store.results, None))
    assert (fresh.fetch(number(7)) / "n.txt").read_text() == "7"
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["", "{", '{"key": 1}', "edit"])
def test_damaged_result_is_rebuilt(empty_store: store.Store, damage: str) -> None:
    recipe = doubled(number(3), name="r")
    text = recipe.path.read_text()
    recipe.path.write_text(text.replace('"x": 6', '"x": 7') if damage == "edit" else damage)
    assert doubled(number(3), name="r").value["x"] == 6


def test_frozen_reads_current_results_and_refuses_stale_ones(empty_store: store.Store) -> None:
    value = doubled(number(3), name="r").value
    empty_store.results.rename(empty_store.committed)
    store.use(store.Store("report", empty_store.cache / "none", empty_store.results, empty_store.committed, "frozen"))
    calls.clear()
    assert doubled(number(3), name="r").value == value
    assert calls == []
    with pytest.raises(store.ArtifactError, match="make report PROFILE=report"):
        doubled(number(4), name="r").value
    with pytest.raises(store.ArtifactError, match="frozen"):
        number(3).path


def test_fresh_ignores_committed_results(empty_store: store.Store) -> None:
    doubled(number(3), name="r").path
    empty_store.results.rename(empty_store.committed)
    calls.clear()
    store.use(store.Store("report", empty_store.cache, empty_store.results, empty_store.committed, "auto"))
    doubled(number(3), name="r").value
    assert calls == []
    store.use(store.Store("report", empty_store.cache, empty_store.results, empty_store.committed, "fresh"))
    doubled(number(3), name="r").value
    assert calls == ["doubled"]


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
        store.plain({"x": [value]})


@store.apart
def fitted(out: Path, value: int, source: store.Artifact | None = None) -> None:
    import torch

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
    assert calls.count("number") == 1, "what several share is computed once, and here"
    again = gathered({**parts, "4": fitted(4, shared)}, name="third").value
    assert again[:4] == found, "what was there is not computed again"


def test_code_that_changed_meanwhile_is_told(empty_store: store.Store) -> None:
    """Processes import the code as it is now; what they would compute is not what this one asked for."""
    old = dataclasses.replace(fitted(1), key="0" * 24)  # as if the source had been another when this process began
    with pytest.raises(store.ArtifactError, match=r"code of .*fitted changed while this process ran: restart"):
        empty_store.fetch(old)
    assert not empty_store.has(old) and not empty_store.has(fitted(1))


def test_a_recipe_travels(empty_store: store.Store) -> None:
    again, given = fitted(1, number(2)).__reduce__()
    there = again(*given)
    assert there == fitted(1, number(2)) and there.apart
    assert there.arguments["source"].key == number(2).key


def test_a_failure_apart_is_told_and_leaves_nothing(empty_store: store.Store) -> None:
    with pytest.raises(ValueError, match="cannot fit -1"):
        gathered({"good": fitted(70), "bad": fitted(-1)}, name="bad").value
    assert not empty_store.has(fitted(-1)) and not (empty_store.results / "bad.json").exists()
    with pytest.raises(store.ArtifactError, match="out of memory"):
        gathered({"killed": fitted(99)}, name="killed").value
    assert gathered({"good": fitted(70)}, name="good").value[0]["n"] == 70, "the next one gets new processes"


def test_a_notebooks_own_step_may_stand_in_a_recipe(tmp_path: Path) -> None:
    """No other process can import it, so what needs it is computed here."""
    script = tmp_path / "cells.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import json, os, sys
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from pathlib import Path
            import test_artifacts as t
            from lib import store
            store.use(store.Store("report", Path({str(tmp_path)!r}) / "c", Path({str(tmp_path)!r}) / "r", None))
            @store.cached
            def mine(out):
                (out / "n.txt").write_text("5")
            row, = t.gathered({{"x": t.fitted(1, mine())}}, name="x").value
            print(row["n"], row["pid"] == os.getpid())
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["6", "True"], done.stderr


def test_kill_9_in_a_step_then_run_again(tmp_path: Path) -> None:
    """A killed step leaves no entry under its key; finished steps are kept; the second run has the same results."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            from pathlib import Path
            from lib import store
            root = Path(sys.argv[1])
            store.use(store.Store("report", root / "cache", root / "results", None))
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
        "import sys; from pathlib import Path; import steps; from lib import artifacts; root = Path(sys.argv[1]);"
        "store.use(store.Store('report', root / 'cache', root / 'results', None));"
        "print(steps.last([steps.fit(n, str(root)) for n in range(6)], name='last').value)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
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
