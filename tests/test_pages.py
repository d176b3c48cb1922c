"""What pages show: expectations, captions with alternative text, code as it runs, and text of data that stays text."""

import base64
import html
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from lib import claims, pages, store


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict]]:
    """What a page displays, with the options given."""
    found: list[tuple[Any, dict]] = []
    monkeypatch.setattr(pages, "display", lambda thing, **options: found.append((thing, options)))
    return found


def test_only_what_is_false_marks_the_page(shown: list) -> None:
    pages.expect(True, "So it is.")
    pages.expect(3 > 2, "So it is.")
    assert shown == []
    pages.expect(2 > 3, "Two is more than three.")
    ((mark, _),) = shown
    assert mark.data.startswith(pages.MARK) and mark.data.endswith("Two is more than three.")


def test_pages_of_other_runs_say_so_at_their_top() -> None:
    assert pages.banner("report", {}) is None
    assert "profile <code>smoke</code>" in pages.banner("smoke", {}).data
    changed = pages.banner("report", {"layer": 3, "probes.data": "<b>|.csv"}).data
    assert "layer = <code>3</code>" in changed and "<b>" not in changed


def test_figures_are_published_with_caption_and_alt_and_the_same_bytes_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: store.Store, shown: list
) -> None:
    monkeypatch.setenv("SAE_REPORT_BUILD", str(tmp_path / "build"))
    folder, data = tmp_path / "build" / "report" / "figures", []
    for _ in range(2):
        figure, axis = plt.subplots()
        axis.plot([1, 2], [3, 4])
        pages.publish(figure, "f", "Finding <b>1</b>.", "A line rises & ends")
        data.append((folder / "f.png").read_bytes())
    assert data[0] == data[1] and not plt.get_fignums()
    assert json.loads((folder / "f.json").read_text()) == {"caption": "Finding <b>1</b>.", "alt": "A line rises & ends"}
    (picture, options), (caption, _) = shown[:2]
    assert base64.b64decode(picture["image/png"]) == data[0] and options["raw"]
    assert options["metadata"] == {"image/png": {"alt": "A line rises & ends"}}
    assert caption.data == "**Figure f.** Finding <b>1</b>."


def test_long_captions_and_lacking_alt_texts_are_refused(empty_store: store.Store, shown: list) -> None:
    figure = plt.figure()
    with pytest.raises(ValueError, match="a caption of 41 words"):
        pages.publish(figure, "f", "word " * 41, "seen")
    with pytest.raises(ValueError, match="alt text ' '"):
        pages.publish(figure, "f", "word " * 40, " ")
    plt.close(figure)
    assert shown == []


def test_source_shows_the_code_that_runs_without_docstrings() -> None:
    text = pages.source(claims.Test).data
    assert text.startswith("```python\n# lib/claims.py\nclass Test(") and text.endswith("\n```")
    assert "return self.room(low, high) <= 0 < self.against(low, high)" in text
    assert '"""' not in text and "How far the interval" not in text
    step = pages.source(claims.filed).data
    assert "@store.result\ndef filed(" in step and "Step:" not in step


def test_intervals_and_tables() -> None:
    entry = {"auroc": 0.98712, "interval": [0.98, 0.9919], "fvu": 0.25, "fvu_interval": [0.24, 0.26]}
    assert pages.interval(entry) == "0.987 [0.980, 0.992]"
    assert pages.interval(entry, "fvu", 2) == "0.25 [0.24, 0.26]"
    assert pages.table([("a|b", 1)], ("x", "y")).data.splitlines() == ["| x | y |", "| --- | --- |", "| a\\|b | 1 |"]


@pytest.mark.parametrize("text", ["`|<script>alert(1)</script>", "$x$ **b** [l](javascript:1)", "<|im_start|>\x00&"])
def test_data_text_is_never_markup(text: str) -> None:
    inside = pages.literal(text).removeprefix("<code>").removesuffix("</code>")
    assert not set(inside) & set("`|<>$*[]()_")
    assert html.unescape(inside) == text.replace("\x00", "\ufffd")


def test_cards_escape_what_they_show_and_mark_what_fires() -> None:
    contexts = {"<i>": [{"tokens": ["<script>", "a\nb", " c"], "values": [2.0, 0.0, 1.0]}], "harmless": []}
    page = pages.card("Latent <3>", contexts).data
    assert "<script" not in page and "&lt;script&gt;" in page and "Latent &lt;3&gt;" in page and "&lt;i&gt;" in page
    assert "rgba(230,159,0,0.75)" in page and "rgba(230,159,0,0.38)" in page and "a⏎b" in page
    assert "<li>never fires</li>" in page


def test_a_latent_links_to_its_card_in_the_browser() -> None:
    assert pages.latent("chat", 12) == '<a href="latents.html#chat-12">12</a>'
    assert 'href="latents.html#&lt;b&gt;-1"' in pages.latent("<b>", 1)
    shown = pages.card("fires <b>", {"harmful": [{"tokens": ["<i>"], "values": [1.0]}]}, pages.latent("chat", 12)).data
    assert '<b>Latent <a href="latents.html#chat-12">12</a>: fires &lt;b&gt;</b>' in shown and "<i></i>" not in shown
    assert "<b>fires</b>" in pages.card("fires", {}).data
