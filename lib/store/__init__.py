"""The store: every heavy step is a recipe, kept under a content key, written atomically and checked when read."""

from lib.store.artifacts import (
    Artifact,
    ArtifactError,
    Job,
    active,
    apart,
    cached,
    inputs_of,
    plain,
    result,
    together,
    use,
    values,
)
from lib.store.keys import canonical, digest
from lib.store.store import Store, atomic, open_store, write_atomic

__all__ = [
    "Artifact",
    "ArtifactError",
    "Job",
    "Store",
    "active",
    "apart",
    "atomic",
    "cached",
    "canonical",
    "digest",
    "inputs_of",
    "open_store",
    "plain",
    "result",
    "together",
    "use",
    "values",
    "write_atomic",
]
