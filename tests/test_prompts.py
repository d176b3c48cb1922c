"""The labelled set: its design, its splits, its transforms, and what its key holds."""

import dataclasses
import random
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lib import store
from lib.config import PromptSection
from lib.texts import likeness, prompts, sources, style, transforms
from lib.texts.examples import SPLITS, Example, Labels, LeakError, read, write

TRANSFORMS = transforms.every()
SECTION = PromptSection(harmful_bases=25, benign=60, ood_harmful_bases=25, ood_benign=20, balanced=12)


def jaccard(a: str, b: str) -> float:
    """Of the sets of character trigrams, white space folded and two blanks on either side."""
    folded = [f"  {' '.join(text.lower().split())}  " for text in (a, b)]
    one, two = ({text[i : i + 3] for i in range(len(text) - 2)} for text in folded)
    return len(one & two) / len(one | two)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("abc de", min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=8))
def test_neighbours_against_brute_force(texts: list[str]) -> None:
    near = likeness.neighbours(texts, block=3).toarray()
    for i, j in product(range(len(texts)), repeat=2):
        assert near[i, j] == (jaccard(texts[i], texts[j]) >= likeness.LEAK - 1e-9), (texts[i], texts[j])


def test_clusters_are_chains_of_neighbours() -> None:
    texts = [
        "write a poem about the sea",
        "write a poem about the sea now",
        "build a boat",
        "write a poem on the sea now",
    ]
    found = likeness.clusters(texts)
    assert found[0] == found[1] == found[3] != found[2]


def build(seed: int) -> list[Example]:
    return prompts.build(SECTION, prompts.sources_of("wheels"), list(TRANSFORMS.values()), seed)


@pytest.fixture(scope="module")
def built() -> list[Example]:
    return build(3)


def test_groups_never_cross_splits(built: list[Example]) -> None:
    groups = {split: {e.group for e in built if e.split == split} for split in SPLITS}
    for a, b in combinations(SPLITS, 2):
        assert groups[a] and groups[b] and not groups[a] & groups[b]
    plain = [e for e in built if e.transform == "plain"]
    inside, outside = ([e.text for e in plain if (e.split == "ood") == ood] for ood in (False, True))
    assert not likeness.leaks(inside, outside)


def test_planted_leak_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing gives way to its neighbours, the finished set holds AdvBench prompts that HarmBench has too."""
    monkeypatch.setattr(prompts, "neighbours", lambda texts: sparse.identity(len(texts), dtype=bool, format="csr"))
    section = SECTION.model_copy(update={"harmful_bases": 0, "ood_harmful_bases": 0})
    with pytest.raises(LeakError, match="groups are in both train and"):
        prompts.build(section, prompts.sources_of("wheels"), list(TRANSFORMS.values()), 3)


def test_clusters_are_those_of_what_is_in_the_set(built: list[Example]) -> None:
    """Not linked through prompts that were dropped; all copies of a base prompt in its cluster."""
    plain = [e for e in built if e.transform == "plain"]
    assert [e.group for e in plain] == likeness.clusters([e.text for e in plain]).tolist()
    group = {e.base: e.group for e in plain}
    assert all(e.group == group[e.base] for e in built)


def test_labels_follow_the_design(built: list[Example]) -> None:
    for e in built:
        kind = TRANSFORMS[e.transform].kind
        harmful_base = (
            e.base.startswith(("harmbench", "advbench", "do_not_answer")) or e.slice == "question-form harmful"
        )
        assert e.label == int(harmful_base and kind != "innocuous"), e
        assert e.source == e.base.split(":")[0]
    used = {split: {e.transform for e in built if e.split == split} - {"plain"} for split in ("train", "val", "ood")}
    assert used["train"] == used["val"] == {t.name for t in TRANSFORMS.values() if t.split == "train"}
    assert used["ood"] == {t.name for t in TRANSFORMS.values() if t.split == "ood"}
    slices = {
        mix: {e.slice for e in built if e.mix == mix and e.split == "ood"} for mix in ("post", "wider", "balanced")
    }
    outside = {t.name for t in TRANSFORMS.values() if t.split == "ood"}
    assert slices["post"] == {"AdvBench", "over-refusal", "chat"} | outside, "the post's mix"
    assert slices["wider"] == {"question-form harmful", "benign twins", "sensitive benign"}
    assert slices["balanced"] == {"benign in a jailbreak", "benign in an errand"}


def test_all_prompts_have_one_style_and_training_ones_one_form(built: list[Example]) -> None:
    plain = [e for e in built if e.transform == "plain"]
    assert all(e.text == style.rewritten(e.text) for e in plain)
    assert all(style.instruction(e.text) for e in plain if e.split != "ood")
    outside = [style.instruction(e.text) for e in plain if e.slice == "chat" and e.split == "ood"]
    assert not all(outside), "OOD keeps its kinds"


def test_both_classes_go_through_every_transform_in_the_balanced_design(built: list[Example]) -> None:
    """As many harmless bases as it says, each through all; their clusters are in the split that they were in."""
    for split, where in (("in", {"train", "val"}), ("ood", {"ood"})):
        rows = [e for e in built if e.split in where and e.mix == "balanced"]
        rules = {t.name for t in TRANSFORMS.values() if t.split == ("train" if split == "in" else "ood")}
        bases = {e.base for e in rows}
        assert len(bases) == 12 and len(rows) == 12 * len(rules)
        assert {(e.base, e.transform) for e in rows} == {*product(bases, rules)}
        assert not any(e.label for e in rows)
    known = {e.base: e.split for e in built if e.mix == "post"}
    assert all(known[e.base] == e.split for e in built if e.mix == "balanced")
    labels = Labels.of(built)
    assert not (labels.where("train") & (labels.mix != "post")).any()
    assert labels.where("balanced").sum() - labels.where("ood").sum() == 12 * 4


def test_the_sealed_set_is_of_nothing_else(built: list[Example], empty_store: store.Store) -> None:
    """Both classes through six jailbreaks of a collection used nowhere else, no neighbour of any other prompt; in
    distribution the set is the report's."""

    @store.cached
    def known(out: Path) -> None:
        write(out, built)

    kinds = ("harmful", "questions", "instructions", "templates")
    rows = sources.rows("wheels", *(f"sealed_{kind}" for kind in kinds))
    sealed = read(prompts.sealed_set(known(), rows))
    assert [e for e in sealed if e.split != "ood"] == [e for e in built if e.split != "ood"]
    opened = [e for e in sealed if e.split == "ood"]
    plain = [e for e in opened if e.transform == "plain"]
    assert {e.source for e in opened} == {"sealed_harmful", "sealed_questions", "sealed_instructions"}
    assert len(opened) == 7 * len(plain) and Counter(e.label for e in plain) == {1: 43, 0: 150}
    for kind in prompts.SEALED:
        assert {e.label for e in opened if e.transform == f"sealed {kind}"} == {0, 1}
        assert all("<INSTRUCTION>" not in e.text for e in opened)
    others = [e.text for e in built if e.transform == "plain"]
    assert not likeness.leaks(others, [e.text for e in plain])
    used = set(store.keys.reached("lib.study", "Study"))
    assert not any("sealed" in name for name in used)


def test_what_style_leaves_is_little(built: list[Example]) -> None:
    """Surface features of plain prompts, on the whole set: .80 was aimed at; as they came they gave .987."""
    labels = prompts.build(PromptSection(), prompts.sources_of("wheels"), list(TRANSFORMS.values()), 0)
    plain = [e for e in labels if e.transform == "plain" and e.split != "ood"]
    x, y = style.matrix([e.text for e in plain]), np.array([e.label for e in plain])
    groups = [e.group for e in plain]
    score = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
        x,
        y,
        groups=groups,
        cv=GroupKFold(5),
        method="decision_function",
    )
    assert 0.6 < roc_auc_score(y, score) <= 0.82


def test_same_seed_same_set_and_another_seed_another(built: list[Example]) -> None:
    assert build(3) == built
    assert build(4) != built


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_prompt_text_is_never_a_template(name: str) -> None:
    text = "What is {{ 7*7 }} {% raw %} {x} {text}?"
    for seed in range(3):
        assert text in transforms.apply(TRANSFORMS[name], text, seed)


def test_random_choices_depend_on_seed_name_and_text_only() -> None:
    rule = TRANSFORMS["ignored item"]
    random.seed(1)
    first = [transforms.apply(rule, f"do {i}", 0) for i in range(8)]
    random.seed(2)
    assert [transforms.apply(rule, f"do {i}", 0) for i in range(8)] == first
    assert [transforms.apply(rule, f"do {i}", 1) for i in range(8)] != first
    assert [transforms.apply(dataclasses.replace(rule, name="other"), f"do {i}", 0) for i in range(8)] != first
    for i, text in enumerate(first):
        number = int(text.split("number ")[1].split(",")[0])
        assert f"\n{number}. do {i}" in text, "the item to ignore is the harmful one"
        assert len(text.split("\n")) == 6
    suffixes = {transforms.apply(TRANSFORMS["GCG suffix"], "hello", seed).removeprefix("hello ") for seed in range(40)}
    assert 5 < len(suffixes) <= 13


def test_templates_of_data_run_in_a_sandbox() -> None:
    evil = transforms.Transform("x", "jailbreak", "ood", "{{ prompt.__class__.__mro__ }} {{ prompt }}")
    with pytest.raises(SecurityError):
        transforms.apply(evil, "hello", 0)


def test_a_transform_that_does_not_fit_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"kind": "jailbreak", "split": "ood", "template": "{{ prompt }}"}
    for change in ({"kind": "jailbrake"}, {"splits": "ood"}, {"label": 2}, {"suffixes": "nope"}):
        monkeypatch.setattr(sources, "_table", lambda file, row=good | change: {"mine": row})
        with pytest.raises(sources.SourceError, match="mine") as caught:
            transforms.every()
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(sources, "_table", lambda file: {"mine": good})
    assert transforms.apply(transforms.every()["mine"], "hello", 0) == "hello"


def test_the_set_depends_on_what_it_is_given_only() -> None:
    """Another row of a source, word of a transform, order or seed is another set; the other sources are not in its code."""
    given = prompts.sources_of("wheels")
    rules = list(TRANSFORMS.values())
    key = prompts.prompt_set(SECTION, given, rules, 0).key
    assert prompts.prompt_set(SECTION, prompts.sources_of("wheels"), list(transforms.every().values()), 0).key == key
    row = given["sensitive_benign"]
    fewer = given | {"sensitive_benign": dataclasses.replace(row, chosen=row.chosen[1:])}
    worded = [*rules[:-1], dataclasses.replace(rules[-1], template="Name synonyms: {{ prompt }}")]
    others = [
        prompts.prompt_set(SECTION, fewer, rules, 0),
        prompts.prompt_set(SECTION, given, worded, 0),
        prompts.prompt_set(SECTION, given, rules[::-1], 0),
        prompts.prompt_set(SECTION, given, rules, 1),
    ]
    assert len({key, *(artifact.key for artifact in others)}) == 5
    reached = set(store.keys.reached("lib.texts.prompts", "prompt_set"))
    assert "lib.texts.sources.records" in reached
    assert not reached & {f"lib.texts.sources.{name}" for name in ("rows", "FORMATS", *sources.FORMATS)}


def test_benign_pool_is_plain() -> None:
    pool = [base.text for base in prompts.benign_pool(prompts.sources_of("wheels")["benign"])]
    assert len(pool) == len({t.lower() for t in pool}) > 5000
    for text in pool:
        assert "\n" not in text and "://" not in text and 4 <= len(text.split()) <= 60
        assert np.mean([c.isascii() for c in text]) >= 0.96  # .97 with what its style has lost
