"""A labelled prompt, and a labelled set's columns: splits, clusters, what is checked about them."""

import dataclasses
import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from lib import store
from lib.config import Expected

Split = Literal["train", "val", "ood"]
Mix = Literal["post", "wider", "balanced"]
SPLITS: tuple[str, ...] = get_args(Split)
SETS = {  # OOD sets, each of those rows whose ``mix`` it holds
    "ood": ("post",),
    "wider": ("post", "wider"),
    "balanced": ("post", "balanced"),
}
NO_CHAT = "ood without chat"


class Example(BaseModel):
    """One labelled prompt. ``text`` is the whole user turn; ``group`` the cluster of its base prompt; ``source`` the data set
    that this is from. ``mix`` is "post" for what the post's design has, and is in every figure; "wider" for further OOD kinds;
    "balanced" for harmless prompts inside jailbreaks and errands, in no fit and no figure but of the balanced design."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    label: int  # 1 harmful, 0 harmless
    split: Split
    slice: str
    transform: str
    base: str
    group: int
    source: str = ""
    mix: Mix = "post"


def read(prompts: store.Artifact) -> list[Example]:
    """Examples of a step that :func:`write`s them: a prompt set, a file of somebody's prompts."""
    with (prompts.path / "examples.jsonl").open(encoding="utf-8") as lines:
        return [Example.model_validate_json(line) for line in lines]


def write(out: Path, examples: Sequence[Example]) -> None:
    """``examples.jsonl``, in the folder ``out`` of a step."""
    (out / "examples.jsonl").write_text("".join(e.model_dump_json() + "\n" for e in examples), encoding="utf-8")


class LeakError(Expected, ValueError):
    """A cluster of base prompts in more than one split: scores would be of prompts that were trained on."""


class TooFew(Expected, ValueError):
    """Too little is left to fit on or to choose with; a table leaves the row out and says so."""


@dataclass(frozen=True)
class Labels:
    """Columns of a prompt set, one entry a prompt."""

    y: np.ndarray  # [n] int, 1 harmful
    split: np.ndarray  # [n] str; "" is left out
    slice: np.ndarray  # [n] str
    transform: np.ndarray  # [n] str
    source: np.ndarray  # [n] str
    group: np.ndarray  # [n] int
    mix: np.ndarray  # [n] str
    taught: np.ndarray  # [n] int, the label that training is told

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        """Of a prompt set, :meth:`checked`."""
        fields = ("label", "split", "slice", "transform", "source", "group", "mix", "label")
        return cls(*(np.array([getattr(e, name) for e in examples]) for name in fields)).checked()

    def checked(self) -> Self:
        """Itself; LeakError if a cluster is in two splits, TooFew if a split has one class only."""
        for a, b in itertools.combinations(SPLITS, 2):
            if len(shared := np.intersect1d(self.group[self.split == a], self.group[self.split == b])):
                rows = np.flatnonzero(self.group == shared[0])[:4].tolist()
                where = f"first group {shared[0]} at prompts {rows}: a group must be in one split"
                raise LeakError(f"{len(shared)} groups are in both {a} and {b}, {where}")
        for split in SPLITS:
            if len(np.unique(self.y[self.where(split)])) < 2:
                raise TooFew(f"the split {split!r} needs prompts of both labels")
        return self

    def where(self, split: str) -> np.ndarray:
        """[n] bool: the prompts that the figures of a split, or of one of :data:`SETS`, are taken over; "ood without chat"
        is OOD without the chats, which come from the source of the harmless prompts in distribution."""
        if split == NO_CHAT:
            return self.where("ood") & (self.slice != "chat")
        part = "ood" if split in SETS else split
        return (self.split == part) & np.isin(self.mix, SETS.get(split, ("post",)))

    def drawn(self, run: int) -> Self:
        """Run 0 is the split as it stands; others draw validation anew, by cluster and class, of the same size."""
        if run == 0:
            return self
        rng, inside = np.random.default_rng(run), np.flatnonzero(self.split != "ood")
        names, first = np.unique(self.group[inside], return_index=True)
        harmful = np.isin(names, self.group[inside][self.y[inside] == 1])  # the cluster holds a harmful prompt
        held = self.split[inside][first] == "val"
        for _ in range(50):  # few clusters can leave a split without a class
            chosen = [rng.permutation(names[harmful == kind])[: held[harmful == kind].sum()] for kind in (True, False)]
            split = self.split.copy()
            split[inside] = np.where(np.isin(self.group[inside], np.concatenate(chosen)), "val", "train")
            with suppress(TooFew):
                return dataclasses.replace(self, split=split).checked()
        raise TooFew("too few groups to draw train and validation anew: set probes.draws=1, or give more groups")

    def only(self, kept: np.ndarray) -> Self:
        """In distribution the prompts ``kept`` [n] bool alone, those of the balanced design among them; OOD as it stands."""
        inside = np.where(kept, "post", "balanced")
        return dataclasses.replace(self, mix=np.where(self.split == "ood", self.mix, inside)).checked()

    def folds(self) -> list[tuple[Self, np.ndarray]]:
        """Ways to choose by leaving out one transform of train: (labels without it in train, [n] bool of what is scored).

        Scored are validation's prompts under that transform against its plain ones of the other class, or of both classes
        where the transform has both. Without transforms, or where validation has too few of them, train and validation as they are.
        """
        train, val, found = self.where("train"), self.where("val"), []
        plain = self.transform == "plain"
        for name in np.unique(self.transform[train & ~plain]):
            here = val & (self.transform == name)
            kinds = np.unique(self.y[here])
            scored = here | (val & plain & (self.y != kinds[0])) if len(kinds) == 1 else here
            left = dataclasses.replace(self, split=np.where(train & (self.transform == name), "", self.split))
            if len(np.unique(self.y[scored])) == 2 and len(np.unique(left.taught[left.where("train")])) == 2:
                found.append((left, scored))
        return found or [(self, val)]
