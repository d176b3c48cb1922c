"""Activations read back from shards: sinks, order, several harvests with weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib import store
from lib.lm import activations
from lib.lm.activations import Activations


def shard(folder: Path, x: torch.Tensor) -> Activations:
    n = len(x)
    ids = torch.arange(n, dtype=torch.int32)
    tensors = {"layer_0": x.half(), "norm_0": x.norm(dim=1), "sequence": ids // 4, "position": ids % 4, "token": ids}
    tensors["tail"] = ids % 4 == 3
    half = n // 2
    for number, part in enumerate((slice(0, half), slice(half, n))):
        save_file({k: v[part].contiguous() for k, v in tensors.items()}, folder / f"shard_{number:04d}.safetensors")
    return Activations([(folder, 1.0)], 0)


def test_attention_sinks_are_left_out(tmp_path: Path) -> None:
    x = torch.randn(20, 8)
    x[[3, 17]] *= 1000
    source = shard(tmp_path, x)
    kept = [i for i in range(20) if i not in (3, 17)]
    assert (len(source), source.dropped, source.column("token").tolist()) == (18, 2, kept)
    order = np.array([17, 0, 5])
    torch.testing.assert_close(source.gather(order), x[[kept[i] for i in order]].half().float())
    torch.testing.assert_close(torch.cat(list(source.chunks(7))), x[kept].half().float())
    assert len(Activations([(tmp_path, 1.0)], 0, sinks=True)) == 20


def test_unknown_layer_is_an_error(tmp_path: Path) -> None:
    shard(tmp_path, torch.randn(8, 4))
    with pytest.raises(ValueError, match="no activations of layer 5"):
        Activations([(tmp_path, 1.0)], 5)


@store.cached
def planted(out: Path, number: int, rows: int, width: int = 3) -> None:
    """A harvest whose rows all hold its number and where they stand in it; the last is a sink."""
    x = torch.full((rows + 1, width), float(number))
    x[:, -1] = torch.arange(rows + 1) / 64
    x[-1] = 1000
    shard(out, x)


def test_several_harvests_are_read_as_one(empty_store: store.Store) -> None:
    """Each row of weight 2.5 two or three times, of weight 0.1 a seeded tenth; sinks of none; a harvest alone as it stands."""
    harvests = [planted(i, 10 * i) for i in (1, 2, 3)]
    mixed = activations.read(list(zip(harvests, (1, 2.5, 0.1), strict=True)), 0, seed=0)
    assert (len(mixed), mixed.width, mixed.dropped) == (10 + 50 + 3, 3, 3)
    x = mixed.gather(np.arange(len(mixed)))
    assert x[:, 0].tolist() == [1.0] * 10 + [2.0] * 50 + [3.0] * 3
    copies = np.bincount((x[10:60, -1] * 64).long())
    assert set(copies.tolist()) == {2, 3} and int((copies == 3).sum()) == 10
    rows = np.random.default_rng(0).permutation(len(mixed))
    assert torch.equal(mixed.gather(rows), x[torch.from_numpy(rows)])
    other = activations.read(list(zip(harvests, (1, 2.5, 0.1), strict=True)), 0, seed=1)
    assert not torch.equal(other.gather(np.arange(63)), x)
    assert torch.equal(other.gather(np.arange(10)), activations.read(harvests[0], 0).gather(np.arange(10)))
    rng = np.random.default_rng(0)  # the rows that a run draws are those of its seed, whatever stands around this code
    drawn = [rng.permutation(n)[:k].tolist() for n, k in ((10, 0), (20, 10), (30, 3))]
    assert (x[50:60, -1] * 64).tolist() == drawn[1] and (x[60:, -1] * 64).tolist() == drawn[2]


def test_harvests_that_do_not_go_together_are_errors(empty_store: store.Store) -> None:
    with pytest.raises(ValueError, match=r"widths \[3, 5\]"):
        activations.read(((planted(1, 10), 1), (planted(2, 10, 5), 1)), 0)
    with pytest.raises(ValueError, match="positive"):
        activations.read(((planted(1, 10), 1), (planted(2, 10), 0)), 0)
