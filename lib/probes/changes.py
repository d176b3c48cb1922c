"""What a control changes about a prompt set before a probe is fit."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lib.texts import style
from lib.texts.examples import Labels, TooFew


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


class Wrapped(Change):
    """Also the benign prompts inside train jailbreaks, in train and validation."""

    def changed(self, labels: Labels, texts: Sequence[str], rng: np.random.Generator) -> Labels:
        return labels.only(labels.split != "ood")


def _plain(labels: Labels) -> np.ndarray:
    return (labels.split != "ood") & labels.overall & np.isin(labels.slice, ["HarmBench", "chat"])


class Plain(Change):
    """Without jailbroken copies and errands, in train and validation."""

    def changed(self, labels: Labels, texts: Sequence[str], rng: np.random.Generator) -> Labels:
        return labels.only(_plain(labels))


class OneStyle(Change):
    """Of the plain prompts those of one style (:func:`lib.texts.style.one_style`)."""

    def changed(self, labels: Labels, texts: Sequence[str], rng: np.random.Generator) -> Labels:
        return labels.only(_plain(labels) & np.array([style.one_style(text) for text in texts]))


class OneLength(Change):
    """Of the plain prompts the harmful ones, and harmless ones of their lengths (:func:`lib.texts.style.one_length`)."""

    def changed(self, labels: Labels, texts: Sequence[str], rng: np.random.Generator) -> Labels:
        return labels.only(style.one_length(texts, labels.y, _plain(labels), rng))
