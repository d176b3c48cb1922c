"""Moved to lib.wheels and lib.texts.sources."""  # shim: goes at the merge

from lib.texts.sources import Source, clean, records, rows
from lib.wheels import EMBEDDER_WHEEL, MODEL_WHEEL, SourceError, fetch, members, read_member, wheel_folder, wheel_hash

__all__ = [
    "EMBEDDER_WHEEL",
    "MODEL_WHEEL",
    "Source",
    "SourceError",
    "clean",
    "fetch",
    "members",
    "read_member",
    "records",
    "rows",
    "wheel_folder",
    "wheel_hash",
]
