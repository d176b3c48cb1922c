"""The store: every heavy step is a recipe, kept under a content key, written atomically and checked when read."""

from lib.store.artifacts import Artifact, ArtifactError, Job, active, apart, cached, result, solo, together, use, values
from lib.store.keys import canonical, digest
from lib.store.store import Store, atomic, by_umask, open_store, write_atomic
