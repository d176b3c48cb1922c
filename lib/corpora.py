"""Moved to lib.texts.corpora."""  # shim: goes at the merge

from lib.texts.corpora import documents, read

__all__ = ["documents", "read"]
