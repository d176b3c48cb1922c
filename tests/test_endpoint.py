"""An explainer behind an endpoint: a stub that answers, hesitates, refuses, breaks down and talks nonsense."""

import json
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib import store
from lib.config import AutointerpSection, ModelSection
from lib.latents import autointerp
from lib.latents.explainers import Contexts, agreement
from lib.lm import model
from tests.cells import cells_of
from tests.test_autointerp import reader, text_of

notebook = cells_of("04_autointerp")
Endpoint, EndpointError = notebook.Endpoint, notebook.EndpointError


class Stub(ThreadingHTTPServer):
    """Answers with what ``say`` makes of a prompt: a text, or a status; ``prompts`` are those that were asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.prompts: list[str] = []
        self.say: Any = lambda prompt, count: right(prompt)
        self.lock = threading.Lock()
        self.own = secrets.token_hex(8)  # answers are kept by address, and a port comes again

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{self.own}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = asked["messages"][0]["content"]
        with self.server.lock:
            self.server.prompts.append(prompt)
        said = self.server.say(prompt, self.server.prompts.count(prompt))
        status, body = (said, {"error": {"message": "not now"}}) if isinstance(said, int) else (200, said)
        if isinstance(body, str):
            message = {"role": "assistant", "content": body}
            choices = [{"index": 0, "finish_reason": "stop", "message": message}]
            body = {"id": "x", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": choices}
        data = b"{half" if status == 200 and body == {} else json.dumps(body).encode()
        try:
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": len(data),
                "retry-after-ms": 1,
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:  # who asked has given up
            pass

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def excerpts(prompt: str) -> list[str]:
    """The numbered lines of a prompt, but for the one that shows how to answer."""
    return [line for line in prompt.splitlines() if line[:1].isdigit() and not line.startswith("1: 0")]


def right(prompt: str) -> str:
    """Explains by a word, and judges by whether it is there."""
    if "in << >>" in prompt:
        return "the word the"
    return "\n".join(f"{line.split(':')[0]}: {7 if ' the' in line else 0}" for line in excerpts(prompt))


@pytest.fixture
def asked(tiny: ModelSection, empty_store: store.Store, stub: Stub) -> tuple[Any, Any]:
    """An endpoint, and ten contexts of a latent that fires on " the"."""
    lm = model.pinned(tiny)
    tokenizer = model.tokenizer(lm)
    rows = [tokenizer.encode(f"go to {'the' if i % 2 else 'a'} sea", add_special_tokens=False) for i in range(10)]
    width = max(map(len, rows))
    tokens = np.array([row + [-1] * (width - len(row)) for row in rows])
    (the,) = tokenizer.encode(" the", add_special_tokens=False)
    values = (tokens == the) * 3.0
    assert values.any(1).sum() == 5
    return Endpoint("some/model", stub.url, lm, timeout=0.5, retries=2), Contexts(
        tokens, values, tokens * 0, np.zeros((10, 1))
    )


def score(explainer: Any, contexts: Any) -> tuple[float, int]:
    guess = explainer.predict(explainer.explain(contexts), contexts)
    return agreement(guess, contexts.peaks), int(np.isnan(guess).sum())


def test_a_model_that_understands_scores_one_and_is_asked_once(asked: tuple[Any, Any], stub: Stub) -> None:
    explainer, contexts = asked
    assert score(explainer, contexts) == (pytest.approx(1.0), 0)
    assert len(stub.prompts) == 2 and "<< the>>(10)" in stub.prompts[0]
    judged = stub.prompts[1]
    assert "the word the" in judged and "<<" not in judged and "(10)" not in judged, (
        "the judge sees the explanation alone"
    )
    stub.say = lambda prompt, count: 500
    assert score(explainer, contexts) == (pytest.approx(1.0), 0) and len(stub.prompts) == 2, "answers are kept"
    score(replace(explainer, name="other/model"), contexts)
    assert len(stub.prompts) > 2, "of this model only"


@pytest.mark.parametrize("fault", [429, 500, "slow"])
def test_passing_faults_are_tried_again(asked: tuple[Any, Any], stub: Stub, fault: Any) -> None:
    def say(prompt: str, count: int) -> Any:
        if count == 1 and fault == "slow":
            time.sleep(1)
        return fault if count == 1 and fault != "slow" else right(prompt)

    stub.say = say
    assert score(*asked) == (pytest.approx(1.0), 0) and len(stub.prompts) == 4


@pytest.mark.parametrize(
    "answer",
    [500, 429, "", {}, {"choices": []}, "I cannot say", "1: 99\n2: 11\n77: 3"],
    ids=["500", "429", "empty", "half a JSON", "no choice", "prose", "out of range"],
)
def test_what_cannot_be_read_is_no_answer(asked: tuple[Any, Any], stub: Stub, answer: Any) -> None:
    """It is counted, and never scored as right."""
    stub.say = lambda prompt, count: right(prompt) if "in << >>" in prompt else answer
    value, unanswered = score(*asked)
    assert np.isnan(value) and unanswered == 10


def test_without_an_explanation_nothing_is_judged(asked: tuple[Any, Any], stub: Stub) -> None:
    stub.say = lambda prompt, count: 500
    value, unanswered = score(*asked)
    assert np.isnan(value) and unanswered == 10 and len(set(stub.prompts)) == 1
    stub.say = lambda prompt, count: right(prompt)
    assert score(*asked)[1] == 0, "a fault is not kept"


@pytest.mark.parametrize(("lines", "unanswered"), [(6, 4), (4, 6)])
def test_half_an_answer(asked: tuple[Any, Any], stub: Stub, lines: int, unanswered: int) -> None:
    def say(prompt: str, count: int) -> str:
        return right(prompt) if "in << >>" in prompt else "\n".join(right(prompt).splitlines()[:lines])

    stub.say = say
    value, missing = score(*asked)
    assert missing == unanswered and (np.isnan(value) if lines < 5 else value == pytest.approx(1.0))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_an_endpoint_that_refuses_is_one_line(asked: tuple[Any, Any], stub: Stub, status: int) -> None:
    stub.say = lambda prompt, count: status
    with pytest.raises(EndpointError, match=r"refuses some/model.*OPENAI_BASE_URL"):
        asked[0].explain(asked[1])
    assert len(stub.prompts) == 1


def test_a_dead_endpoint_scores_nothing(asked: tuple[Any, Any], stub: Stub) -> None:
    stub.shutdown()
    stub.server_close()
    assert np.isnan(score(*asked)[0])


def test_a_text_that_looks_like_a_placeholder_stays_text(asked: tuple[Any, Any], stub: Stub) -> None:
    explainer, contexts = asked
    stub.say = lambda prompt, count: "$contexts ${most} $" if "in << >>" in prompt else right(prompt)
    explainer.predict(explainer.explain(contexts), contexts)
    assert "$contexts ${most} $" in stub.prompts[-1]


def test_the_prompts_have_their_places() -> None:
    for prompt, names in (
        (notebook.EXPLAIN, ("contexts", "most")),
        (notebook.JUDGE, ("explanation", "contexts", "most", "count")),
    ):
        assert all(f"${name}" in prompt for name in names)


def test_the_order_of_contexts_tells_nothing(asked: tuple[Any, Any], stub: Stub) -> None:
    """They come strongest first; a judge that counts down, whatever it reads, scores no better than chance."""
    explainer, contexts = asked
    many = replace(
        contexts,
        **{
            n: np.concatenate([c[1::2], c[::2]] * 3)[np.argsort(np.arange(30) % 10 >= 5, kind="stable")]
            for n, c in vars(contexts).items()
        },
    )
    assert (np.diff(many.peaks) <= 0).all()
    stub.say = lambda prompt, count: (
        "a word" if "in << >>" in prompt else "\n".join(f"{i + 1}: {10 - i // 3}" for i in range(30))
    )
    value, unanswered = score(explainer, many)
    assert unanswered == 0 and abs(value) < 0.5


def test_a_bare_list_is_no_answer(asked: tuple[Any, Any], stub: Stub) -> None:
    stub.say = lambda prompt, count: "a word" if "in << >>" in prompt else "7\n0\n2\n3\n1\n5"
    assert score(*asked)[1] == 10


def test_an_outage_is_an_error_and_what_was_answered_is_kept(asked: tuple[Any, Any], stub: Stub) -> None:
    """A few questions may fail for good; a result is not made of many such."""
    explainer, contexts = asked
    stub.say = lambda prompt, count: right(prompt)
    assert score(explainer, contexts)[1] == 0
    stub.say = lambda prompt, count: 500
    for number in range(3):
        assert explainer._asked(f"question {number}") == ""
    with pytest.raises(EndpointError, match=r"4 of 6 questions to some/model .* failed.*status 500.*run again"):
        explainer._asked("question 4")
    before = len(stub.prompts)
    assert score(explainer, contexts)[1] == 0 and len(stub.prompts) == before


def test_a_dead_endpoint_is_noticed_however_much_was_answered(asked: tuple[Any, Any], stub: Stub) -> None:
    explainer, _ = asked
    stub.say = lambda prompt, count: "yes"
    for number in range(400):
        explainer._asked(f"early {number}")
    stub.say = lambda prompt, count: 500
    for number in range(explainer.at_once):
        assert explainer._asked(f"late {number}") == ""
    with pytest.raises(EndpointError, match="run again"):
        explainer._asked("one more")


def test_an_answer_that_is_cut_off_is_not_kept(asked: tuple[Any, Any], stub: Stub) -> None:
    explainer, _ = asked
    message = {"role": "assistant", "content": "1: 3"}
    stub.say = lambda prompt, count: {"choices": [{"index": 0, "finish_reason": "length", "message": message}]}
    assert explainer._asked("question") == ""
    stub.say = lambda prompt, count: "whole"
    assert explainer._asked("question") == "whole"


def test_an_sae_is_scored_and_shown_by_an_endpoint(
    stub: Stub, tiny: ModelSection, empty_store: store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the notebook does it: through recipes, whose keys hold the explainer."""
    monkeypatch.setattr(notebook.config, "cache_dir", lambda: tmp_path)
    lm = model.pinned(tiny)
    by = Endpoint("some/model", stub.url, lm, retries=0)
    stub.say = lambda prompt, count: "a word" if "<<" in prompt else "\n".join(f"{i + 1}: {i % 10}" for i in range(12))
    texts, section = (text_of(0), text_of(1)), AutointerpSection(latents=6, examples=12, window=8, tokens=9_000)
    found = autointerp.evaluate(reader(20, 30), texts, 0, by, section, 0).value
    assert found["unanswered"] == 0 and len(found["score"]) == 2
    (one,) = notebook.look(reader(20, 30), texts, lm, 0, by, section, 0, (3,)).value
    assert one["explanation"] == "a word" and one["score"] == pytest.approx(
        found["score"][found["latent"].index(3)], abs=1e-3
    )
