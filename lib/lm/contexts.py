"""shim: goes at the merge. See :mod:`lib.lm.sequences`."""

from lib.lm.sequences import Part, Sequences, chat, labelled, on_policy, pretraining, read

__all__ = ["Part", "Sequences", "chat", "labelled", "on_policy", "pretraining", "read"]
