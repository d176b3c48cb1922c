"""Renamed."""  # shim: goes at the merge

from lib.sae.active import Above, Dense, Encoder, Largest, LargestOfBatch, Rule, Sparse

__all__ = ["Above", "Dense", "Encoder", "Largest", "LargestOfBatch", "Rule", "Sparse"]
