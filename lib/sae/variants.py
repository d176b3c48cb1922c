"""SAE architectures: one class each for training and for use. A new one is a class and an entry in :data:`VARIANTS`.

Inside, an SAE works on inputs of unit mean square: x / s with s = sqrt(E ||x||^2), kept as ``scale``. ``encode`` and
``reconstruct`` take and give the model's own units. Notation: pre-activations pi = x W_enc + b_enc, latents f,
reconstruction f W_dec + b_dec; W_enc is [d, M], W_dec [M, d] with unit rows.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from lib.matmul import product
from lib.sae.penalties import PENALTIES


class SAEConfig(BaseModel):
    """What an SAE is. ``coefficient`` is lambda; fields a variant has no use for stay at their defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Literal["jumprelu", "topk"]
    latents: int = Field(ge=1)
    k: int = 0  # TopK: active latents per token
    penalty: str = "l0"  # JumpReLU: a name in PENALTIES
    coefficient: float = 0.0
    omega0: float = 0.1
    theta: float = 0.05  # initial threshold
    bandwidth: float = 0.02  # epsilon of the rectangle kernel


class JumpReLUFunction(torch.autograd.Function):
    """f = pi * 1[pi > theta]; pseudo-derivative with respect to theta: -(theta / eps) * 1[|pi - theta| < eps / 2].

    Active latents pass the gradient to pi unchanged (Rajamanoharan 2024b, arXiv:2407.14435, eq. 11).
    """

    @staticmethod
    def forward(ctx: Any, pi: torch.Tensor, theta: torch.Tensor, bandwidth: float) -> torch.Tensor:
        ctx.save_for_backward(pi, theta)
        ctx.bandwidth = bandwidth
        return torch.where(pi > theta, pi, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        pi, theta = ctx.saved_tensors
        near = (pi - theta).abs_() < ctx.bandwidth / 2
        grad_theta = -(theta / ctx.bandwidth) * torch.where(near, grad, 0.0).sum(0)
        return torch.where(pi > theta, grad, 0.0), grad_theta, None


class FrequencyFunction(torch.autograd.Function):
    """omega [M] = batch mean of 1[pi > theta]; its gradient reaches theta alone: -(1 / eps) * 1[|pi - theta| < eps / 2].

    The estimator is that of Rajamanoharan 2024b, eq. 12, on pre-activations: latents below the threshold count too.
    """

    @staticmethod
    def forward(ctx: Any, pi: torch.Tensor, theta: torch.Tensor, bandwidth: float) -> torch.Tensor:
        ctx.save_for_backward(pi, theta)
        ctx.bandwidth = bandwidth
        return (pi > theta).sum(0, dtype=pi.dtype) / len(pi)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        pi, theta = ctx.saved_tensors
        near = ((pi - theta).abs_() < ctx.bandwidth / 2).sum(0, dtype=pi.dtype) / len(pi)
        return None, -grad * near / ctx.bandwidth, None


class SAE(nn.Module):
    """What the architectures share: weights, initialisation, input scale, reconstruction loss."""

    name: ClassVar[str]

    def __init__(self, config: SAEConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.W_enc = nn.Parameter(torch.zeros(width, config.latents))
        self.b_enc = nn.Parameter(torch.zeros(config.latents))
        self.W_dec = nn.Parameter(torch.zeros(config.latents, width))
        self.b_dec = nn.Parameter(torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.scale: torch.Tensor

    def initialise(self, sample: torch.Tensor, generator: torch.Generator) -> None:
        """Set scale and weights from a sample [n, d] of activations: random unit decoder rows, encoder its transpose,
        b_dec the mean, b_enc such that pre-activations see centred inputs."""
        with torch.no_grad():
            self.scale.copy_(sample.double().square().sum(1).mean().sqrt())
            rows = torch.randn(self.W_dec.shape, generator=generator)
            self.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
            self.W_enc.copy_(self.W_dec.T)
            self.b_dec.copy_(sample.mean(0) / self.scale)
            self.b_enc.copy_(-self.b_dec @ self.W_enc)

    # unit mean-square inputs

    def preactivations(self, x: torch.Tensor) -> torch.Tensor:
        """pi [n, M] of unit inputs [n, d]."""
        return product(x, self.W_enc) + self.b_enc

    def activate(self, pi: torch.Tensor) -> torch.Tensor:
        """Latents f [n, M] >= 0 from pre-activations."""
        raise NotImplementedError("an architecture defines how it activates")

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        """Unit reconstructions [n, d]."""
        return product(f, self.W_dec) + self.b_dec

    def losses(self, x: torch.Tensor, sparsity: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Named losses of a batch of unit inputs, to be summed, and which latents are active [n, M] bool.

        ``sparsity`` in [0, 1] scales the sparsity term during warm-up. Reconstruction: squared error summed over d,
        mean over the batch.
        """
        f = self.activate(self.preactivations(x))
        return {"reconstruction": (self.decode(f) - x).square().sum(1).mean()}, f.detach() > 0

    # the model's own units

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents [n, M] of residuals [n, d]."""
        return self.activate(self.preactivations(x / self.scale))

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions [n, d] of residuals [n, d]."""
        return self.decode(self.encode(x)) * self.scale

    # after a step

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove the part of the decoder's gradient that would change its rows' norms."""
        if self.W_dec.grad is not None:
            self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) * self.W_dec

    @torch.no_grad()
    def constrain(self) -> None:
        """Put the parameters back where they must be: unit decoder rows."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))


class JumpReLU(SAE):
    """JumpReLU with a learned threshold per latent, trained directly in float32 (not as its logarithm)."""

    name = "jumprelu"

    def __init__(self, config: SAEConfig, width: int) -> None:
        super().__init__(config, width)
        self.theta = nn.Parameter(torch.full((config.latents,), config.theta))
        if config.penalty not in PENALTIES:
            raise ValueError(f"unknown penalty {config.penalty!r}: choose one of {', '.join(PENALTIES)}")

    def activate(self, pi: torch.Tensor) -> torch.Tensor:
        return JumpReLUFunction.apply(pi, self.theta, self.config.bandwidth)

    def losses(self, x: torch.Tensor, sparsity: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        pi = self.preactivations(x)
        f = self.activate(pi)
        omega = FrequencyFunction.apply(pi, self.theta, self.config.bandwidth)
        penalty = PENALTIES[self.config.penalty](omega, self.config.omega0)
        named = {
            "reconstruction": (self.decode(f) - x).square().sum(1).mean(),
            f"{self.config.penalty}_penalty": sparsity * self.config.coefficient * penalty,
        }
        return named, f.detach() > 0

    @torch.no_grad()
    def constrain(self) -> None:
        super().constrain()
        self.theta.clamp_(min=1e-6)


class TopK(SAE):
    """The k largest positive pre-activations of each token (Gao 2024, arXiv:2406.04093, section 2.3)."""

    name = "topk"

    def __init__(self, config: SAEConfig, width: int) -> None:
        super().__init__(config, width)
        if not 1 <= config.k <= config.latents:
            raise ValueError(f"TopK needs 1 <= k <= {config.latents} latents, not k={config.k}")

    def activate(self, pi: torch.Tensor) -> torch.Tensor:
        values, indices = pi.topk(self.config.k, dim=1)
        return torch.zeros_like(pi).scatter(1, indices, values.relu())


VARIANTS: dict[str, type[SAE]] = {"jumprelu": JumpReLU, "topk": TopK}


def make(config: SAEConfig, width: int) -> SAE:
    """An untrained SAE of the configured variant for residuals of ``width`` d."""
    return VARIANTS[config.variant](config, width)
