"""pytest plugin: nbval compares decimals within a tolerance (its own digit truncation fails at boundaries)."""

from nbval.plugin import IPyNbCell

from lib.report.compare import Tolerant

_sanitize = IPyNbCell.sanitize


def sanitize(self, s):  # type: ignore[no-untyped-def]
    text = _sanitize(self, s)
    return Tolerant(text) if isinstance(text, str) else text


IPyNbCell.sanitize = sanitize
