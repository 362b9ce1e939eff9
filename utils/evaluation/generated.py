"""Draw the images that an evaluation judges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from models.edm import EDMPrecond
from models.samplers import SeededNoise
from utils.base.errors import UserError
from utils.config.parsing import parse_seeds, seeds_from
from utils.config.schema import Config
from utils.evaluation.evaluator import Evaluator
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import in_blocks, latent_shape, sample_images

# A CPU rounds matrix products of another size differently, so that some pixels change by one.
# Groups of a fixed size make images independent of the batch size, and cost a CPU no time.
CPU_GROUP = 8


class Generated(NamedTuple):
    """Generated images and their conditions; a condition is None if the model does not use it."""

    images: torch.Tensor  # (B, H, W, 3) uint8
    captions: torch.Tensor | None  # (B, D) embeddings as stored
    caption_ids: torch.Tensor | None  # (B, 2) index of the test image, and of its caption
    classes: torch.Tensor | None  # (B,) int64


def seeds_to_evaluate(config: Config) -> Sequence[int]:
    """Return the seeds of `eval.fid_sample_size` images.

    Raises UserError if that is below two, `eval.seeds` lists fewer seeds, or `CaptionVariety` asks
    for more of them, or a seed is not below 2^32.
    """
    first, count = config.sampling.seed, config.eval.fid_sample_size
    if count < 2:
        raise UserError(f"eval.fid_sample_size: {count} is too few, statistics need two images")
    for key in ("variety_captions", "variety_seeds") if config.eval.variety_captions else ():
        if (wanted := getattr(config.eval, key)) > count:
            raise UserError(f"eval.{key}: {wanted} is more than eval.fid_sample_size={count}")
    if config.eval.seeds is None:
        return seeds_from(first, count)
    seeds = parse_seeds(config.eval.seeds)
    if len(seeds) < count:
        raise UserError(
            f"eval.fid_sample_size: {count} images are asked for, but eval.seeds lists {len(seeds)}"
        )
    return seeds[:count]


def generates_ahead(device: torch.device) -> bool:
    """Return True if a thread draws the next batch while the last one is judged and saved.

    On a CPU both would compete for the same cores, and together they take a fifth longer.
    """
    return device.type != "cpu"


def generate_seeds(
    denoiser: EDMPrecond,
    config: Config,
    evaluator: Evaluator,
    seeds: Sequence[int],
    caption_ids: torch.Tensor | None = None,
) -> Generated:
    """Draw the images of a batch of seeds, on a CPU in groups of CPU_GROUP.

    A group that does not fit into memory is halved. `caption_ids`: see `generate_from_captions`.
    """
    group = CPU_GROUP if evaluator.device.type == "cpu" else None

    def draw(part: list[int]) -> Generated:
        noise = SeededNoise([seeds[row] for row in part], evaluator.device)
        own = None if caption_ids is None else caption_ids[part]
        return generate_from_captions(denoiser, config, evaluator, noise, own)

    parts: list[Generated] = []
    for rows in in_blocks(len(seeds), group):
        parts += evaluator.in_memory(draw, rows)
    return _joined(parts, len(seeds))


def _joined(parts: Sequence[Generated], count: int) -> Generated:
    """Return the first `count` images of all parts as one batch."""

    def join(values: Iterable[torch.Tensor | None]) -> torch.Tensor | None:
        tensors = [value for value in values if value is not None]
        return torch.cat(tensors)[:count] if tensors else None

    return Generated(
        images=torch.cat([part.images for part in parts])[:count],
        captions=join(part.captions for part in parts),
        caption_ids=join(part.caption_ids for part in parts),
        classes=join(part.classes for part in parts),
    )


def generate_from_captions(
    denoiser: EDMPrecond,
    config: Config,
    evaluator: Evaluator,
    noise: SeededNoise,
    caption_ids: torch.Tensor | None = None,
) -> Generated:
    """Draw one image for each seed, from the caption that the seed chooses.

    chosen: (B, 2) index of the test image and of its caption, to draw instead. An image is the same
    if the seed had chosen this caption.

    A model of classes has no captions: each seed chooses a class, as in MaskDiT's code, unless
    `eval.class_idx` sets one class for all seeds.
    """
    latents = noise.randn(latent_shape(denoiser))
    captions = conds = classes = None
    if evaluator.captions is not None:
        of_seeds = evaluator.choose_captions(noise)
        caption_ids = of_seeds if caption_ids is None else caption_ids
        captions = torch.from_numpy(evaluator.captions.read(*caption_ids.T.numpy()))
        conds = caption_conditions(captions, config)
    elif config.model.num_classes:
        classes = noise.randint(config.model.num_classes)
        if config.eval.class_idx is not None:
            classes = torch.full_like(classes, config.eval.class_idx)
        conds = F.one_hot(classes, config.model.num_classes).float()
    images = sample_images(
        denoiser,
        evaluator.autoencoder,
        noise,
        latents,
        None if conds is None else conds.to(evaluator.device),
        config.sampling,
        evaluator.prior,
    )
    return Generated(images, captions, caption_ids, classes)


def captions_of_seeds(
    denoiser: EDMPrecond, evaluator: Evaluator, seeds: Sequence[int]
) -> torch.Tensor:
    """Return the captions that seeds choose, (B, 2): index of a test image, and of its caption."""
    noise = SeededNoise(seeds)
    noise.randn(latent_shape(denoiser))  # the seed draws the latent first
    return evaluator.choose_captions(noise)
