"""What a control changes about a prompt set before a probe is fit."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.texts.examples import Labels, TooFew

HELD = 0.2  # share of clusters that is validation, where a change draws it


@dataclass(frozen=True)
class Change:
    """As it stands, nothing; every kind of change defines ``changed``. ``amount`` seeds what is drawn at random."""

    amount: float = 0.0

    def apply(self, labels: Labels, texts: Sequence[str], run: int) -> Labels:
        """The labels that a probe is fit on and chosen with, of prompts ``texts`` [n] in one run; TooFew if too little is
        left to train on or to choose with."""
        changed = self.changed(labels, texts, np.random.default_rng([run, round(1000 * self.amount)]))
        if len(np.unique(changed.taught[changed.where("train")])) < 2:
            raise TooFew("the train prompts that are left have one label only")
        return changed

    def changed(self, labels: Labels, texts: Sequence[str], rng: np.random.Generator) -> Labels:
        return labels


class Shuffled(Change):
    """Train labels dealt out anew, validation's kept; ``amount`` only numbers the draw."""

    def changed(self, labels: Labels, texts: Sequence[str], rng: np.random.Generator) -> Labels:
        train, taught = labels.where("train"), labels.y.copy()
        taught[train] = rng.permutation(taught[train])
        return dataclasses.replace(labels, taught=taught)


class Mislabelled(Change):
    """A share ``amount`` of train clusters with their labels turned round; validation keeps its own."""

    def changed(self, labels: Labels, texts: Sequence[str], rng: np.random.Generator) -> Labels:
        train = labels.where("train")
        groups = np.unique(labels.group[train])
        wrong = train & np.isin(labels.group, rng.permutation(groups)[: round(self.amount * len(groups))])
        return dataclasses.replace(labels, taught=np.where(wrong, 1 - labels.y, labels.y))


class Fewer(Change):
    """``amount`` train clusters, in the proportion of the classes, and validation as it is."""

    def changed(self, labels: Labels, texts: Sequence[str], rng: np.random.Generator) -> Labels:
        train = labels.where("train")
        groups = np.unique(labels.group[train])
        if self.amount > len(groups):
            raise TooFew(f"there are {len(groups)} train clusters, not {self.amount:g}")
        harmful = np.isin(groups, labels.group[train & (labels.y == 1)])  # the cluster holds a harmful prompt
        classes = [rng.permutation(groups[harmful == kind]) for kind in (False, True)]
        kept = [mine[: max(2, round(self.amount * len(mine) / len(groups)))] for mine in classes]
        left_out = train & ~np.isin(labels.group, np.concatenate(kept))
        return dataclasses.replace(labels, split=np.where(left_out, "", labels.split))


class Balanced(Change):
    """Both classes through every jailbreak and errand in train and validation too; the figure is that of "balanced" (:data:`lib.texts.examples.SETS`)."""

    def changed(self, labels: Labels, texts: Sequence[str], rng: np.random.Generator) -> Labels:
        return labels.only(labels.split != "ood")


class Plain(Change):
    """Without jailbroken copies and errands, in train and validation."""

    def changed(self, labels: Labels, texts: Sequence[str], rng: np.random.Generator) -> Labels:
        return labels.only((labels.split != "ood") & (labels.mix == "post") & (labels.transform == "plain"))


@dataclass(frozen=True, kw_only=True)
class LeftOut(Change):
    """Leave one data set of each class out: of plain prompts alone, OOD are the source ``harmful``'s harmful ones and the source
    ``benign``'s harmless ones; of the others, a fifth of the clusters of each class is validation. No cluster is in both. A table of
    such a fit is given the same change, since it moves prompts between splits."""

    harmful: str
    benign: str

    def changed(self, labels: Labels, texts: Sequence[str], rng: np.random.Generator) -> Labels:
        plain = labels.transform == "plain"
        ood = plain & (labels.source == np.where(labels.y == 1, self.harmful, self.benign))
        split = np.where(ood, "ood", np.where(plain & ~np.isin(labels.group, labels.group[ood]), "train", ""))
        harmful = np.unique(labels.group[(split == "train") & (labels.y == 1)])  # the cluster holds a harmful prompt
        harmless = np.setdiff1d(labels.group[split == "train"], harmful)
        held = np.concatenate([rng.permutation(names)[: round(HELD * len(names))] for names in (harmful, harmless)])
        split[(split == "train") & np.isin(labels.group, held)] = "val"
        return dataclasses.replace(labels, split=split, mix=np.full_like(labels.mix, "post")).checked()
