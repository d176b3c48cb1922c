"""A penalty of our own, as a reader may write one: it steers to a number of active latents, so that contenders are compared at one."""

from typing import ClassVar

import torch
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass

from lib.sae.penalties import Penalty


@dataclass(frozen=True)
class TargetL0(Penalty):
    """(L0 / target - 1)^2: lambda no longer has to be searched (Rajamanoharan 2024b, appendix)."""

    target: PositiveFloat  # active latents per token
    name: ClassVar[str] = "target_l0_penalty"

    def of(self, omega: torch.Tensor) -> torch.Tensor:
        """See :class:`Penalty`."""
        return (omega.sum() / self.target - 1).square()
