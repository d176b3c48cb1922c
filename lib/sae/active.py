"""A batch's latents as autograd sees them: all of them (dense), or only those that can matter (sparse, CPU float32).

A variant writes its loss once, element by element on ``z.pi``, with the three methods of :class:`Dense`, which both forms have. Dense is the reference: plain
PyTorch on [n, M] tensors. Sparse keeps a value for each entry that a *rule* selects, and touches nothing else after the encoder product.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch

from lib.cpu import product
from lib.sae import kernels

Map = Callable[[torch.Tensor], torch.Tensor]
MAX_DENSITY = 0.06  # share of active latents above which dense products are faster (measured, see `make bench`)


@dataclass(frozen=True)
class Above:
    """pi > bound [M]."""

    bound: torch.Tensor

    def entries(self, pi: np.ndarray, limit: int) -> kernels.Entries | None:
        """These latents of pi [n, M]; None if there may be more than ``limit``."""
        return kernels.above(pi, self.bound.numpy(), limit)

    def mask(self, pi: torch.Tensor) -> torch.Tensor | None:
        """[n, M] bool, or None if the variant's own formulas vanish on the others."""
        return None


@dataclass(frozen=True)
class Largest:
    """The k largest positive pi of each token, among the latents that are ``allowed`` [M] bool, if given."""

    k: int
    allowed: torch.Tensor | None = None

    def entries(self, pi: np.ndarray, limit: int) -> kernels.Entries | None:
        return kernels.largest(pi, self.k, None if self.allowed is None else self.allowed.numpy(), limit)

    def mask(self, pi: torch.Tensor) -> torch.Tensor | None:
        among = pi if self.allowed is None else pi.masked_fill(~self.allowed, 0)
        top = among.topk(self.k, dim=1)
        return torch.zeros_like(pi, dtype=torch.bool).scatter(1, top.indices, top.values > 0)


@dataclass(frozen=True)
class LargestOfBatch:
    """The k x n largest positive pi of the batch. ``guess`` is a bound that is probably too low: it saves time only."""

    k: int
    guess: float = 0.0

    def entries(self, pi: np.ndarray, limit: int) -> kernels.Entries | None:
        count = self.k * len(pi)
        found = kernels.above(pi, np.full(pi.shape[1], self.guess, pi.dtype), limit)
        if found is not None and len(found[1]) < count and self.guess:
            found = kernels.above(pi, np.zeros(pi.shape[1], pi.dtype), limit)
        return None if found is None else kernels.largest_of_all(found, count)

    def mask(self, pi: torch.Tensor) -> torch.Tensor | None:
        flat = pi.flatten()
        top = flat.topk(min(self.k * len(pi), flat.numel()))
        return torch.zeros_like(flat, dtype=torch.bool).scatter(0, top.indices, top.values > 0).view_as(pi)


Rule = Above | Largest | LargestOfBatch  # which latents can be active


class Dense:
    """Every latent of every token; ``pi`` is [n, M], zero where the rule says no."""

    def __init__(self, pi: torch.Tensor, rule: Rule, prefixes: tuple[int, ...]) -> None:
        mask = rule.mask(pi.detach())
        self.pi = pi if mask is None else torch.where(mask, pi, 0.0)
        self.prefixes = prefixes

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """``parameter`` [M], shaped to go with ``pi``."""
        return parameter

    def by_latent(self, values: torch.Tensor) -> torch.Tensor:
        """[M] sums of ``values`` over tokens."""
        return values.sum(0)

    def decode(self, values: torch.Tensor, W_dec: torch.Tensor) -> torch.Tensor:
        """[P, n, d]: what each stretch between nested prefixes adds to the reconstruction."""
        stretches = itertools.pairwise((0, *self.prefixes))
        return torch.stack([product(values[:, a:b], W_dec[a:b]) for a, b in stretches])


@dataclass(frozen=True)
class Pattern:
    """Entries (token, latent), row by row: see :mod:`lib.sae.kernels`."""

    starts: np.ndarray
    latent: np.ndarray
    part: np.ndarray  # [M] int32: the number of the stretch between nested prefixes that each latent is in
    _last: list[tuple[Self, torch.Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def active(self, values: torch.Tensor) -> tuple[Self, torch.Tensor]:
        """The entries whose value is not zero, as a pattern, and their values; products need no others.

        JumpReLU's pattern holds latents just below their threshold too. Its reconstruction and the gradient of its
        pre-activations are zero there in the same places, so the last answer is tried first.
        """
        count = int(torch.count_nonzero(values))
        if count == len(values):
            return self, values
        if self._last:
            pattern, kept = self._last[0]
            if len(kept) == count and int(torch.count_nonzero(values[kept])) == count:
                return pattern, values[kept]
        starts, entries = kernels.nonzero(self.starts, values.numpy())
        pattern = type(self)(starts, self.latent[entries], self.part)
        kept = torch.from_numpy(entries)
        self._last[:] = [(pattern, kept)]
        return pattern, values[kept]

    @cached_property
    def transposed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return kernels.transposed(self.starts, self.latent, len(self.part))

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """[M]: for each latent, its entries' values, summed."""
        return torch.from_numpy(kernels.sum_by_latent(*self.transposed[:2], values.contiguous().numpy()))

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """[nnz]: each latent's value [M] beside its entries."""
        return values[torch.from_numpy(self.latent)]

    def weighted(self, values: torch.Tensor, rows: torch.Tensor, part: np.ndarray) -> torch.Tensor:
        """[M, d]: for each latent, its entries' values times ``rows`` [P, n, d] of their part and token, summed."""
        return torch.from_numpy(kernels.gathered(*self.transposed, values.numpy(), rows.numpy(), part))


class _Encoded(torch.autograd.Function):
    """pi = x W_enc + b_enc, already computed: all of it, or the entries [nnz] of a pattern."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, W_enc: torch.Tensor, b_enc: torch.Tensor, pi: torch.Tensor, pattern: Pattern | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.pattern = pattern
        return pi.view_as(pi)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, torch.Tensor, None, None]:
        (x,) = ctx.saved_tensors
        if ctx.pattern is None:
            return None, product(grad.T, x).T, grad.sum(0), None, None
        active, grad = ctx.pattern.active(grad.contiguous())
        return None, active.weighted(grad, x[None], np.zeros_like(active.part)).T, active.sums(grad), None, None


class _Linear(torch.autograd.Function):
    """A linear map of values, with its transpose for their gradient."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, there: Map, back: Map) -> torch.Tensor:
        ctx.back = back
        return there(values.detach())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.back(grad), None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, W_dec: torch.Tensor, pattern: Pattern) -> torch.Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pattern = pattern
        p, f = pattern.active(values.detach())
        return torch.from_numpy(kernels.decode(p.starts, p.latent, f.numpy(), W_dec.detach().numpy(), p.part))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        values, W_dec = ctx.saved_tensors
        grad, p = grad.contiguous(), ctx.pattern
        to_values = kernels.sampled(p.starts, p.latent, W_dec.detach().numpy(), grad.numpy(), p.part)
        active, f = p.active(values.detach())
        to_weights = active.weighted(f, grad, p.part) if ctx.needs_input_grad[1] else None
        return torch.from_numpy(to_values), to_weights, None


@dataclass
class Sparse:
    """The entries that a rule selects; ``pi`` and all values are [nnz]. Methods as of :class:`Dense`."""

    pi: torch.Tensor
    pattern: Pattern

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        return _Linear.apply(parameter, self.pattern.spread, self.pattern.sums)

    def by_latent(self, values: torch.Tensor) -> torch.Tensor:
        return _Linear.apply(values, self.pattern.sums, self.pattern.spread)

    def decode(self, values: torch.Tensor, W_dec: torch.Tensor) -> torch.Tensor:
        return _Decode.apply(values.contiguous(), W_dec, self.pattern)


class Encoder:
    """Pre-activations pi = x W_enc + b_enc of a batch x [n, d], computed once; :meth:`latents` selects from them.

    ``sparse`` False keeps to the dense reference; True falls back to it wherever more than :data:`MAX_DENSITY` of the
    latents are selected, and on other devices and types.
    """

    def __init__(
        self, x: torch.Tensor, W_enc: torch.Tensor, b_enc: torch.Tensor, prefixes: tuple[int, ...], sparse: bool
    ) -> None:
        self.prefixes = prefixes
        with torch.no_grad():
            self.raw = product(x, W_enc, b_enc)
        self.given = x, W_enc, b_enc
        self.sparse = sparse and self.raw.device.type == "cpu" and self.raw.dtype == torch.float32

    def latents(self, rule: Rule) -> Dense | Sparse:
        """The latents that ``rule`` selects, with gradients to the encoder."""
        limit = int(MAX_DENSITY * self.raw.numel())
        found = rule.entries(self.raw.numpy(), limit) if self.sparse else None
        if found is None:
            return Dense(_Encoded.apply(*self.given, self.raw, None), rule, self.prefixes)
        starts, latent, values = found
        part = np.searchsorted(self.prefixes, np.arange(self.raw.shape[1]), side="right")
        pattern = Pattern(starts, latent, part.astype(np.int32))
        return Sparse(_Encoded.apply(*self.given, torch.from_numpy(values), pattern), pattern)
