"""Gradients that autograd is told: JumpReLU and the step with their pseudo-derivatives, the squared error in one pass.

Pre-activations pi and thresholds theta have one shape, or [n, M] and [M]; the bandwidth eps is in the units of pi.
"""

from typing import Any

import torch


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
        to_theta = torch.where(near, grad, 0.0).sum_to_size(theta.shape) * (-theta / ctx.bandwidth)
        return torch.where(pi > theta, grad, 0.0), to_theta, None


class StepFunction(torch.autograd.Function):
    """1[pi > theta]; pseudo-derivative with respect to theta: -(1 / eps) * 1[|pi - theta| < eps / 2].

    The estimator is that of Rajamanoharan 2024b, eq. 12, on pre-activations: latents below the threshold count too.
    With ``to_pi`` the step also passes its derivative, of opposite sign, to pi and so to the encoder.
    """

    @staticmethod
    def forward(ctx: Any, pi: torch.Tensor, theta: torch.Tensor, bandwidth: float, to_pi: bool) -> torch.Tensor:
        ctx.save_for_backward(pi, theta)
        ctx.bandwidth, ctx.to_pi = bandwidth, to_pi
        return (pi > theta).to(pi.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None, None]:
        pi, theta = ctx.saved_tensors
        near = torch.where((pi - theta).abs_() < ctx.bandwidth / 2, grad, 0.0) / ctx.bandwidth
        return near if ctx.to_pi else None, -near.sum_to_size(theta.shape), None, None


class SquaredError(torch.autograd.Function):
    """(loss [P], last error [n, d]): squared error of P reconstructions, summed over d, mean over tokens.

    ``parts`` [P, n, d] are what each stretch of latents adds; the p-th reconstruction is b_dec and the first p + 1 of
    them; ``weights`` [n, 1] say how much each token's error counts, once if None. One pass each way: the error is the gradient,
    but for a factor.
    """

    @staticmethod
    def forward(
        ctx: Any, parts: torch.Tensor, b_dec: torch.Tensor, x: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        errors = (parts.cumsum(0) if len(parts) > 1 else parts) - (x - b_dec)
        counted = errors if weights is None else errors * weights
        ctx.save_for_backward(counted)
        last = errors[-1]
        ctx.mark_non_differentiable(last)
        return (errors.flatten(1).unsqueeze(1) @ counted.flatten(1).unsqueeze(2)).flatten() / len(x), last

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        (counted,) = ctx.saved_tensors
        each = counted * (2 / counted.shape[1] * grad)[:, None, None]
        parts = each.flip(0).cumsum(0).flip(0) if len(each) > 1 else each  # a part is in every later reconstruction
        return parts, each.sum((0, 1)), None, None
