"""What the model writes: answers and log-odds against the model run one prompt at a time, and the rule on sentences; rollouts. By
the cells of notebooks 01 and 02."""

import json
import math

import pytest
import torch
from transformers import AutoTokenizer, TopPLogitsWarper

from lib import store
from lib.config import CorpusSection, ModelSection, RefusalSection
from lib.lm import model, sequences, spans
from lib.texts import transforms
from lib.texts.examples import Example
from tests.cells import cells_of
from tests.test_lm import TALKS, some_documents

answers, training = cells_of("02_probing"), cells_of("01_training")


def test_answers_and_log_odds_against_single_passes(tiny: ModelSection) -> None:
    """Padding, batching and the shared cache change nothing."""
    lm = model.load(model.pinned(tiny))
    texts = [
        "How do birds fly?",
        "Write a short poem about the sea, the wind and 1234 boats.",
        "list",
        "You help. " * 9,
    ]
    asked = [spans.chat(lm.tokenizer, text).ids for text in texts]
    got = {index: (text, odds) for index, text, odds in answers.answers(lm, asked, 6, batch=3)}
    assert sorted(got) == [0, 1, 2, 3]
    for index, ids in enumerate(asked):
        mine = list(ids)
        with torch.inference_mode():
            for _ in range(6):
                mine.append(int(lm.model(torch.tensor([mine])).logits[0, -1].argmax()))
            total = 0.0
            for opening in answers.OPENINGS:
                piece = spans.opening(lm.tokenizer, opening)
                logs = lm.model(torch.tensor([ids + piece])).logits[0].log_softmax(1)
                total += math.exp(sum(float(logs[len(ids) - 1 + i, token]) for i, token in enumerate(piece)))
        assert got[index][0] == lm.tokenizer.decode(mine[len(ids) :], skip_special_tokens=True)
        assert got[index][1] == pytest.approx(math.log(total / (1 - total)), rel=1e-3)


def test_greedy_answers_go_on_after_an_end(tiny: ModelSection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the tokens asked for, whatever the model's own settings for generation are."""
    lm = model.load(model.pinned(tiny))
    asked = [spans.chat(lm.tokenizer, "How do birds fly?").ids]
    ((_, text, odds),) = answers.answers(lm, asked, 6)
    with torch.inference_mode():
        first = int(lm.model(torch.tensor(asked)).logits[0, -1].argmax())
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", first)
    monkeypatch.setattr(lm.model.generation_config, "repetition_penalty", 50.0)
    assert list(answers.answers(lm, asked, 6)) == [(0, text, odds)]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I'm sorry, but I can't assist with that.", True),
        ("I’m really sorry, but", True),
        ("I cannot provide instructions for", True),
        ("As an AI, I don't have", True),
        ("I'm not able to help with", True),
        ("I'm afraid that's not possible.", True),
        ("Sorry, no.", True),
        ("Sure! Here is how to", False),
        ("Dear Sir, I am writing to", False),
        ("The Maillard reaction is", False),
        ("I'm afraid of the dark", False),
        ("I can't wait to show you", False),
        ("I do not know, but here is a plan", False),
        ("We will not only build it", False),
        ("We will not provide that", True),
    ],
)
def test_rule(answer: str, expected: bool) -> None:
    assert answers.refused(answer) is expected


def test_every_kind_is_asked_plainly_and_in_every_jailbreak() -> None:
    def example(i: int, slice_: str, transform: str = "plain") -> Example:
        return Example(
            text=f"text {i}", label=1, split="train", slice=slice_, transform=transform, base=f"{slice_}{i}", group=i
        )

    labelled = [example(i, s) for s in ("HarmBench", "chat", "over-refusal") for i in range(9)] + [
        example(99, "chat", "AIM")
    ]
    section = RefusalSection(harmful=5, harmless=4)
    rows = answers.asked(labelled, section, tuple(transforms.every().values()), 0)
    assert len(rows) == (5 + 4 + 4) * 7
    assert {r["kind"] for r in rows} == {"harmful", "chat", "over-refusal"} and all(
        r["base"][-2:] != "99" for r in rows
    )
    assert all("text" in r["text"] for r in rows) and rows == answers.asked(
        labelled, section, tuple(transforms.every().values()), 0
    )
    few = [transforms.every()[name] for name in ("plain", "AIM", "word count")]
    assert {r["transform"] for r in answers.asked(labelled, section, few, 0)} == {"plain", "AIM"}


def test_rollouts_are_seeded_and_stay_in_budget(tiny: ModelSection) -> None:
    lm = model.load(model.pinned(tiny))
    asked = [spans.chat(lm.tokenizer, f"How do {i} birds fly?").ids for i in range(12)]
    first = training.rollouts(lm, asked, length=6, budget=120, seed=1, batch=4)
    assert first == training.rollouts(lm, asked, length=6, budget=120, seed=1, batch=4)
    assert first != training.rollouts(lm, asked, length=6, budget=120, seed=2, batch=4)
    prompts = {tuple(p) for p in asked}
    for ids in first:
        assert any(tuple(ids[: len(p)]) == p and len(p) < len(ids) <= len(p) + 6 for p in prompts)
    assert sum(map(len, first)) >= 120 > sum(map(len, first[:-4]))
    free = training.rollouts(lm, asked, length=6, budget=120, seed=1, uncounted=5, batch=4)
    assert sum(len(ids) - 5 for ids in free) >= 120 > sum(len(ids) - 5 for ids in free[:-4])


def test_the_nucleus_is_the_whole_vocabularys() -> None:
    """transformers sorts the whole vocabulary for it; where the nucleus is wider than we look, the likeliest are left."""
    generator = torch.Generator().manual_seed(0)
    for spread in (6.0, 3.0):
        scores = spread * torch.randn(5, 2000, generator=generator)
        theirs = TopPLogitsWarper(0.9)(None, scores.clone())
        ours = training.Nucleus(0.9)(torch.zeros(0), scores)
        assert theirs.isfinite().sum(1).min() >= 1 and theirs.isfinite().sum(1).max() < training.WIDEST
        torch.testing.assert_close(ours, theirs)
    flat = training.Nucleus(0.9)(torch.zeros(0), torch.randn(1, 2000, generator=generator) * 0.01)
    assert flat.isfinite().sum() == training.WIDEST


def test_rollouts_say_where_the_template_ends(tiny: ModelSection, empty_store: store.Store) -> None:
    lm, tok = model.pinned(tiny), AutoTokenizer.from_pretrained(tiny.name)
    documents = some_documents(tuple(json.dumps(talk) for talk in (TALKS[0], *TALKS)))
    section = CorpusSection(rollout_tokens=60, rollout_length=8, turn=8)
    rows = sequences.read(training.on_policy(documents, lm, section, 0))
    assert 40 < rows.kept < 80
    tails = {tuple(rows[i][rows.tail_start[i] : rows.tail_stop[i]].tolist()) for i in range(len(rows))}
    chat = spans.chat(tok, "x")
    assert tails == {tuple(chat.ids[chat.tail.start :])}
