"""The browser of latents: one page that holds its data, to be searched, filtered and linked to."""

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def page(found: Mapping[str, Any]) -> str:
    """The page of ``found``, the same bytes every time. It loads nothing, and opens from a disk as it does from a site.

    ``found`` is {title, note, saes: [{id, name, tokens, harmful, harmless}], vocabulary: [text of a token], latents: [{sae, latent, explanation, score,
    frequency, fires, histogram, max, up, down, contexts}]}. ``tokens``, ``harmful`` and ``harmless`` are how many there are of held-out chat, and of
    prompts of either class. Of a latent, ``sae`` is an index into ``saes``, ``explanation`` may be "" and ``score`` None; ``frequency`` is the share of
    ``tokens`` on which it fires, ``fires`` those of harmful and of harmless prompts; ``histogram`` counts its activations above 0 on held-out chat, in ten
    equal bins from 0 to ``max``. ``up`` and ``down`` are the tokens whose logits it raises and lowers most, and ``contexts`` those of harmful and those of
    harmless prompts, strongest first, each [tokens, levels]. A token is an index into ``vocabulary``, a level goes from 0 to 9, which is ``max``; a link to
    a latent ends in ``#<id>-<latent>``. ValueError if a number is not finite.
    """
    text = json.dumps(dict(found), separators=(",", ":"), allow_nan=False)  # ASCII: half a surrogate is no UTF-8
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()  # so no text of data is ever markup
    return Path(__file__).with_name("browser.html").read_text(encoding="utf-8").replace("__DATA__", packed)
