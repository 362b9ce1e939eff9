"""A prior of image embeddings that learns without text: many embeddings that fit one condition.

A sentence names some traits of an image and leaves others open. Its embedding lies near the mean of
the embeddings of all images that fit it. A denoiser that takes this mean for one image makes one
average face for every seed. The prior samples, for each seed, the embedding of another image that
fits; unCLIP's prior (Ramesh 2022, section 2.2) does so after a training on pairs.

This training needs images alone. It makes means of images that are alike: it noises an embedding so
that some of its traits are lost, and takes the mean of all images, weighted by their probability to
be the noised one. The prior learns to sample the embedding from the mean, by flow matching.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch_random import WHOLE_BATCH, BatchRandom
from models.blocks import TimestepEmbedder

STEPS = 16  # Heun steps from noise to an embedding


class RowLinear(nn.Linear):
    """A linear layer whose result for a row depends on that row alone when a CPU samples.

    A product of several rows rounds each of them by its place and by their number. Half-precision
    networks amplify that to visible differences of images.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, in) -> (N, out)."""
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        weight = self.weight.t().expand(len(x), -1, -1)  # a product of its own for each row
        return torch.bmm(x[:, None], weight)[:, 0] + self.bias


class EmbeddingPrior(nn.Module):
    """Flow from noise to image embeddings of unit length, given the mean of those that fit.

    mean: buffer (D,), mean of the normalised image embeddings.
    std: buffer (), standard deviation of their numbers around it.
    max_norm: buffer (), mean distance from it.
    """

    mean: Tensor
    std: Tensor
    max_norm: Tensor

    def __init__(self, dim: int, width: int = 384, depth: int = 4):
        super().__init__()
        self.embed_x = RowLinear(dim, width)
        self.embed_mean = RowLinear(dim, width)
        self.embed_time = TimestepEmbedder(width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.output = RowLinear(width, dim)
        nn.init.zeros_(self.output.weight)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("max_norm", torch.ones(()))
        self.register_load_state_dict_pre_hook(_read_old_names)

    def measure(self, y: Tensor) -> None:
        """Set the buffers from all normalised image embeddings (N, D).

        Raises ValueError if they are all alike, as the prior divides by their standard deviation.
        """
        offset = y - y.mean(dim=0)
        std = offset.square().mean().sqrt()
        if std < torch.finfo(torch.float16).tiny:  # the type of a prior's file
            raise ValueError(f"all {len(y)} embeddings are alike; a prior learns how images differ")
        self.mean.copy_(y.mean(dim=0))
        self.std.copy_(std)
        self.max_norm.copy_(offset.norm(dim=1).mean())

    def forward(self, x: Tensor, time: Tensor, offset: Tensor) -> Tensor:
        """Return the velocity (N, D) of points x (N, D) at times (N,), 0 = noise, 1 = embedding.

        offset: (N, D), mean of the embeddings that fit, less the mean of all.
        """
        return self._velocity(x, self._condition(time, self.embed_mean(offset / self.std)))

    def _condition(self, time: Tensor, mean: Tensor) -> Tensor:
        """Return what the blocks read of times (N,) or (1,) and embedded means (N, W), (N, W)."""
        # Times are stretched to the range of the noise levels that the embedder was made for.
        return F.silu(mean + self.embed_time(1000 * time))

    def _velocity(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.embed_x(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.output(F.silu(x))

    def offset_from_mean(self, y: Tensor, freedom: float) -> Tensor:
        """Make conditions of a denoiser y (N, D) conditions of the prior (N, D).

        They are the parts of y at right angles to the mean of all images, divided by `freedom`:
        the less a condition says, the nearer it lies to the mean. They reach at most as far as an
        image does.
        """
        y, direction = F.normalize(y, dim=1), F.normalize(self.mean, dim=0)
        offset = (y - (y * direction).sum(dim=1, keepdim=True) * direction) / freedom
        return self.within_reach(offset)

    def within_reach(self, offset: Tensor) -> Tensor:
        """Shorten conditions (N, D) that reach farther than an image does."""
        return offset * (self.max_norm / offset.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(
            max=1
        )

    @torch.no_grad()
    def sample(
        self, y: Tensor, noise: Tensor, freedom: float, steps: int = STEPS, candidates: int = 1
    ) -> Tensor:
        """Sample an image embedding of unit length for each condition y (N, D) -> (N, D).

        noise: (N, D) unit normal; an embedding depends on nothing else that is random.
        freedom: above 0; 1 = as open as the condition leaves it, less = more literal.
        candidates: embeddings to sample of each condition; the one of the largest dot product with
            it is returned (unCLIP; Ramesh 2022, section 2.2). Each has the noise of the first, its
            numbers moved along: unit normal too, and next to independent.
        """
        offset, best = self.offset_from_mean(y.float(), freedom), None
        for shift in range(candidates):
            moved = noise.roll(shift * noise.shape[1] // candidates, dims=1)
            x = self.integrate(offset, moved, steps)
            if best is not None:
                is_nearer = ((x - best) * offset).sum(dim=1, keepdim=True) > 0
                x = torch.where(is_nearer, x, best)
            best = x
        assert best is not None
        return best

    def integrate(self, offset: Tensor, noise: Tensor, steps: int = STEPS) -> Tensor:
        """Integrate the flow from noise to embeddings of unit length, (N, D).

        offset: (N, D), conditions of the prior, as `forward` reads them. noise: (N, D) unit normal.
        Where gradients are on, whole batches are multiplied at once, which takes a quarter of the
        time; the rounding of a row then depends on the others (`RowLinear`).
        """
        x = noise.float()
        times = torch.linspace(0, 1, steps + 1, device=x.device)
        mean = self.embed_mean(offset / self.std)
        at = [self._condition(time[None], mean) for time in times]
        for k, (now, then) in enumerate(zip(times[:-1], times[1:], strict=True)):
            slope = self._velocity(x, at[k])
            guess = x + (then - now) * slope
            slope = (slope + self._velocity(guess, at[k + 1])) / 2
            x = x + (then - now) * slope
        return F.normalize(x * self.std + self.mean, dim=1)


def _read_old_names(_: nn.Module, weights: dict[str, Tensor], prefix: str, *__: object) -> None:
    """Rename the buffers of a prior of version 0.2."""
    for old, new in (("scale", "std"), ("reach", "max_norm")):
        if prefix + old in weights:
            weights[prefix + new] = weights.pop(prefix + old)


class _Block(nn.Module):
    """Residual network of one hidden layer that reads the condition; zero at first."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.condition = RowLinear(width, width)
        self.hidden = RowLinear(width, width)
        self.output = RowLinear(width, width)
        nn.init.zeros_(self.output.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map x (N, W), condition (N, W) -> (N, W)."""
        hidden = self.hidden(self.norm(x)) + self.condition(condition)
        return x + self.output(F.silu(hidden))


def posterior_mean(noised: Tensor, sigma: Tensor, bank: Tensor) -> Tensor:
    """Return the mean of the bank's embeddings given noised ones, (N, D).

    An embedding z of unit length that is as probable as all others has, after noise of standard
    deviation sigma, a probability in proportion to exp(noised · z / sigma²).

    noised: (N, D). sigma: (N, 1). bank: (B, D), of unit length.
    """
    weights = (noised @ bank.T / sigma**2).softmax(dim=1)  # (N, B)
    return weights @ bank


def prior_loss(
    prior: EmbeddingPrior,
    y: Tensor,
    bank: Tensor,
    noise_range: tuple[float, float],
    rng: BatchRandom = WHOLE_BATCH,
) -> Tensor:
    """Return the flow-matching loss of embeddings y (N, D) without text -> (N,).

    The condition is the posterior mean of the noised embedding.

    y, bank: (N, D) and (B, D), of unit length. y is added to the bank.
    noise_range: range of the noise's length, uniform in its logarithm. Short noise leaves every
        trait of the image in the condition, long noise leaves none.
    """
    low, high = torch.tensor(noise_range).log()
    position = rng.rand((len(y), 1), y.device)
    sigma = (low + (high - low) * position).exp() / y.shape[1] ** 0.5
    noised = y + sigma * rng.randn(y.shape, y.device)
    offset = posterior_mean(noised, sigma, torch.cat([bank, y])) - prior.mean
    return flow_loss(prior, y, offset, rng)


def flow_loss(
    prior: EmbeddingPrior, y: Tensor, offset: Tensor, rng: BatchRandom = WHOLE_BATCH
) -> Tensor:
    """Return the flow-matching loss of y (N, D) -> (N,) (Lipman 2023, equation 23).

    The path from noise to embedding is straight; its times are logistic-normal (Esser 2024,
    section 3.1).

    y: (N, D), of unit length. offset: (N, D), the condition, as `EmbeddingPrior.forward` reads it.
    """
    target, noise = (y - prior.mean) / prior.std, rng.randn(y.shape, y.device)
    time = rng.randn((len(y),), y.device).sigmoid()
    x = noise.lerp(target, time[:, None])
    return (prior(x, time, offset) - (target - noise)).square().mean(dim=1)
