"""The residual stream, harvested once and read many times.

:func:`harvest` runs the model up to the last block asked for and no further, shares the key-value cache of common
prefixes (system prompt, jailbreak templates), sorts by length, packs batches to a token budget, and streams shards to
disk: memory does not grow with the number of tokens. :class:`Activations` reads the shards back through memory maps.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import DynamicCache

from lib import store
from lib.config import ModelSection
from lib.lm import contexts
from lib.lm.contexts import Sequences
from lib.lm.model import LM
from lib.lm.model import load as load_lm
from lib.lm.residual import residuals

BATCH_TOKENS = 4096  # padded tokens per forward pass
CACHED_TOKENS = 16_384  # tokens of prefix and suffix whose keys and values one pass may hold
SHARD_TOKENS = 65_536
SINK = 10.0  # times the median norm: attention sinks measure over 15, other tokens under 2
GROUP_COST = 64  # what running a prefix of its own costs, in tokens: smaller savings are not worth a group


# ------------------------------------------------------------------------------------------------- shared prefixes


@dataclass(frozen=True)
class Group:
    """Sequences (by index) that share their first ``prefix`` tokens."""

    prefix: int
    members: list[int]


def group_by_prefix(sequences: Sequences) -> list[Group]:
    """Groups that cost the fewest tokens to run, each prefix run once per group.

    The sorted sequences form a tree of common prefixes; at every node, each child either joins the pool that shares the
    node's prefix or keeps its own groups, whichever is cheaper. At least one token of each sequence is left to run.
    """
    n = len(sequences)
    if n == 0:
        return []
    rows = [sequences[i] for i in range(n)]
    order = sorted(range(n), key=lambda i: rows[i].astype(">i4").tobytes())  # big-endian bytes sort as the ids do
    common = np.zeros(n, np.int64)  # common[j]: shared prefix of order[j-1] and order[j]
    for j in range(1, n):
        a, b = rows[order[j - 1]], rows[order[j]]
        width = min(len(a), len(b))
        different = np.flatnonzero(a[:width] != b[:width])
        common[j] = different[0] if len(different) else width
    lengths = np.array([len(rows[i]) for i in order])

    def best(low: int, high: int, level: int = 0) -> tuple[int, list[tuple[int, list[int]]]]:
        """(cost, [(prefix, members)]) of order[low:high]; prefix 0 stands for "run alone"."""
        if high - low == 1 or level > 100:
            return int(lengths[low:high].sum()), [(0, order[low:high])]
        depth = int(common[low + 1 : high].min())
        prefix = min(depth, int(lengths[low:high].min()) - 1)
        cuts = [low, *(np.flatnonzero(common[low + 1 : high] == depth) + low + 1).tolist(), high]
        groups: list[tuple[int, list[int]]] = []
        apart_groups: list[tuple[int, list[int]]] = []
        pooled: list[int] = []
        cost, apart, pool_cost = 0, 0, prefix + GROUP_COST
        for a, b in itertools.pairwise(cuts):
            own, own_groups = best(a, b, level + 1)
            apart, apart_groups = apart + own, apart_groups + own_groups
            joined = int(lengths[a:b].sum()) - prefix * (b - a)
            if joined < own:
                pooled, pool_cost = pooled + order[a:b], pool_cost + joined
            else:
                cost, groups = cost + own, groups + own_groups
        if prefix > 0 and pooled and cost + pool_cost < apart:
            return cost + pool_cost, [*groups, (prefix, pooled)]
        return apart, apart_groups

    found: list[Group] = []
    alone: list[int] = []
    for prefix, members in best(0, n)[1]:
        if prefix:
            found.append(Group(prefix, members))
        else:
            alone += members
    return found + ([Group(0, alone)] if alone else [])


def batches(group: Group, sequences: Sequences) -> Iterator[list[int]]:
    """Members sorted by length, packed so that padded suffixes stay within the token budgets."""
    members = sorted(group.members, key=lambda i: (len(sequences[i]), i))
    batch: list[int] = []
    for index in members:
        width, count = len(sequences[index]), len(batch) + 1
        if batch and (count * (width - group.prefix) > BATCH_TOKENS or count * width > CACHED_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


# -------------------------------------------------------------------------------------------------------- harvest


def _repeat(cache: Any, times: int) -> Any:
    """A copy of a one-row cache with the row ``times`` over; a sliding-window layer keeps count of what it has seen."""
    repeated = copy.deepcopy(cache)
    repeated.batch_repeat_interleave(times)
    return repeated


def run_group(
    lm: LM, group: Group, sequences: Sequences, layers: tuple[int, ...]
) -> Iterator[tuple[int, np.ndarray, dict[int, torch.Tensor]]]:
    """(sequence, kept positions, {layer: [kept, d]}) of every member, the prefix run once."""
    config = lm.model.config.get_text_config()
    shared, before = None, {}
    if group.prefix:
        shared = DynamicCache(config=config)
        prefix = torch.from_numpy(sequences[group.members[0]][: group.prefix].astype(np.int64))[None].to(lm.device)
        before = {layer: x[0] for layer, x in residuals(lm, prefix, layers, shared).items()}
    for batch in batches(group, sequences):
        suffixes = [sequences[i][group.prefix :] for i in batch]
        ids = torch.full((len(batch), max(map(len, suffixes))), lm.pad, dtype=torch.int64)
        for row, suffix in enumerate(suffixes):
            ids[row, : len(suffix)] = torch.from_numpy(suffix.astype(np.int64))
        cache = _repeat(shared, len(batch)) if shared is not None else None
        after = residuals(lm, ids.to(lm.device), layers, cache)
        for row, index in enumerate(batch):
            start, stop = int(sequences.keep_start[index]), int(sequences.keep_stop[index])
            p = group.prefix
            kept = {}
            for layer in layers:
                tail = after[layer][row, max(start - p, 0) : max(stop - p, 0)]
                kept[layer] = torch.cat([before[layer][start : min(stop, p)], tail]) if start < p else tail
            yield index, np.arange(start, stop), kept


def _half(x: torch.Tensor, layer: int) -> torch.Tensor:
    half = x.to("cpu", torch.float16)
    if not torch.isfinite(half).all():
        raise ValueError(f"layer {layer}: a residual exceeds float16; choose another layer")
    return half


class _ShardWriter:
    """Collects rows and writes a shard whenever enough are there."""

    def __init__(self, out: Path, layers: tuple[int, ...]) -> None:
        self.out, self.layers, self.count, self.rows = out, layers, 0, 0
        self.parts: list[tuple[int, np.ndarray, dict[int, torch.Tensor], np.ndarray]] = []

    def add(self, index: int, positions: np.ndarray, kept: dict[int, torch.Tensor], tokens: np.ndarray) -> None:
        half = {layer: _half(x, layer) for layer, x in kept.items()}
        self.parts.append((index, positions, half, tokens))
        self.rows += len(positions)
        if self.rows >= SHARD_TOKENS:
            self.flush()

    def flush(self) -> None:
        if not self.rows:
            return
        tensors = {f"layer_{layer}": torch.cat([part[2][layer] for part in self.parts]) for layer in self.layers}
        sequence = np.concatenate([np.full(len(part[1]), part[0], np.int32) for part in self.parts])
        for layer in self.layers:
            tensors[f"norm_{layer}"] = tensors[f"layer_{layer}"].float().norm(dim=1)
        tensors["sequence"] = torch.from_numpy(sequence)
        tensors["position"] = torch.from_numpy(np.concatenate([part[1] for part in self.parts]).astype(np.int32))
        tensors["token"] = torch.from_numpy(np.concatenate([part[3] for part in self.parts]).astype(np.int32))
        save_file(tensors, self.out / f"shard_{self.count:04d}.safetensors")
        self.count, self.rows, self.parts = self.count + 1, 0, []


@store.cached
def harvest(out: Path, sequences: store.Artifact, lm: ModelSection, layers: tuple[int, ...]) -> None:
    """Step: the residual stream of the kept tokens after each of ``layers``, as float16 shards.

    A shard holds ``layer_<L>`` [n, d] float16, ``norm_<L>`` [n] float32, and ``sequence``, ``position``, ``token`` [n] int32.

    Raises:
        ModelError: the model has no such layer.
        ValueError: a residual does not fit into float16.
    """
    loaded = load_lm(lm)
    for layer in layers:
        loaded.check_layer(layer)
    rows = contexts.read(sequences)
    if not rows.kept:
        raise ValueError("no tokens to harvest: the data set is empty")
    writer = _ShardWriter(out, layers)
    with tqdm(total=rows.kept, unit="tok", desc="harvest", disable=None) as bar:
        for group in group_by_prefix(rows):
            for index, positions, kept in run_group(loaded, group, rows, layers):
                writer.add(index, positions, kept, rows[index][positions])
                bar.update(len(positions))
    writer.flush()


POOLS = ("mean user", "max user", "mean all", "max all")


@store.cached
def harvest_prompts(out: Path, sequences: store.Artifact, lm: ModelSection, layers: tuple[int, ...], site: int) -> None:
    """Step: what probes read of labelled prompts (:func:`lib.lm.contexts.labelled`, all kept), in one pass.

    ``summary.safetensors`` has, after each of ``layers`` and the site, ``tail_<L>`` [n, T, d] float16, the residuals of the
    T tokens after the user's text, and ``pools_<L>`` [n, 4, d] float16, pooled as :data:`POOLS` says: over the user's text
    or over everything but the first token, attention sinks left out. The shards hold every token from the user's text on,
    after the site only, as those of :func:`harvest`.

    Raises:
        ModelError: the model has no such layer.
        ValueError: a residual does not fit into float16.
    """
    loaded = load_lm(lm)
    every = tuple(sorted({*layers, site}))
    for layer in every:
        loaded.check_layer(layer)
    rows, lengths = contexts.read(sequences), json.loads((sequences.path / "spans.json").read_text(encoding="utf-8"))
    tail, start = lengths["tail"], max(lengths["system"] - 1, 0)  # of the user's text, in what is kept
    shape = (len(rows), loaded.width)
    found = {f"tail_{layer}": torch.zeros(shape[0], tail, shape[1], dtype=torch.float16) for layer in every}
    found |= {f"pools_{layer}": torch.zeros(shape[0], len(POOLS), shape[1], dtype=torch.float16) for layer in every}
    writer = _ShardWriter(out, (site,))
    with tqdm(total=len(rows), unit="prompt", desc="harvest", disable=None) as bar:
        for group in group_by_prefix(rows):
            for index, positions, kept in run_group(loaded, group, rows, every):
                for layer, x in kept.items():
                    found[f"tail_{layer}"][index] = _half(x[-tail:], layer)
                    found[f"pools_{layer}"][index] = _half(_pool(x, start, tail), layer)
                writer.add(index, positions[start:], {site: kept[site][start:]}, rows[index][positions[start:]])
                bar.update()
    writer.flush()
    save_file(found, out / "summary.safetensors")


def _pool(x: torch.Tensor, start: int, tail: int) -> torch.Tensor:
    """[4, d]: :data:`POOLS` of a prompt's residuals x [n, d], whose user text is x[start : -tail]."""
    norm = x.norm(dim=1)
    calm = norm <= SINK * norm.median()
    user = x[start:-tail][calm[start:-tail]] if calm[start:-tail].any() else x[start:-tail]
    return torch.stack([user.mean(0), user.amax(0), x[calm].mean(0), x[calm].amax(0)])


# --------------------------------------------------------------------------------------------------------- reading


def _gather(
    rows: np.ndarray, starts: np.ndarray, width: int, read: Callable[[int, np.ndarray], torch.Tensor]
) -> torch.Tensor:
    """[len(rows), width]: ``rows`` of parts laid end to end at ``starts``; ``read(part, local)`` reads of one part."""
    out = torch.empty(len(rows), width)
    which = np.searchsorted(starts, rows, side="right") - 1
    for number in np.unique(which):
        here = np.flatnonzero(which == number)
        out[torch.from_numpy(here)] = read(int(number), rows[here] - starts[number])
    return out


class Activations:
    """One layer of a :func:`harvest`, through memory maps: rows are read from disk as they are asked for.

    Attention sinks are left out unless ``sinks``: tokens whose norm is over :data:`SINK` times the median. The first token
    of a text always is one and is never harvested; now and then (4 of 16,000 tokens of encyclopaedia text) the second is
    one too, and so few would still dominate the mean square that inputs are scaled by.
    """

    def __init__(self, folder: Path, layer: int, sinks: bool = False) -> None:
        self.shards = [load_file(path) for path in sorted(folder.glob("shard_*.safetensors"))]
        if not self.shards or f"layer_{layer}" not in self.shards[0]:
            raise ValueError(f"{folder.name} holds no activations of layer {layer}")
        self.name = f"layer_{layer}"
        self.width = int(self.shards[0][self.name].shape[1])
        self._starts = np.cumsum([0] + [len(shard["token"]) for shard in self.shards])
        norm = np.concatenate([shard[f"norm_{layer}"].numpy() for shard in self.shards])
        self.rows = np.flatnonzero(norm <= SINK * np.median(norm)) if not sinks else np.arange(len(norm))
        self.dropped = len(norm) - len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, index: np.ndarray) -> torch.Tensor:
        """[len(index), d] float32, in the order given."""
        return _gather(self.rows[index], self._starts, self.width, self._shard_rows)

    def _shard_rows(self, number: int, local: np.ndarray) -> torch.Tensor:
        return self.shards[number][self.name][torch.from_numpy(local)].float()

    def chunks(self, size: int = 8192) -> Iterator[torch.Tensor]:
        """All rows in stored order, [<= size, d] float32 at a time."""
        for at in range(0, len(self), size):
            yield self.gather(np.arange(at, min(at + size, len(self))))

    def column(self, name: str) -> np.ndarray:
        """[n] int32: "sequence", "position" or "token" of every row."""
        return np.concatenate([shard[name].numpy() for shard in self.shards])[self.rows]


class Mixture:
    """Several sources as one: a weight of 2 takes every row twice, of 0.5 a random half of them."""

    def __init__(self, sources: Sequence[Activations], weights: Sequence[float], seed: int) -> None:
        widths = {source.width for source in sources}
        if len(widths) != 1:
            raise ValueError(f"cannot mix activations of widths {sorted(widths)}")
        if min(weights) <= 0:
            raise ValueError(f"the weights of a mixture must be positive, not {list(weights)}")
        rng = np.random.default_rng(seed)
        self.sources, self.width = sources, widths.pop()
        self._starts = np.cumsum([0] + [len(source) for source in sources])
        parts = []
        for source, weight, start in zip(sources, weights, self._starts, strict=False):
            whole = np.tile(np.arange(len(source)), int(weight))
            part = rng.permutation(len(source))[: round((weight - int(weight)) * len(source))]
            parts.append(np.concatenate([whole, part]) + start)
        self.rows = np.concatenate(parts)

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, index: np.ndarray) -> torch.Tensor:
        """[len(index), d] float32, in the order given."""
        return _gather(
            self.rows[index], self._starts, self.width, lambda number, local: self.sources[number].gather(local)
        )


def read(harvested: store.Artifact, layer: int, sinks: bool = False) -> Activations:
    """Open one layer of a harvest, without attention sinks unless asked for."""
    return Activations(harvested.path, layer, sinks)


def summary(harvested: store.Artifact, layer: int, place: int | str) -> torch.Tensor:
    """[n, d] float32 of a :func:`harvest_prompts`: at ``place`` tokens after the user's text, or pooled (:data:`POOLS`).

    Raises:
        ValueError: there is no such layer or place.
    """
    with safe_open(harvested.path / "summary.safetensors", "pt") as file:
        name = f"{'pools' if isinstance(place, str) else 'tail'}_{layer}"
        if name not in file.keys():  # noqa: SIM118 - the file is no mapping
            raise ValueError(f"{harvested.path.name} holds no activations of layer {layer}")
        tensor = file.get_slice(name)
        count = tensor.get_shape()[1]
        if isinstance(place, str) and place in POOLS:
            place = POOLS.index(place)
        if isinstance(place, str) or not 0 <= place < count:
            raise ValueError(f"no place {place!r}: prompts have positions 0 to {count - 1} and {', '.join(POOLS)}")
        return tensor[:, place].float()


def summary_shape(harvested: store.Artifact, layer: int) -> tuple[int, int]:
    """(prompts, positions after the user's text) of a :func:`harvest_prompts`."""
    with safe_open(harvested.path / "summary.safetensors", "pt") as file:
        count, tail, _ = file.get_slice(f"tail_{layer}").get_shape()
    return count, tail


def places(harvested: store.Artifact, layer: int) -> list[int | str]:
    """What :func:`summary` can be asked for."""
    return [*range(summary_shape(harvested, layer)[1]), *POOLS]


def mixture(
    sources: store.Artifact | Sequence[tuple[store.Artifact, float]], layer: int, seed: int
) -> Activations | Mixture:
    """Open one harvest, or several with weights, for training."""
    if isinstance(sources, store.Artifact):
        return read(sources, layer)
    return Mixture([read(source, layer) for source, _ in sources], [weight for _, weight in sources], seed)
