"""Moved to lib.texts."""  # shim: goes at the merge

from lib.texts.examples import Example, read
from lib.texts.likeness import LEAK, clusters, leaks, neighbours
from lib.texts.prompts import build, check, prompt_set
from lib.texts.transforms import Transform, apply

__all__ = [
    "LEAK",
    "Example",
    "Transform",
    "apply",
    "build",
    "check",
    "clusters",
    "leaks",
    "neighbours",
    "prompt_set",
    "read",
]
