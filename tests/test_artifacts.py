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

from lib import artifacts

calls: list[str] = []


@artifacts.cached
def number(out: Path, value: int) -> None:
    calls.append("number")
    (out / "n.txt").write_text(str(value))


@artifacts.result
def doubled(source: artifacts.Artifact, factor: int = 2) -> dict:
    calls.append("doubled")
    return {"x": factor * int((source.path / "n.txt").read_text()), "array": np.array([0.1, 0.2], np.float32)}


@pytest.fixture(autouse=True)
def _clear() -> None:
    calls.clear()


def test_nothing_is_computed_until_read_and_then_once(store: artifacts.Store) -> None:
    recipe = doubled(number(21), name="answer")
    assert calls == []
    assert recipe.value["x"] == 42
    assert doubled(number(21), name="answer").value["array"] == [0.1, 0.2]
    assert calls == ["number", "doubled"]


def test_keys_follow_arguments_and_inputs_not_names(store: artifacts.Store) -> None:
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
    store: artifacts.Store, capsys: pytest.CaptureFixture
) -> None:
    path = number(7).path
    (path / "n.txt").write_text("8")
    fresh = artifacts.use(artifacts.Store("report", store.cache, store.results, None))
    assert (fresh.fetch(number(7)) / "n.txt").read_text() == "7"
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["", "{", '{"key": 1}', "edit"])
def test_damaged_result_is_rebuilt(store: artifacts.Store, damage: str) -> None:
    recipe = doubled(number(3), name="r")
    text = recipe.path.read_text()
    recipe.path.write_text(text.replace('"x": 6', '"x": 7') if damage == "edit" else damage)
    assert doubled(number(3), name="r").value["x"] == 6


def test_frozen_reads_current_results_and_refuses_stale_ones(store: artifacts.Store) -> None:
    value = doubled(number(3), name="r").value
    store.results.rename(store.committed)
    artifacts.use(artifacts.Store("report", store.cache / "none", store.results, store.committed, "frozen"))
    calls.clear()
    assert doubled(number(3), name="r").value == value
    assert calls == []
    with pytest.raises(artifacts.ArtifactError, match="make report PROFILE=report"):
        doubled(number(4), name="r").value
    with pytest.raises(artifacts.ArtifactError, match="frozen"):
        number(3).path


def test_fresh_ignores_committed_results(store: artifacts.Store) -> None:
    doubled(number(3), name="r").path
    store.results.rename(store.committed)
    calls.clear()
    artifacts.use(artifacts.Store("report", store.cache, store.results, store.committed, "auto"))
    doubled(number(3), name="r").value
    assert calls == []
    artifacts.use(artifacts.Store("report", store.cache, store.results, store.committed, "fresh"))
    doubled(number(3), name="r").value
    assert calls == ["doubled"]


def test_failed_step_leaves_nothing(store: artifacts.Store) -> None:
    @artifacts.cached
    def broken(out: Path) -> None:
        (out / "half").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        broken().path
    assert [p for p in store.cache.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_results_refuse_what_json_cannot_hold(value: float) -> None:
    with pytest.raises(ValueError, match="NaN"):
        artifacts.plain({"x": [value]})


def test_kill_9_in_a_step_then_run_again(tmp_path: Path) -> None:
    """A killed step leaves no entry under its key; finished steps are kept; the second run has the same results."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            from pathlib import Path
            from lib import artifacts
            root = Path(sys.argv[1])
            artifacts.use(artifacts.Store("report", root / "cache", root / "results", None))
            @artifacts.cached
            def first(out):
                (out / "a").write_text("a" * 1000)
                print("first computed", flush=True)
            @artifacts.cached
            def second(out, source, slow):
                (out / "b").write_text("half")
                print("second begun", flush=True)
                if Path(slow).exists():
                    time.sleep(60)
                (out / "b").write_text((source.path / "a").read_text() + "b")
            @artifacts.result
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
