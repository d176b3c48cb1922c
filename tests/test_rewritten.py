"""Rewritten definitions of lib do what those did that results are filed under, and a key forgives nothing else."""

import ast
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import before
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from planted import LABELS
from sklearn.linear_model._glm._newton_solver import NewtonCholeskySolver

from lib import config, cpu, stats
from lib.latents import explainers
from lib.latents.explainers import Contexts
from lib.probes import methods
from lib.store import keys
from lib.texts.examples import TooFew

ROWS: dict[str, dict[str, Any]] = json.loads((config.ROOT / "data" / "rewritten.json").read_text(encoding="utf-8"))
BEFORE = keys.room(Path(before.__file__).read_text(encoding="utf-8")).code
# Of those that changed little: what stands in them now, and what stood there. Two are computed in a process of their own, on one thread.
CHANGED = {
    "lib.latents.autointerp.evaluate": {"@solo": "@result"},
    "lib.sae.metrics.evaluate": {"@store.solo": "@store.result"},
    "lib.sae.metrics.loss_recovered": {"            held: list[Any] = []\n": "", ", limit, held)": ", limit)"},
}


@pytest.mark.parametrize("name", ROWS)
def test_results_are_filed_under_the_definition_that_it_is_compared_with(name: str) -> None:
    """A row is in force (its code is as it was then), and ``was`` is the hash of the old definition, here or but for its decorator."""
    module, _, short = name.rpartition(".")
    assert keys._definition(module, short)[0] == ROWS[name]["was"], "no longer in force: delete the row"
    old = BEFORE.get(short)
    if name in CHANGED:
        text = ast.unparse(keys._room(module).code[short][0])
        for now, then in CHANGED[name].items():
            assert text.count(now) == 1
            text = text.replace(now, then)
        old = ast.parse(text).body
    assert keys.digest(keys.bare(old)) == ROWS[name]["was"]


def test_a_row_holds_for_the_code_that_it_is_about_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed once more, a definition renews what was made with it."""
    source = keys._SOURCES["lib.stats"]
    edited = source.replace('np.searchsorted(b, a, "right")', 'np.searchsorted(b, a, "left")')
    monkeypatch.setitem(keys._SOURCES, "lib.stats", edited)
    try:
        keys._room.cache_clear()
        keys._definition.cache_clear()
        assert edited != source
        assert keys._definition("lib.stats", "column_aurocs")[0] != ROWS["lib.stats.column_aurocs"]["was"]
    finally:
        monkeypatch.undo()
        keys._room.cache_clear()
        keys._definition.cache_clear()


values = st.sampled_from([-1.5, -0.0, 0.0, 0.5, 2.0, np.inf, np.nan]) | st.floats(-3, 3, width=16)


@settings(deadline=None)
@given(arrays(np.float32, (12, 5), elements=values), st.integers(1, 11), st.sampled_from([np.float32, np.float64]))
def test_aurocs_of_columns_are_the_same_to_the_bit(x: np.ndarray, harmful: int, kind: Any) -> None:
    y = (np.arange(12) < harmful).astype(int)
    np.testing.assert_array_equal(stats.column_aurocs(x.astype(kind), y), before.column_aurocs(x.astype(kind), y))


@pytest.mark.filterwarnings("ignore")
def test_fits_on_few_columns_are_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of columns that are alike, constant, hardly ever there or of large values, hardly regularised too; also where the solver gives up
    and leaves the rest to lbfgs."""
    rng, given_up, fallback = np.random.default_rng(0), list[int](), NewtonCholeskySolver.fallback_lbfgs_solve

    def counted(self: NewtonCholeskySolver, *given: Any, **named: Any) -> None:
        given_up.append(1)
        fallback(self, *given, **named)

    monkeypatch.setattr(NewtonCholeskySolver, "fallback_lbfgs_solve", counted)
    x = rng.normal(size=(len(LABELS.y), 1)) + 0.3 * rng.normal(size=(len(LABELS.y), 6)) + 0.5 * LABELS.y[:, None]
    x[:, 1], x[:, 2], x[:, 3] = 7, x[:, 0] + 0.05 * x[:, 2], np.where(rng.random(len(x)) < 0.1, x[:, 3], 0)
    x[:, 4], x[:, 5] = 1e3 * x[:, 4].clip(0), x[:, 0] + 1e-6 * x[:, 5]
    for columns, kind in itertools.product(([0], [4, 3], [0, 1, 3], [0, 5], range(6)), (np.float32, np.float64)):
        mine, penalties = x[:, [*columns]].astype(kind), (1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)
        found, old = (probe(penalties).fit(mine, LABELS, 0)[""] for probe in (methods.Few, before.Few))
        assert list(found) == list(old)
        for option, model in found.items():
            np.testing.assert_array_equal(model.scores, old[option].scores, strict=True)
            np.testing.assert_array_equal(model.direction, old[option].direction, strict=True)
    assert len(given_up) > 4
    x[0, 0] = np.nan
    for probe in (methods.Few, before.Few):
        with pytest.raises(ValueError, match="NaN"):
            probe((1.0,)).fit(x, LABELS, 0)


def test_columns_that_never_vary_are_refused_by_both() -> None:
    constant, varied = np.ones((4, 3)), np.eye(4)
    for living in (methods._living, before._living):
        assert living(varied) is varied
        for x in (constant, constant[:, :0]):
            with pytest.raises(TooFew):
                living(x)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_means_by_token_are_the_same_to_the_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.5, (6, 12)), 9) - 2
    seen = Contexts(tokens, rng.random((6, 12)) * (rng.random((6, 12)) < 0.5), np.zeros_like(tokens), np.zeros((6, 1)))
    assert explainers.Tokens().explain(seen) == before.Tokens().explain(seen)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.11, 0.14])
@pytest.mark.parametrize("shape", [(2048, 576, 96), (700, 2304, 64), (1031, 2500, 33)])
def test_products_of_mostly_zero_matrices_are_the_same(
    shape: tuple[int, int, int], density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AMD's AVX-512, where its order was seen, to the bit; elsewhere to rounding. At either side of the density from which they are dense."""
    generator = torch.Generator().manual_seed(0)
    n, k, m = shape
    skipped, in_order = list[int](), cpu._Product.in_order
    monkeypatch.setattr(cpu._Product, "in_order", lambda *given: skipped.append(1) or in_order(*given))
    a = torch.randn(n, k, generator=generator) * (torch.rand(n, k, generator=generator) < density)
    a[3], a[5, 7] = 0, -0.0
    b, of_a = torch.randn(k, m, generator=generator), torch.randn(n, m, generator=generator)
    thin = torch.randn(n, k, generator=generator) * (torch.rand(n, k, generator=generator) < density)
    found = []
    for kind in (cpu._Product, before._Product):
        left, right, wide = a.clone().requires_grad_(), b.clone().requires_grad_(), b.T.clone().requires_grad_()
        kind.apply(left, right, None).backward(of_a)  # [n, k] @ [k, m]: as decoding does
        narrow = of_a.clone().requires_grad_()
        up = kind.apply(narrow, wide, None)  # [n, m] @ [m, k]: its gradient is thin, as that of an encoder
        up.backward(thin)
        plain = kind.apply(a.T, of_a, None)  # the transposed one too
        found.append([kind.apply(a, b, None), left.grad, right.grad, narrow.grad, wide.grad, up, plain])
    # Forward twice, the transposed in a gradient and alone, and the thin gradient.
    assert len(skipped) == (5 if density < 1 / 8 else 0)
    seen_on = "AuthenticAMD" in Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else False
    exact = seen_on and torch.backends.cpu.get_cpu_capability() == "AVX512"
    for now, then in zip(*found, strict=True):
        if exact:
            assert torch.equal(now.detach(), then.detach())
        else:
            torch.testing.assert_close(now.detach(), then.detach(), rtol=1e-5, atol=1e-4)
