"""The labelled set: its design, its splits, its transforms, and what its key holds."""

import dataclasses
import json
import random
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError
from scipy import sparse

from lib import config, store
from lib.config import PromptSection
from lib.texts import likeness, prompts, sources, transforms
from lib.texts.examples import SPLITS, Example, LeakError

TRANSFORMS = transforms.every()
SECTION = PromptSection(harmful_bases=25, benign=60, ood_harmful_bases=25, ood_benign=20, ood_wrapped=5)


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
    with pytest.raises(LeakError, match="groups are in both train and ood"):
        build(3)


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
    used = {split: {e.transform for e in built if e.split == split} - {"plain"} for split in ("train", "val", "ood")}
    assert used["train"] == used["val"] == {t.name for t in TRANSFORMS.values() if t.split == "train"}
    assert used["ood"] == {t.name for t in TRANSFORMS.values() if t.split == "ood"}
    assert {e.slice for e in built if not e.overall} == {"benign in a jailbreak"}


def test_same_seed_same_set_and_another_seed_another(built: list[Example]) -> None:
    assert build(3) == built
    assert build(4) != built


def test_committed_sizes_are_those_of_the_post() -> None:
    path = config.ROOT / "data" / "results" / "02_prompt_counts.json"
    rows = json.loads(path.read_text())["payload"]
    sizes = Counter()
    for row in rows:
        if row["slice"] != "benign in a jailbreak":
            sizes[row["split"]] += row["n"]
    # Whole clusters are assigned, so validation comes out a little smaller or larger than the post's.
    for split, n in {"train": 4046, "val": 1014, "ood": 3850}.items():
        assert abs(sizes[split] - n) <= 0.07 * n, (split, sizes[split])
    assert abs(sizes["train"] + sizes["val"] - 5060) <= 5


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
        assert np.mean([c.isascii() for c in text]) >= 0.97
