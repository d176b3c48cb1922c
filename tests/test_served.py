"""The endpoint that people have at home: ``transformers serve`` with the packaged model, on loopback. Minutes, so in ``make test-all`` alone."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib import store
from lib.config import ModelSection
from lib.lm import model
from lib.lm.model import Pinned
from tests.cells import cells_of
from tests.test_autointerp import contexts

notebook = cells_of("04_autointerp")
pytestmark = pytest.mark.all
SENTENCES = [
    "the river bank was wet",
    "a bank lends money",
    "we sat by the river",
    "he wrote a letter",
    "birds sing at dawn",
]


@pytest.fixture(scope="module")
def lm() -> Pinned:
    """The packaged model, its folder in the machine's own cache."""
    store.open_store("report")
    return model.pinned(ModelSection())


@pytest.fixture(scope="module")
def url(lm: Pinned, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        pytest.skip(
            "transformers serve needs fastapi and uvicorn, which make test-all installs: pip install -e '.[serve]'"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = tmp_path_factory.mktemp("served") / "log.txt"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model.folder(lm), "--device", "cpu"]
    with said.open("w") as log:
        served = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
    try:
        for _ in range(120):
            time.sleep(1)
            assert served.poll() is None, said.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)  # of our own
                break
            except OSError:
                continue
        else:
            pytest.fail(f"transformers serve did not start: {said.read_text()}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        served.terminate()
        served.wait()


def test_a_model_at_home_explains_and_judges(
    url: str, lm: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred and thirty-five million parameters explain in words and judge badly: what they say is read, or counted as no answer."""
    tokenizer, kept = model.tokenizer(lm), tmp_path / "cache"
    folder = model.folder(lm)
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in SENTENCES * 2]
    width = max(map(len, rows))
    tokens = np.array([row + [-1] * (width - len(row)) for row in rows])
    bank = tokenizer.encode(" bank", add_special_tokens=False)[0]
    seen = contexts(tokens, 5.0 * (tokens == bank))
    monkeypatch.setattr(notebook.config, "cache_dir", lambda: kept)
    monkeypatch.setattr(notebook.model, "tokenizer", lambda pinned: tokenizer)
    # The report's own prompt to explain makes so small a model go on and on, until it is cut off.
    short = "You see excerpts.\n$contexts\nIn one sentence: what do the marked tokens have in common?"
    explainer = notebook.Endpoint(folder, url, lm, timeout=300.0, longest=300, prompts=(short, notebook.JUDGE))
    explanation = explainer.explain(seen)
    assert isinstance(explanation, str) and explanation.strip()
    guess = explainer.predict(explanation, seen)
    assert guess.shape == (10,) and all(np.isnan(x) or 0 <= x <= 10 for x in guess)
    value = notebook.agreement(guess, seen.peaks)
    assert np.isnan(value) == (np.isnan(guess).mean() > 0.5) and (np.isnan(value) or -1 <= value <= 1)
    whole = len(list(kept.rglob("*.json")))  # an answer that is cut off is not kept, and is none
    assert whole == 2 or (whole == 1 and np.isnan(guess).all())
    away = replace(explainer, retries=0, timeout=1.0)  # what was asked is not asked again
    monkeypatch.setattr(notebook, "_client", lambda *given: pytest.fail("asked again"))
    assert away.explain(seen) == explanation
    if whole == 2:
        np.testing.assert_array_equal(away.predict(explanation, seen), guess)
