"""shim: goes at the merge. See :mod:`lib.lm.activations` (reading) and :mod:`lib.lm.harvest` (making)."""

from lib.lm.activations import POOLS, SINK, Activations, places, read, summary, summary_shape
from lib.lm.activations import Activations as Mixture
from lib.lm.activations import read as mixture
from lib.lm.harvest import BATCH_TOKENS, Group, group_by_prefix, harvest, harvest_prompts, run_group
from lib.lm.residual import residuals

__all__ = [
    "BATCH_TOKENS",
    "POOLS",
    "SINK",
    "Activations",
    "Group",
    "Mixture",
    "group_by_prefix",
    "harvest",
    "harvest_prompts",
    "mixture",
    "places",
    "read",
    "residuals",
    "run_group",
    "summary",
    "summary_shape",
]
