"""Adam for SAEs: clips the gradient, keeps decoder rows at unit norm, and passes over each parameter twice, not ten times.

Equal to clipping, ``torch.optim.Adam`` and normalising, one after the other (tests compare them).
"""

import math

import numpy as np
import torch

from lib.sae import kernels
from lib.sae.variants import SAE

BETAS = (0.9, 0.999)
EPSILON = 1e-8
MAX_NORM = 1.0


class Adam:
    """State: ``steps`` and, by parameter name, first and second moments ``m`` and ``v``, shaped like the parameter."""

    def __init__(self, sae: SAE) -> None:
        self.sae, self.steps = sae, 0
        self.m = {name: torch.zeros_like(p) for name, p in sae.named_parameters()}
        self.v = {name: torch.zeros_like(p) for name, p in sae.named_parameters()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every parameter from its gradient with learning rate ``rate``, then drop the gradients. On a CPU, if the gradient
        is not finite, nothing is updated: FloatingPointError."""
        self.steps += 1
        grads = {name: p.grad for name, p in self.sae.named_parameters() if p.grad is not None}
        fast = all(g.device.type == "cpu" and g.dtype == torch.float32 for g in grads.values())
        (self._fast if fast else self._plain)(grads, rate / (1 - BETAS[0] ** self.steps))
        self.sae.zero_grad(set_to_none=True)

    def _fast(self, grads: dict[str, torch.Tensor], rate: float) -> None:
        rows = {name: self._rows(grad) for name, grad in grads.items()}
        weights = {name: self._rows(p.data) for name, p in self.sae.named_parameters()}
        squares = (kernels.project(weights[name], grad, name == "W_dec") for name, grad in rows.items())
        norm = math.sqrt(sum(float(each.sum(dtype=np.float64)) for each in squares))
        if not math.isfinite(norm):
            raise FloatingPointError("the gradient is not finite")
        clip = min(1.0, MAX_NORM / (norm + 1e-6))
        root2 = math.sqrt(1 - BETAS[1] ** self.steps)
        settings = tuple(np.float32(x) for x in (rate, *BETAS, root2, EPSILON, clip))
        for name, grad in rows.items():
            moments = self._rows(self.m[name]), self._rows(self.v[name])
            kernels.adam(weights[name], grad, *moments, settings, name == "W_dec")

    @staticmethod
    def _rows(x: torch.Tensor) -> np.ndarray:
        """[rows, d] view of a parameter; W_enc is laid out by latent."""
        return (x[None] if x.dim() == 1 else x if x.is_contiguous() else x.T).numpy()

    def _plain(self, grads: dict[str, torch.Tensor], rate: float) -> None:
        W_dec = self.sae.W_dec
        grads["W_dec"] -= (grads["W_dec"] * W_dec).sum(1, keepdim=True) * W_dec
        norm = torch.stack([g.norm() for g in grads.values()]).norm()
        clip = (MAX_NORM / (norm + 1e-6)).clamp(max=1.0)
        for name, p in self.sae.named_parameters():
            if name in grads:
                g = grads[name] * clip
                self.m[name].lerp_(g, 1 - BETAS[0])
                self.v[name].mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
                root = self.v[name].sqrt() / math.sqrt(1 - BETAS[1] ** self.steps)
                p.addcdiv_(self.m[name], root + EPSILON, value=-rate)
        W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))
