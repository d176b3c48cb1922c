"""The residual stream, harvested once and read many times (:mod:`lib.lm.activations`).

Common prefixes (system prompt, jailbreak templates) run once and share their key-value cache.
"""

import copy
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from lib import store
from lib.lm import model
from lib.lm.activations import POOLS, SINK
from lib.lm.model import LM, ModelError, Pinned
from lib.lm.residual import residuals, shared_cache
from lib.lm.sequences import SequenceError, Sequences
from lib.lm.sequences import read as read_sequences

BATCH_TOKENS = 4096  # padded tokens per forward pass
CACHED_TOKENS = 16_384  # tokens of prefix and suffix whose keys and values one pass may hold
SHARD_TOKENS = 65_536
GROUP_COST = 64  # what running a prefix of its own costs, in tokens: smaller savings are not worth a group

Kept = tuple[int, dict[int, torch.Tensor]]  # which sequence, {layer: residuals of its kept tokens [n, d]}


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
    rows = [sequences[i] for i in range(len(sequences))]
    order = sorted(range(len(rows)), key=lambda i: rows[i].astype(">i4").tobytes())  # big-endian bytes sort as ids do
    common = np.zeros(len(rows), np.int64)  # common[j]: shared prefix of order[j-1] and order[j]
    for j, (a, b) in enumerate(itertools.pairwise(rows[i] for i in order), 1):
        width = min(len(a), len(b))
        common[j] = np.append(a[:width] != b[:width], True).argmax()  # the first that differs, or the width
    lengths = np.array([len(rows[i]) for i in order])

    def best(low: int, high: int, level: int = 0) -> tuple[int, list[Group]]:
        """Tokens that order[low:high] cost, in which groups; prefix 0 is to run alone."""
        if high - low <= 1 or level > 100:
            return int(lengths[low:high].sum()), [Group(0, order[low:high])]
        depth = int(common[low + 1 : high].min())
        prefix = min(depth, int(lengths[low:high].min()) - 1)
        cuts = [low, *(np.flatnonzero(common[low + 1 : high] == depth) + low + 1).tolist(), high]
        apart, apart_groups = 0, list[Group]()
        cost, groups, pooled = prefix + GROUP_COST, list[Group](), list[int]()
        for a, b in itertools.pairwise(cuts):
            own, own_groups = best(a, b, level + 1)
            apart, apart_groups = apart + own, apart_groups + own_groups
            joined = int(lengths[a:b].sum()) - prefix * (b - a)
            if joined < own:
                cost, pooled = cost + joined, pooled + order[a:b]
            else:
                cost, groups = cost + own, groups + own_groups
        if prefix > 0 and pooled and cost < apart:
            return cost, [*groups, Group(prefix, pooled)]
        return apart, apart_groups

    found = best(0, len(rows))[1]
    alone = [i for group in found if not group.prefix for i in group.members]
    return [group for group in found if group.prefix] + ([Group(0, alone)] if alone else [])


def batches(group: Group, sequences: Sequences) -> Iterator[list[int]]:
    """Members sorted by length, packed so that padded suffixes stay within the token budgets."""
    batch: list[int] = []
    for index in sorted(group.members, key=lambda i: (len(sequences[i]), i)):
        width, count = len(sequences[index]), len(batch) + 1
        if batch and (count * (width - group.prefix) > BATCH_TOKENS or count * width > CACHED_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def run_group(lm: LM, group: Group, sequences: Sequences, layers: tuple[int, ...]) -> Iterator[Kept]:
    """The kept tokens of every member, the prefix run once."""
    p, shared, cache = group.prefix, None, None
    if p:
        shared = copy.deepcopy(shared_cache(lm))
        prefix = torch.from_numpy(sequences[group.members[0]][:p].astype(np.int64))[None].to(lm.model.device)
        before = {layer: x[0] for layer, x in residuals(lm, prefix, layers, shared).items()}
    for batch in batches(group, sequences):
        ids = pad_sequence([torch.from_numpy(sequences[i][p:].astype(np.int64)) for i in batch], True, lm.pad)
        if shared is not None:
            cache = copy.deepcopy(shared)  # to repeat it changes it: a sliding layer keeps count of what it has seen
            cache.batch_repeat_interleave(len(batch))
        after = residuals(lm, ids.to(lm.model.device), layers, cache)
        for row, index in enumerate(batch):
            start, stop = int(sequences.keep_start[index]), int(sequences.keep_stop[index])
            kept = {layer: after[layer][row, max(start - p, 0) : max(stop - p, 0)] for layer in layers}
            if start < p:
                kept = {layer: torch.cat([before[layer][start : min(stop, p)], x]) for layer, x in kept.items()}
            yield index, kept


def _run(sequences: store.Artifact, lm: Pinned, layers: tuple[int, ...]) -> tuple[Sequences, Iterable[Kept]]:
    """The sequences, and what :func:`run_group` gives of all their groups."""
    model.check_layers(lm.section, layers)
    loaded, rows, most = model.load(lm), read_sequences(sequences), model.positions(lm)
    if not rows.kept:
        raise SequenceError("no tokens to harvest: the data set is empty")
    if (longest := int(np.diff(rows.offsets).max())) > most:
        raise ModelError(f"a text has {longest} tokens and the model reads {most} at once: lower corpora.context")
    groups = group_by_prefix(rows) if shared_cache(loaded) is not None else [Group(0, list(range(len(rows))))]
    found = (kept for group in groups for kept in run_group(loaded, group, rows, layers))
    return rows, tqdm(found, "harvest", len(rows), unit="text", disable=None)


def _half(x: torch.Tensor, layer: int) -> torch.Tensor:
    half = x.to("cpu", torch.float16)
    if not torch.isfinite(half).all():
        raise ModelError(f"layer {layer}: a residual exceeds float16; choose another layer")
    return half


def _part(rows: Sequences, index: int, kept: dict[int, torch.Tensor], skip: int = 0) -> dict[str, torch.Tensor]:
    """What a shard holds of a sequence, the first ``skip`` of its kept tokens left out."""
    start, stop = int(rows.keep_start[index]) + skip, int(rows.keep_stop[index])
    part = {f"layer_{layer}": _half(x[skip:], layer) for layer, x in kept.items()}
    part["position"] = torch.arange(start, stop, dtype=torch.int32)
    part["sequence"] = torch.full_like(part["position"], index)
    part["tail"] = (part["position"] >= int(rows.tail_start[index])) & (part["position"] < int(rows.tail_stop[index]))
    return part | {"token": torch.from_numpy(rows[index][start:stop].astype(np.int32))}


def _save_shards(parts: Iterator[dict[str, torch.Tensor]], out: Path) -> None:
    """A shard whenever enough rows are there, so that no more than these are held."""
    for number in itertools.count():
        shard, count = list[dict[str, torch.Tensor]](), 0
        while count < SHARD_TOKENS and (part := next(parts, None)):
            shard.append(part)
            count += len(part["token"])
        if not count:
            return
        tensors = {name: torch.cat([part[name] for part in shard]) for name in shard[0]}
        layers = [name for name in tensors if name.startswith("layer")]
        tensors |= {name.replace("layer", "norm"): tensors[name].float().norm(dim=1) for name in layers}
        save_file(tensors, out / f"shard_{number:04d}.safetensors")
        del tensors  # before the next are read


@store.cached
def harvest(out: Path, sequences: store.Artifact, lm: Pinned, layers: tuple[int, ...]) -> None:
    """Step: the residual stream of the kept tokens after each of ``layers``, as float16 shards.

    A shard holds ``layer_<L>`` [n, d] float16, ``norm_<L>`` [n] float32, ``sequence``, ``position``, ``token`` [n] int32, and
    ``tail`` [n] bool, the template's tokens after a user's text.
    ModelError if there is no such layer or a residual does not fit into float16, SequenceError if there are no tokens.
    """
    rows, found = _run(sequences, lm, layers)
    _save_shards((_part(rows, index, kept) for index, kept in found), out)


@store.cached
def harvest_prompts(out: Path, sequences: store.Artifact, lm: Pinned, layers: tuple[int, ...], site: int) -> None:
    """Step: what probes read of labelled prompts (:func:`lib.lm.sequences.labelled`, all kept), in one pass.

    ``summary.safetensors`` has, after each of ``layers`` and the site, ``tail_<L>`` [n, T, d] float16, the residuals of the
    T tokens after the user's text, and ``pools_<L>`` [n, 4, d] float16, pooled as :data:`POOLS` says: over the user's text
    or over everything but the first token, attention sinks left out. The shards hold every token from the user's text on,
    after the site only, as those of :func:`harvest`; its errors are raised here too.
    """
    every = tuple(sorted({*layers, site}))
    rows, found = _run(sequences, lm, every)
    lengths = json.loads((sequences.path / "spans.json").read_text(encoding="utf-8"))
    tail, start = lengths["tail"], max(lengths["system"] - 1, 0)  # of the user's text, in what is kept
    width = model.settings(lm).hidden_size
    shapes = {"tail": (len(rows), tail, width), "pools": (len(rows), len(POOLS), width)}
    whole = {f"{n}_{layer}": torch.zeros(s, dtype=torch.float16) for n, s in shapes.items() for layer in every}

    def parts() -> Iterator[dict[str, torch.Tensor]]:
        for index, kept in found:
            for layer, x in kept.items():
                whole[f"tail_{layer}"][index] = _half(x[-tail:], layer)
                whole[f"pools_{layer}"][index] = _half(_pool(x, start, tail), layer)
            yield _part(rows, index, {site: kept[site]}, start)

    _save_shards(parts(), out)
    save_file(whole, out / "summary.safetensors")


def _pool(x: torch.Tensor, start: int, tail: int) -> torch.Tensor:
    """[4, d]: :data:`POOLS` of a prompt's residuals x [n, d], whose user text is x[start : -tail]."""
    norm = x.norm(dim=1)
    calm = norm <= SINK * norm.median()
    user = x[start:-tail][calm[start:-tail]] if calm[start:-tail].any() else x[start:-tail]
    return torch.stack([user.mean(0), user.amax(0), x[calm].mean(0), x[calm].amax(0)])
