"""SAE architectures: one class each for training and for use. A new one is a class and an entry in :data:`VARIANTS`.

Inside, an SAE works on *unit* inputs, whose mean squared norm is one: x / s with s = sqrt(E ||x||^2), kept as ``scale``.
Notation: pre-activations pi = x W_enc + b_enc, latents f, reconstruction f W_dec + b_dec; W_enc is [d, M], W_dec [M, d] with
unit rows. Any variant can be nested (Matryoshka): with ``prefixes`` its reconstruction loss is the mean over reconstructions
from the first m latents, m in prefixes.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, InstanceOf
from torch import nn

from lib.cpu import product
from lib.sae.active import Above, Dense, Encoder, Largest, LargestOfBatch, Map, Rule, Sparse
from lib.sae.gradients import JumpReLUFunction, SquaredError, StepFunction
from lib.sae.penalties import L0, Penalty


class SAEConfig(BaseModel):
    """What an SAE is, and how it is trained; fields a variant has no use for stay at their defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    # what it is: all that is stored with an SAE, since a reader may not know how it was trained
    what: ClassVar[set[str]] = {"variant", "latents", "prefixes", "k"}

    variant: str  # a name in VARIANTS
    latents: int = Field(ge=1)  # M
    prefixes: tuple[int, ...] = ()  # Matryoshka: nested dictionary sizes, increasing, the last one M
    k: int = Field(0, ge=0)  # TopK, BatchTopK: active latents per token (BatchTopK: on average)
    # how JumpReLU and Gated are trained
    coefficient: float = Field(0.0, ge=0)  # lambda: of the penalty (JumpReLU), of the gate's L1 norm (Gated)
    initial_l0: float = Field(0.0, ge=0)  # start with this many active latents; 0: as theta has it
    penalty: InstanceOf[Penalty] = L0()  # from here on JumpReLU alone
    theta: float = Field(0.05, gt=0)  # initial threshold
    bandwidth: float = Field(0.02, gt=0)  # epsilon of the rectangle kernel
    sparsity_reaches: Literal["theta", "all"] = "theta"  # which parameters the penalty's gradient reaches
    # how TopK and BatchTopK are trained
    k_aux: int = Field(0, ge=0)  # dead latents that model the error (AuxK); 0: half the width of the residual stream
    aux_coefficient: float = Field(1 / 32, ge=0)  # alpha of AuxK; 0 switches it off
    dead_tokens: int = Field(50_000, ge=1)  # a latent that has not fired for so many tokens is dead


class Losses(NamedTuple):
    """Named losses of a batch, to be summed, and on how many of its tokens each latent fired [M]."""

    named: dict[str, torch.Tensor]
    fired: torch.Tensor


class SAE(nn.Module):
    """What the architectures share: weights, initialisation, input scale, reconstruction loss, dead latents."""

    name: ClassVar[str]
    in_input_units: ClassVar[tuple[str, ...]] = ("b_enc", "b_dec")  # what grows with the inputs, and so with 1 / scale

    def __init__(self, config: SAEConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.sparse = True  # False: dense reference, same results to rounding
        m = config.latents
        self.prefixes = config.prefixes or (m,)
        if list(self.prefixes) != sorted(set(self.prefixes)) or self.prefixes[0] < 1 or self.prefixes[-1] != m:
            raise ValueError(f"prefixes must increase to the number of latents, {m}, not be {config.prefixes}")
        self.W_enc = nn.Parameter(torch.zeros(m, width).T)  # laid out by latent, as gradients come
        self.b_enc = nn.Parameter(torch.zeros(m))
        self.W_dec = nn.Parameter(torch.zeros(m, width))
        self.b_dec = nn.Parameter(torch.zeros(width))
        self.scale = nn.Buffer(torch.ones(()))
        self.idle = nn.Buffer(torch.zeros(m, dtype=torch.int64))  # tokens since each latent fired

    @torch.no_grad()
    def initialise(self, sample: torch.Tensor, generator: torch.Generator) -> None:
        """Set scale and weights from a sample [n, d] of activations: random unit decoder rows, encoder its transpose,
        b_dec the mean, b_enc such that pre-activations see centred inputs."""
        self.scale.copy_(sample.double().square().sum(1).mean().sqrt())
        self.b_dec.copy_(sample.mean(0) / self.scale)
        self.draw(torch.arange(self.config.latents), sample, generator)

    @torch.no_grad()
    def draw(self, which: torch.Tensor, sample: torch.Tensor, generator: torch.Generator) -> None:
        """Draw the latents ``which`` [m] int64 anew; scale and b_dec stay."""
        rows = torch.randn(len(which), self.W_dec.shape[1], generator=generator).to(self.W_dec)
        rows /= rows.norm(dim=1, keepdim=True)
        self.W_dec[which] = rows
        self.W_enc[:, which] = rows.T
        self.b_enc[which] = -rows @ self.b_dec
        self.idle[which] = 0
        x = sample[:4096] / self.scale
        quantile = torch.zeros_like(self.b_enc[which])
        if self.config.initial_l0:
            rare = max(1, round(len(x) * self.config.initial_l0 / self.config.latents))
            quantile = (product(x, rows.T) + self.b_enc[which]).topk(min(rare, len(x)), dim=0).values[-1]
        self.draw_threshold(which, quantile)

    def draw_threshold(self, which: torch.Tensor, quantile: torch.Tensor) -> None:
        """Set what decides when the latents ``which`` fire; ``quantile`` [m] of their pi gives ``initial_l0``, or is 0."""

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        """Change the input scale; reconstructions stay as they are, latents change by the ratio. 1: the model's units."""
        for name in self.in_input_units:
            getattr(self, name).mul_(self.scale / scale)
        self.scale.fill_(scale)

    def preactivations(self, x: torch.Tensor) -> torch.Tensor:
        """pi [n, M] of unit inputs [n, d]."""
        return product(x, self.W_enc, self.b_enc)

    def activate(self, pi: torch.Tensor) -> torch.Tensor:
        """Latents f [n, M] >= 0 from pre-activations."""
        raise NotImplementedError("an architecture defines how it activates")

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        """Unit reconstructions [n, d]."""
        return product(f, self.W_dec) + self.b_dec

    def encoder(self, x: torch.Tensor) -> Encoder:
        return Encoder(x, self.W_enc, self.b_enc, self.prefixes, self.sparse)

    def losses(self, x: torch.Tensor, sparsity: float, weights: torch.Tensor | None = None) -> Losses:
        """Losses of a batch of unit inputs [n, d]; ``sparsity`` in [0, 1] scales the sparsity term during warm-up, ``weights`` [n, 1]
        say how much each token's error counts."""
        raise NotImplementedError("an architecture defines its losses")

    def reconstruction(
        self,
        z: Dense | Sparse,
        f: torch.Tensor,
        x: torch.Tensor,
        weights: torch.Tensor | None = None,
        detached: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(squared error summed over d, mean over tokens and prefixes; last error [n, d], without gradient)."""
        W_dec, b_dec = (self.W_dec.detach(), self.b_dec.detach()) if detached else (self.W_dec, self.b_dec)
        by_prefix, error = SquaredError.apply(z.decode(f, W_dec), b_dec, x, weights)
        return by_prefix.mean(), error

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents [n, M] of residuals [n, d]."""
        return self.activate(self.preactivations(x / self.scale))

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions [n, d] of residuals [n, d]."""
        return self.decode(self.encode(x)) * self.scale

    def constrain(self) -> None:
        """Put the parameters back where they must be, apart from the decoder's rows."""

    @torch.no_grad()
    def count(self, fired: torch.Tensor, tokens: int) -> None:
        """Keep account of the tokens since each latent fired."""
        self.idle.add_(tokens).masked_fill_(fired > 0, 0)

    @property
    def dead(self) -> torch.Tensor:
        """[M] bool: latents that have not fired for ``dead_tokens``."""
        return self.idle >= self.config.dead_tokens


class JumpReLU(SAE):
    """JumpReLU with a learned threshold per latent, trained directly in float32 (not as its logarithm)."""

    name = "jumprelu"
    in_input_units = ("b_enc", "b_dec", "theta")

    def __init__(self, config: SAEConfig, width: int) -> None:
        super().__init__(config, width)
        self.theta = nn.Parameter(torch.full((config.latents,), config.theta))

    def draw_threshold(self, which: torch.Tensor, quantile: torch.Tensor) -> None:
        self.theta[which] = quantile.clamp_min(self.config.theta)

    def activate(self, pi: torch.Tensor) -> torch.Tensor:
        return JumpReLUFunction.apply(pi, self.theta, self.config.bandwidth)

    def losses(self, x: torch.Tensor, sparsity: float, weights: torch.Tensor | None = None) -> Losses:
        c = self.config
        reach = 0.5001 * c.bandwidth  # of the kernel, with room for rounding: latents below the threshold count too
        z = self.encoder(x).latents(Above(self.theta.detach() - reach))
        theta = z.of(self.theta)
        f = JumpReLUFunction.apply(z.pi, theta, c.bandwidth)
        fired = z.by_latent(StepFunction.apply(z.pi, theta, c.bandwidth, c.sparsity_reaches == "all"))
        named = {
            "reconstruction": self.reconstruction(z, f, x, weights)[0],
            c.penalty.name: sparsity * c.coefficient * c.penalty.of(fired / len(x)),
        }
        return Losses(named, fired.detach())

    @torch.no_grad()
    def constrain(self) -> None:
        self.theta.clamp_(min=1e-6)


class Gated(SAE):
    """Gated SAE (Rajamanoharan 2024a, arXiv:2404.16014, section 3.2); b_enc is the bias of the gate.

    f = 1[pi > 0] * relu(exp(r_mag) * (pi - b_enc) + b_mag). The gate learns from an L1 penalty and from reconstructing the
    input by itself through a frozen decoder (eq. 8), which gets no gradient from that.
    """

    name = "gated"
    in_input_units = ("b_enc", "b_dec", "b_mag")

    def __init__(self, config: SAEConfig, width: int) -> None:
        super().__init__(config, width)
        self.r_mag = nn.Parameter(torch.zeros(config.latents))
        self.b_mag = nn.Parameter(torch.zeros(config.latents))

    def draw_threshold(self, which: torch.Tensor, quantile: torch.Tensor) -> None:
        self.r_mag[which] = 0
        self.b_mag[which] = self.b_enc[which]
        self.b_enc[which] -= quantile.clamp_min(0)

    def activate(self, pi: torch.Tensor, of: Map = lambda parameter: parameter) -> torch.Tensor:
        b_enc, r_mag, b_mag = of(self.b_enc), of(self.r_mag), of(self.b_mag)
        return torch.where(pi > 0, (r_mag.exp() * (pi - b_enc) + b_mag).relu(), 0.0)

    def losses(self, x: torch.Tensor, sparsity: float, weights: torch.Tensor | None = None) -> Losses:
        z = self.encoder(x).latents(Above(torch.zeros_like(self.b_enc)))
        f = self.activate(z.pi, z.of)
        gate = z.pi.relu()
        named = {
            "reconstruction": self.reconstruction(z, f, x, weights)[0],
            "l1_penalty": sparsity * self.config.coefficient * gate.sum() / len(x),  # decoder rows have norm 1
            "gate_reconstruction": self.reconstruction(z, gate, x, weights, detached=True)[0],
        }
        return Losses(named, z.by_latent((f.detach() > 0).to(f.dtype)))


class TopK(SAE):
    """The k largest positive pre-activations of each token, with AuxK (Gao 2024, arXiv:2406.04093, 2.3 and A.2)."""

    name = "topk"

    def __init__(self, config: SAEConfig, width: int) -> None:
        super().__init__(config, width)
        if not 1 <= config.k <= config.latents:
            raise ValueError(f"{type(self).__name__} needs 1 <= k <= {config.latents} latents, not k={config.k}")

    def rule(self) -> Rule:
        return Largest(self.config.k)

    def activate(self, pi: torch.Tensor) -> torch.Tensor:
        values, indices = pi.topk(self.config.k, dim=1)
        return torch.zeros_like(pi).scatter(1, indices, values.relu())

    def losses(self, x: torch.Tensor, sparsity: float, weights: torch.Tensor | None = None) -> Losses:
        encoder = self.encoder(x)
        z = encoder.latents(self.rule())
        f = z.pi.relu()
        loss, error = self.reconstruction(z, f, x, weights)
        named = {"reconstruction": loss, "auxk": self._auxk(encoder, error)}
        self.watch(f.detach())
        return Losses(named, z.by_latent((f.detach() > 0).to(f.dtype)))

    def _auxk(self, encoder: Encoder, error: torch.Tensor) -> torch.Tensor:
        """alpha * squared error of the largest dead latents' model of the error, which has no bias and no gradient."""
        dead = self.dead
        if not self.config.aux_coefficient or (dead.device.type == "cpu" and not dead.any()):
            return error.new_zeros(())
        k = min(self.config.k_aux or max(1, error.shape[1] // 2), self.config.latents)
        z = encoder.latents(Largest(k, dead))
        by_prefix, _ = SquaredError.apply(z.decode(z.pi.relu(), self.W_dec), torch.zeros_like(self.b_dec), -error)
        return self.config.aux_coefficient * by_prefix[-1] * dead.any()

    def watch(self, f: torch.Tensor) -> None:
        """What an architecture keeps of a batch's active latents."""


class BatchTopK(TopK):
    """The k x n largest positive pre-activations of a batch of n tokens (Bussmann 2024, arXiv:2412.06410).

    In use, a latent is active above ``threshold``, the running mean of the smallest value active in training.
    """

    name = "batchtopk"
    in_input_units = ("b_enc", "b_dec", "threshold")
    momentum: ClassVar[float] = 0.95  # of the threshold: short runs must not lag behind

    def __init__(self, config: SAEConfig, width: int) -> None:
        super().__init__(config, width)
        self.threshold = nn.Buffer(torch.zeros(()))

    def rule(self) -> Rule:
        return LargestOfBatch(self.config.k, 0.7 * float(self.threshold) if self.W_enc.device.type == "cpu" else 0.0)

    def activate(self, pi: torch.Tensor) -> torch.Tensor:
        return torch.where((pi > self.threshold) & (pi > 0), pi, 0.0)

    def watch(self, f: torch.Tensor) -> None:
        if not f.numel():
            return
        lowest = torch.where(f > 0, f, torch.inf).min()
        moved = torch.where(self.threshold > 0, self.threshold.lerp(lowest, 1 - self.momentum), lowest)
        self.threshold.copy_(torch.where(lowest.isfinite(), moved, self.threshold))


VARIANTS: dict[str, type[SAE]] = {kind.name: kind for kind in (JumpReLU, Gated, TopK, BatchTopK)}


def make(config: SAEConfig, width: int) -> SAE:
    """An untrained SAE for residuals of ``width`` d; ValueError if there is no such variant, or settings do not fit it."""
    if config.variant not in VARIANTS:
        raise ValueError(f"unknown variant {config.variant!r}: choose one of {', '.join(VARIANTS)}")
    return VARIANTS[config.variant](config, width)
