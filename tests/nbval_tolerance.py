"""pytest plugin: nbval compares decimals within a tolerance (its own digit truncation fails at boundaries)."""

from drift import Tolerant
from nbval.plugin import IPyNbCell

_sanitize = IPyNbCell.sanitize


def sanitize(self, s):  # type: ignore[no-untyped-def]
    text = _sanitize(self, s)
    return Tolerant(text) if isinstance(text, str) else text


IPyNbCell.sanitize = sanitize
