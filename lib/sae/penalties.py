"""Sparsity penalties of JumpReLU SAEs. A new one is a subclass of :class:`Penalty`, in any module or notebook cell.

Gradients reach the thresholds (and, if the SAE's configuration says so, the encoder) through the straight-through
estimator behind omega, :class:`lib.sae.gradients.StepFunction`.
"""

from typing import ClassVar

import torch
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass


@dataclass(frozen=True)
class Penalty:
    """What an SAE pays for firing: fields are its constants, ``name`` what training logs call it."""

    name: ClassVar[str] = "penalty"

    def of(self, omega: torch.Tensor) -> torch.Tensor:
        """The penalty (a scalar) of omega [M], the share of the batch's tokens on which each latent fires."""
        raise NotImplementedError("a penalty defines what it makes of firing frequencies")


@dataclass(frozen=True)
class L0(Penalty):
    """Sum of frequencies, which is the mean number of active latents per token (Rajamanoharan 2024b, eq. 9)."""

    name: ClassVar[str] = "l0_penalty"

    def of(self, omega: torch.Tensor) -> torch.Tensor:
        return omega.sum()


@dataclass(frozen=True)
class QuadraticFrequency(Penalty):
    """Sum of omega * (1 + omega / omega0): the L0 penalty's gradient times (1 + 2 omega / omega0).

    Latents far below ``omega0`` pay the L0 penalty, latents above it pay more the more they fire (the post, section
    "Quadratic frequency penalty"). As omega0 grows it becomes the L0 penalty. Not SAELens' loss of a like name.
    """

    omega0: PositiveFloat
    name: ClassVar[str] = "quadratic_frequency_penalty"

    def of(self, omega: torch.Tensor) -> torch.Tensor:
        return (omega * (1 + omega / self.omega0)).sum()
