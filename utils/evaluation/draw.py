"""Draw the images that an evaluation judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from models.edm import EDMPrecond
from models.samplers import SeededNoise
from utils.base.errors import UserError
from utils.config.parsing import parse_seeds
from utils.config.schema import Config
from utils.evaluation.judge import Judge
from utils.sampling.conditions import caption_conditions
from utils.sampling.generate import draw_images, latent_shape, sampler_settings

# A CPU rounds matrix products differently if they are of another size, which moves a pixel here
# and there by one. Drawn in groups of one size, images are the same for every batch size, and on a
# CPU that costs no time.
CPU_GROUP = 8


class Drawn(NamedTuple):
    """A batch of images and what they were drawn of; None where the model takes no such."""

    images: torch.Tensor  # (B, H, W, 3) uint8
    captions: torch.Tensor | None  # (B, D) embeddings as stored
    chosen: torch.Tensor | None  # (B, 2) test image and number of its caption
    classes: torch.Tensor | None  # (B,)


def seeds_to_judge(config: Config) -> Sequence[int]:
    """The seeds of `eval.fid_sample_size` images; raises UserError if there are not as many."""
    first, count = config.sampling.seed, config.eval.fid_sample_size
    if count < 2:
        raise UserError(f"eval.fid_sample_size: {count} is too few, statistics need two images")
    if config.eval.seeds is None:
        return range(first, first + count)
    seeds = parse_seeds(config.eval.seeds)
    if len(seeds) < count:
        raise UserError(
            f"eval.fid_sample_size: {count} images are asked for, but eval.seeds lists {len(seeds)}"
        )
    return seeds[:count]


def draws_ahead(device: torch.device) -> bool:
    """Whether a thread draws the next batch while one is judged and saved.

    On a CPU both would want the same cores, and the whole takes a fifth longer.
    """
    return device.type != "cpu"


def draw_seeds(denoiser: EDMPrecond, config: Config, judge: Judge, seeds: Sequence[int]) -> Drawn:
    """The images of a batch of seeds; see CPU_GROUP.

    What does not fit into memory is drawn in halves.
    """
    group = CPU_GROUP if judge.device.type == "cpu" else len(seeds)
    padded = [*seeds, *[seeds[-1]] * (-len(seeds) % group)]

    def draw(first: int, stop: int) -> Drawn:
        noise = SeededNoise(padded[first:stop], judge.device)
        return draw_from_captions(denoiser, config, judge, noise)

    parts = []
    for start in range(0, len(padded), group):
        parts += judge.in_memory(lambda a, b, at=start: draw(at + a, at + b), group)

    def join(values: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        return None if values[0] is None else torch.cat(values)[: len(seeds)]

    return Drawn(*map(join, zip(*parts, strict=True)))


def draw_from_captions(
    denoiser: EDMPrecond, config: Config, judge: Judge, noise: SeededNoise
) -> Drawn:
    """Images of the captions that the seeds choose, one for each seed.

    Without captions each seed chooses a class, if the model has such (as published), unless
    `eval.class_idx` is the class of all.
    """
    latents = noise.randn(latent_shape(denoiser))
    captions = conds = chosen = classes = None
    if judge.captions is not None:
        chosen = judge.choose_captions(noise)
        captions = torch.from_numpy(judge.captions.read(*chosen.T.numpy()))
        conds = caption_conditions(captions, config)
    elif config.model.num_classes:
        classes = noise.randint(config.model.num_classes)
        if config.eval.class_idx is not None:
            classes = torch.full_like(classes, config.eval.class_idx)
        conds = F.one_hot(classes, config.model.num_classes).float()
    images = draw_images(
        denoiser,
        judge.autoencoder,
        noise,
        latents,
        None if conds is None else conds.to(judge.device),
        sampler_settings(config.sampling),
        cfg_scale=config.sampling.cfg_scale,
        interval=config.sampling.guidance_interval,
        amp=config.sampling.amp,
    )
    return Drawn(images, captions, chosen, classes)
