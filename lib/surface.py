"""Moved to lib.texts.style; this goes with its last user."""

from lib.texts.style import FEATURES, matrix, one_length, one_style

NAMES = tuple(FEATURES)
__all__ = ["NAMES", "matrix", "one_length", "one_style"]
