"""Sparsity penalties as functions of the batch firing frequency. A new penalty is one entry in :data:`PENALTIES`.

Each takes omega [M], the share of the batch's tokens on which each latent fires, and the constants it may need: omega0,
a frequency, and target, a number of latents per token. Gradients reach the thresholds (and, if the SAE's configuration
says so, the encoder) through the straight-through estimator behind omega.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def l0(omega: torch.Tensor, omega0: float, target: float) -> torch.Tensor:
    """Sum of frequencies, which is the mean number of active latents per token (Rajamanoharan 2024b, eq. 9)."""
    return omega.sum()


def quadratic_frequency(omega: torch.Tensor, omega0: float, target: float) -> torch.Tensor:
    """Sum of omega * (1 + omega / omega0): the L0 penalty's gradient times (1 + 2 omega / omega0).

    Latents far below ``omega0`` pay the L0 penalty, latents above it pay more the more they fire (the post, section
    "Quadratic frequency penalty"). As omega0 grows it becomes the L0 penalty. Not SAELens' loss of a like name.
    """
    return (omega * (1 + omega / omega0)).sum()


def squared_frequency(omega: torch.Tensor, omega0: float, target: float) -> torch.Tensor:
    """Sum of omega^2, the post's ablation: M * (variance + mean^2), so at a given L0 it asks for equal frequencies."""
    return omega.square().sum()


def target_l0(omega: torch.Tensor, omega0: float, target: float) -> torch.Tensor:
    """(L0 / target - 1)^2: lambda no longer has to be searched (Rajamanoharan 2024b, appendix)."""
    return (omega.sum() / target - 1).square()


PENALTIES: dict[str, Callable[[torch.Tensor, float, float], torch.Tensor]] = {
    "l0": l0,
    "quadratic_frequency": quadratic_frequency,
    "squared_frequency": squared_frequency,
    "target_l0": target_l0,
}
