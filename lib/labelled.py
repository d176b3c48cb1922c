"""Moved to lib.texts.files."""  # shim: goes at the merge

from lib.texts.files import DataError, digest, prompt_file

__all__ = ["DataError", "digest", "prompt_file"]
