"""Generate the images that an evaluation measures, batch by batch, so that a kill costs little."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import PartialState

from models.edm import EDMPrecond
from models.samplers import SeededNoise
from utils.base.errors import UserError
from utils.base.processes import is_main_process, main_process_only
from utils.base.progress import progress
from utils.base.read_ahead import read_ahead
from utils.config.parsing import parse_seeds, seeds_from
from utils.config.schema import Config
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.feature_networks import joined
from utils.evaluation.feature_store import FeatureBlocks, Rows, batches_of_process
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

    Raises UserError if that is below two, if `eval.seeds` lists fewer seeds or one of 2^32 or more,
    or if `CaptionVariety` needs more seeds.
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


def generate_seeds(
    denoiser: EDMPrecond,
    config: Config,
    evaluator: Evaluator,
    seeds: Sequence[int],
    caption_ids: torch.Tensor | None = None,
) -> Generated:
    """Generate the images of a batch of seeds, on a CPU in groups of CPU_GROUP.

    A group that does not fit into memory is halved. `caption_ids`: see `generate_from_captions`.
    """
    group = CPU_GROUP if evaluator.device.type == "cpu" else None

    def generate(rows: list[int]) -> Generated:
        noise = SeededNoise([seeds[row] for row in rows], evaluator.device)
        own = None if caption_ids is None else caption_ids[rows]
        return generate_from_captions(denoiser, config, evaluator, noise, own)

    parts: list[Generated] = []
    for rows in in_blocks(len(seeds), group):
        parts += evaluator.in_memory(generate, rows)
    return joined(parts, len(seeds))


def generate_from_captions(
    denoiser: EDMPrecond,
    config: Config,
    evaluator: Evaluator,
    noise: SeededNoise,
    caption_ids: torch.Tensor | None = None,
) -> Generated:
    """Generate one image for each seed of `noise`, from the caption that the seed chooses.

    `caption_ids`: (B, 2) captions to take instead; the seed gives the same image for a caption that
    it would choose itself. For a model of classes, each seed chooses a class, as in MaskDiT's
    code, unless `eval.class_idx` sets one for all.
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


def generates_ahead(device: torch.device) -> bool:
    """Return True if a thread generates the next batch while the features of one are computed.

    On a CPU both would compete for the same cores, and together they take a fifth longer.
    """
    return device.type != "cpu"


def fill_blocks(
    blocks: FeatureBlocks,
    generate: Callable[[list[int]], Generated],
    features: Callable[[list[int], Generated], Rows],
    device: torch.device,
    batch_size: int,
    desc: str,
) -> float:
    """Generate the images that the blocks lack, and store their features.

    All processes call this and divide the work; a call after a kill continues it. A CPU generates
    whole groups of CPU_GROUP.

    Args:
        generate: returns the images at some positions.
        features: returns the rows to store, from positions and images.

    Returns the seconds that earlier calls took. Raises UserError if images are missing at the end.
    """
    missing, before = main_process_only(blocks.check)
    processes = PartialState()
    if device.type == "cpu":
        batch_size = -(-batch_size // CPU_GROUP) * CPU_GROUP
    own = batches_of_process(missing, batch_size, processes.process_index, processes.num_processes)

    def begin(positions: list[int]) -> Generated:
        blocks.begin(len(positions), processes.process_index)
        return generate(positions)

    done = blocks.count - len(missing)
    with progress(desc=desc, total=blocks.count, unit="image", initial=done) as bar:
        last = time.perf_counter()
        batches = read_ahead(begin, own, ahead=1) if generates_ahead(device) else map(begin, own)
        for positions, generated in zip(own, batches, strict=True):
            rows = features(positions, generated)
            now = time.perf_counter()
            blocks.add(positions, rows, (now - last) / processes.num_processes)
            bar.update(len(positions) * processes.num_processes)
            last = now
    processes.wait_for_everyone()
    if is_main_process() and (lost := blocks.check()[0]):
        raise UserError(
            f"{blocks.folder}: {len(lost)} of {blocks.count} images are not there; all nodes "
            "should see this folder, and only one evaluation should write to it at a time"
        )
    return before
