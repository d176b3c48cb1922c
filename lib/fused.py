"""shim: goes at the merge. See :mod:`lib.lm.fused`."""

from lib.lm.fused import speed_up

__all__ = ["speed_up"]
