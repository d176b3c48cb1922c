"""Harvested activations, read back: one layer of one harvest or of several, and what probes read of prompts."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lib import store
from lib.config import Expected

SINK = 10.0  # times the median norm: attention sinks measure over 15, other tokens under 2
POOLS = ("mean user", "max user", "mean all", "max all")
Harvests = store.Artifact | Sequence[tuple[store.Artifact, float]]


class PlaceError(Expected, ValueError):
    """A layer or a place that was not harvested."""


class Activations:
    """One layer of :func:`lib.lm.harvest.harvest`, through memory maps: rows are read from disk as they are asked for.

    Of several harvests the rows stand one after the other; a weight of 2 takes every row twice, of 0.5 a random half.

    Attention sinks are left out unless ``sinks``: tokens whose norm is over :data:`SINK` times the harvest's median. Few are
    harvested (4 of 16,000 tokens of encyclopaedia text), but they would dominate the mean square that inputs are scaled by.
    """

    def __init__(self, folders: Sequence[tuple[Path, float]], layer: int, seed: int = 0, sinks: bool = False) -> None:
        self.name, self.dropped = f"layer_{layer}", 0
        self.shards: list[dict[str, torch.Tensor]] = []
        rng, parts, start = np.random.default_rng(seed), [], 0
        for folder, weight in folders:
            shards = [load_file(path) for path in sorted(folder.glob("shard_*.safetensors"))]
            if not shards or self.name not in shards[0]:
                raise PlaceError(f"{folder.name} holds no activations of layer {layer}")
            if weight <= 0:
                raise ValueError(f"the weights of a mixture must be positive, not {weight}")
            norm = np.concatenate([shard[f"norm_{layer}"].numpy() for shard in shards])
            kept = np.flatnonzero(norm <= SINK * np.median(norm)) if not sinks else np.arange(len(norm))
            some = rng.permutation(len(kept))[: round(weight % 1 * len(kept))]
            parts += [start + np.tile(kept, int(weight)), start + kept[some]]
            self.dropped, start = self.dropped + len(norm) - len(kept), start + len(norm)
            self.shards += shards
        widths = {int(shard[self.name].shape[1]) for shard in self.shards}
        if len(widths) != 1:
            raise ValueError(f"cannot mix activations of widths {sorted(widths)}")
        self.width, self.rows = widths.pop(), np.concatenate(parts)
        self._starts = np.cumsum([0] + [len(shard["token"]) for shard in self.shards])

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, index: np.ndarray) -> torch.Tensor:
        """[len(index), d] float32, in the order given."""
        rows, out = self.rows[index], torch.empty(len(index), self.width)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(which):
            here = np.flatnonzero(which == number)
            local = torch.from_numpy(rows[here] - self._starts[number])
            out[torch.from_numpy(here)] = self.shards[number][self.name][local].float()
        return out

    def chunks(self, size: int = 8192) -> Iterator[torch.Tensor]:
        """All rows in stored order, [<= size, d] float32 at a time."""
        for at in range(0, len(self), size):
            yield self.gather(np.arange(at, min(at + size, len(self))))

    def column(self, name: str) -> np.ndarray:
        """[n] of every row: "sequence", "position" or "token", int32; "tail", bool; "norm_<L>", float32."""
        return np.concatenate([shard[name].numpy() for shard in self.shards])[self.rows]


def read(harvests: Harvests, layer: int, seed: int = 0, sinks: bool = False) -> Activations:
    """One layer of a harvest, or of several with weights; PlaceError if it was not harvested, ValueError if a weight is not
    positive or the harvests differ in width."""
    given = [(harvests, 1.0)] if isinstance(harvests, store.Artifact) else harvests
    return Activations([(harvested.path, weight) for harvested, weight in given], layer, seed, sinks)


def summary(harvested: store.Artifact, layer: int, place: int | str) -> torch.Tensor:
    """[n, d] float32 of prompts' harvest: at ``place`` tokens after the user's text, or pooled (:data:`POOLS`); PlaceError
    if there is no such layer or place."""
    with safe_open(harvested.path / "summary.safetensors", "pt") as file:
        name = f"{'pools' if isinstance(place, str) else 'tail'}_{layer}"
        if name not in file.keys():  # noqa: SIM118 - the file is no mapping
            raise PlaceError(f"{harvested.path.name} holds no activations of layer {layer}")
        tensor = file.get_slice(name)
        count = tensor.get_shape()[1]
        number = POOLS.index(place) if place in POOLS else place
        if isinstance(number, str) or not 0 <= number < count:
            raise PlaceError(f"no place {place!r}: prompts have positions 0 to {count - 1} and {', '.join(POOLS)}")
        return tensor[:, number].float()


def summary_shape(harvested: store.Artifact, layer: int) -> tuple[int, int]:
    """(prompts, positions after the user's text) of prompts' harvest."""
    with safe_open(harvested.path / "summary.safetensors", "pt") as file:
        count, tail, _ = file.get_slice(f"tail_{layer}").get_shape()
    return count, tail
