"""Report of a prior: how near its samples are to held-out images, and which freedom it proposes.

Two kinds of conditions are sampled at each freedom. *Means of images* need no text: a held-out
embedding is noised, and the mean of the training embeddings given the noised one is the condition,
as in the training. They say how well the prior has learned. *Sentences* say how far `freedom` may
go: a sample keeps its sentence if it is nearer to it than to all others. Means of images and texts
lie at different distances from the mean of all images, so that sentences alone can propose one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.batch_random import BatchRandom
from models.embedding_prior import EmbeddingPrior, posterior_mean
from utils.base.text import aligned
from utils.evaluation.frechet import frechet_distance
from utils.evaluation.metrics import manifold_metrics, spread

FREEDOMS = tuple(round(0.1 * tenths, 1) for tenths in range(4, 17))
KEPT_LOSS = 0.02  # of samples that keep their sentence, which the proposed freedom may cost
HELD_OUT, BANK = 256, 2048  # embeddings that the report reads of either kind
SAMPLES, SEEDS = 512, 32  # of all sentences at a freedom; of one sentence, at most
FIT = 16  # training images nearest to a sentence, whose spread is that of images that fit
COLLAPSED = 0.05  # variety below which the seeds of a sentence show one image
FAR = 3.0  # times the distance of real embeddings, from which a prior counts as weak


def evaluate_prior(
    prior: EmbeddingPrior,
    train: Tensor,
    held_out: Tensor | None,
    noise_range: tuple[float, float],
    texts: Tensor | None = None,
    conditions: Tensor | None = None,
) -> dict[str, Any]:
    """Evaluate a prior by embeddings of unit length; equal inputs give equal figures.

    Args:
        prior: in eval mode, without gradients, on the CPU.
        train: (N, D), image embeddings that it was trained on.
        held_out: (M, D), image embeddings that it was not trained on; None = half of `train`.
        noise_range: of its training, see `prior_loss`.
        texts: (T, D), embeddings of different sentences; None = there are none.
        conditions: (T, D), the conditions of the denoiser that these sentences give.

    Returns:
        freedom: the proposed one; None without texts.
        real: `frechet`, `coverage` and `recall` of as many training embeddings; `agreement`, the
            mean cosine of held-out embeddings with the conditions that are made of them.
        rows: for each freedom `freedom`, `frechet`, `coverage`, `recall`, `agreement` of samples
            given means of images. With texts also `kept`, the fraction of samples that are nearer
            to their own sentence than to all others; `follows`, the mean cosine of a sample with
            its sentence, both less the mean of all images; and `variety`, the spread over the seeds
            of a sentence, relative to that of the FIT training images nearest to it.
        held_out, images, texts: how many of each were read.
    """
    generator = torch.Generator().manual_seed(0)
    train = train[torch.randperm(len(train), generator=generator)]
    if held_out is None:
        held_out, train = train.tensor_split([len(train) // 2])
    held_out = held_out[torch.randperm(len(held_out), generator=generator)[:HELD_OUT]]
    bank, count = train[:BANK], len(held_out)
    offset = _means_of_images(prior, held_out, bank, noise_range, generator)
    noise = torch.randn(held_out.shape, generator=generator)
    rows = []
    for freedom in FREEDOMS:
        sampled = prior.integrate(prior.within_reach(offset / freedom), noise)
        agreement = _agreement(sampled - prior.mean, offset)
        rows.append({"freedom": freedom, **_closeness(sampled, held_out), "agreement": agreement})
    if texts is not None and conditions is not None:
        for row, more in zip(
            rows, _of_sentences(prior, train, texts, conditions, generator), strict=True
        ):
            row.update(more)
    return {
        "freedom": None if texts is None else proposed_freedom(rows),
        "real": {
            **_closeness(train[:count], held_out),
            "agreement": _agreement(held_out - prior.mean, offset),
        },
        "rows": rows,
        "held_out": count,
        "images": len(train),
        "texts": 0 if texts is None else len(texts),
    }


def proposed_freedom(rows: Sequence[dict[str, float]]) -> float:
    """Return the largest freedom at which KEPT_LOSS fewer samples keep their sentence, at most.

    They are compared with those of the first row, the most literal one.
    """
    least = rows[0]["kept"] - KEPT_LOSS
    return max(row["freedom"] for row in rows if row["kept"] >= least)


def verdict(report: dict[str, Any]) -> str:
    """Return a sentence that says how good a prior is."""
    rows = report["rows"]
    at = min(rows, key=lambda row: abs(row["freedom"] - (report["freedom"] or 1)))
    natural = min(rows, key=lambda row: abs(row["freedom"] - 1))
    ratio = natural["frechet"] / max(report["real"]["frechet"], 1e-12)
    if max(row.get("variety", 1.0) for row in rows) < COLLAPSED or natural["coverage"] < 0.05:
        return "collapsed: all seeds give nearly one embedding; train it longer or on more images"
    far = f"its samples lie {ratio:.1f} times as far from held-out images as real ones do"
    if "kept" in at and max(row["kept"] for row in rows) < 0.5:
        return f"deaf: it, or this CLIP, does not tell these sentences apart; {far}"
    return f"weak: {far}; train it longer (prior.max_num_steps)" if ratio > FAR else f"good: {far}"


def report_table(report: dict[str, Any]) -> str:
    """Return the figures as lines of text, one for each freedom, and one of real embeddings."""
    columns = {
        "frechet": ("distance", "{:.3f}"),
        "coverage": ("coverage", "{:.2f}"),
        "recall": ("recall", "{:.2f}"),
        "agreement": ("agreement", "{:.2f}"),
        "kept": ("sentence kept", "{:.1%}"),
        "follows": ("follows it", "{:.2f}"),
        "variety": ("variety", "{:.2f}"),
    }
    shown = [key for key in columns if key in report["rows"][0]]

    def cells(label: str, row: dict[str, float]) -> tuple[str, ...]:
        return label, *(columns[key][1].format(row[key]) if key in row else "–" for key in shown)

    lines = [cells(f"{row['freedom']:g}", row) for row in report["rows"]]
    header = ("freedom", *(columns[key][0] for key in shown))
    return aligned([header, *lines, cells("real images", report["real"])], left=1)


def _means_of_images(
    prior: EmbeddingPrior,
    y: Tensor,
    bank: Tensor,
    noise_range: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Return the conditions of the training for images (N, D) that are not in the bank: (N, D)."""
    low, high = torch.tensor(noise_range).log()
    rng = BatchRandom(generator)
    sigma = (low + (high - low) * rng.rand((len(y), 1), y.device)).exp() / y.shape[1] ** 0.5
    noised = y + sigma * rng.randn(y.shape, y.device)
    return posterior_mean(noised, sigma, bank) - prior.mean


def _closeness(sampled: Tensor, held_out: Tensor) -> dict[str, float]:
    """Return Fréchet distance, coverage and recall of embeddings (N, D) beside others (M, D)."""
    x, y = sampled.double(), held_out.double()
    sides = [(part.mean(dim=0).numpy(), part.T.cov().numpy()) for part in (x, y)]
    manifold = manifold_metrics(x, y)
    return {
        "frechet": frechet_distance(*sides[0], *sides[1]),
        "coverage": manifold["coverage"],
        "recall": manifold["recall"],
    }


def _agreement(offset: Tensor, condition: Tensor) -> float:
    """Return the mean cosine of rows (N, D) and (N, D)."""
    return float(torch.cosine_similarity(offset, condition, dim=1).mean())


def _of_sentences(
    prior: EmbeddingPrior,
    train: Tensor,
    texts: Tensor,
    conditions: Tensor,
    generator: torch.Generator,
) -> list[dict[str, float]]:
    """Return `kept`, `follows` and `variety` of each freedom; see `evaluate_prior`."""
    count = len(texts)
    seeds = max(2, min(SEEDS, SAMPLES // count))
    own = torch.arange(count).repeat_interleave(seeds)
    noise = torch.randn(len(own), texts.shape[1], generator=generator)
    direction = prior.offset_from_mean(conditions, 1.0)
    nearest = (train @ direction.T).topk(min(FIT, len(train)), dim=0).indices.T  # (T, FIT)
    fitting = spread(train[nearest])
    rows = []
    for freedom in FREEDOMS:
        offset = prior.offset_from_mean(conditions[own], freedom)
        sampled = prior.integrate(offset, noise)
        likeness = sampled @ texts.T
        mine = likeness.gather(1, own[:, None])
        rows.append(
            {
                "kept": float((likeness <= mine).all(dim=1).double().mean()),
                "follows": _agreement(sampled - prior.mean, direction[own]),
                "variety": spread(sampled.unflatten(0, (count, seeds))) / max(fitting, 1e-12),
            }
        )
    return rows
