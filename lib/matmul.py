"""shim: goes at the merge. See :mod:`lib.cpu`."""

from lib.cpu import _has_onednn, ctypes, fits, keep_memory, linear, product, sys

__all__ = ["_has_onednn", "ctypes", "fits", "keep_memory", "linear", "product", "sys"]
