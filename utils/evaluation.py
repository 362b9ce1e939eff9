"""How good a denoiser is: images from test captions, judged in one pass without writing them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object

from models.edm import EDMPrecond
from models.samplers import SeededNoise
from utils.conditions import caption_conditions
from utils.config import Config
from utils.encoders import load_config_autoencoder, load_config_clip
from utils.errors import UserError
from utils.generate import draw_images, latent_shape, parse_seeds, sampler_settings
from utils.latent_lmdb import LMDBReader
from utils.metrics import (
    ClipFeatures,
    FeatureStats,
    check_comparable,
    clip_similarities,
    distance_to,
    load_feature_network,
    load_stats,
)
from utils.results import Record, Results
from utils.tracking import progress


class Judge:
    """What a config's images are judged with: test captions, reference, networks; loaded once."""

    def __init__(self, config: Config, device: torch.device | str = "cpu") -> None:
        """Raises UserError if something is missing or was made with another encoder or network."""
        model = config.model
        has_captions = bool(model.num_classes or model.ext_feature_dim)
        has_captions &= not config.samples_classes
        for key in ("ref_path", "feat_path") if has_captions else ("ref_path",):
            if getattr(config.eval, key) is None:
                raise UserError(f"eval.{key}: required for evaluation, but not set in the config")
        classes, wanted = model.num_classes if config.samples_classes else 0, config.eval.class_idx
        if wanted is not None and wanted >= classes:
            raise UserError(
                f"eval.class_idx: {wanted}, but the model has {classes or 'no'} classes"
            )
        self.device = torch.device(device)
        self.ref_path = config.eval.ref_path
        self.reference = load_stats(self.ref_path)
        self.captions = LMDBReader(config.eval.feat_path) if has_captions else None
        self.clip = load_config_clip(config, device)
        self.network = load_feature_network(config, device, self.clip)
        check_comparable(self.reference, self.network.name, config.data.resolution, self.ref_path)
        if self.captions is not None:
            made_by = self.captions.info.meta.get("encoder", self.clip.identity)
            if made_by != self.clip.identity or self.captions.info.shape != (self.clip.dim,):
                raise UserError(
                    f"{config.eval.feat_path}: embeddings are not from {config.encoders.clip}; "
                    "make them again with python preprocess_scripts/clip_encode_text.py"
                )
        self.autoencoder = load_config_autoencoder(config, device)

    def choose_captions(self, noise: SeededNoise) -> torch.Tensor:
        """Caption embeddings (B, D) as stored: each seed draws an image, then its caption."""
        info = self.captions.info
        images = noise.randint(info.length).cpu().numpy()
        which = noise.randint(info.n_features).cpu().numpy()
        return torch.from_numpy(self.captions.read(images, which))

    def judge(
        self, images: torch.Tensor, captions: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[float]]:
        """(B, H, W, 3) uint8, (B, D) -> features (B, F) on the CPU, and CLIP similarities.

        Without captions there are no similarities.
        """
        batch = images.permute(0, 3, 1, 2)
        if captions is None:
            return self.network(batch).cpu(), []
        embeddings = self.clip.encode_images(batch)
        is_clip = isinstance(self.network, ClipFeatures)  # then run it once for both figures
        features = embeddings if is_clip else self.network(batch).cpu()
        return features, clip_similarities(embeddings, captions).tolist()


def evaluate_checkpoint(
    denoiser: EDMPrecond, config: Config, judge: Judge | None = None, *, amp: str = "no"
) -> dict[str, Any]:
    """Judge `eval.fid_sample_size` images of test captions, drawn as `sampling` says.

    With several processes all of them call this: each draws its share, and all get the result.
    `judge`: what to judge with, where it is loaded already. `amp`: see utils.generate.draw_images.

    Returns `frechet_distance` (to `eval.ref_path`, in features of `network`), `clip_score` (mean
    cosine x 100 of an image's embedding and its caption's; None without captions), `n` images, and
    `seconds`.
    """
    started = time.perf_counter()
    processes = PartialState()
    judge = judge or Judge(config, next(denoiser.parameters()).device)
    if judge.captions is not None and denoiser.model.cond_width != judge.clip.dim:
        raise UserError(
            f"the model takes conditions of {denoiser.model.cond_width} numbers, but "
            f"{config.eval.feat_path} holds embeddings of {judge.clip.dim}"
        )
    seeds = seeds_to_judge(config)
    count = len(seeds)
    seeds = seeds[processes.process_index :: processes.num_processes]
    stats, similarities = FeatureStats(), []
    with progress(desc="evaluate", total=count, unit="images") as bar:
        for start in range(0, len(seeds), config.eval.batchsize):
            noise = SeededNoise(seeds[start : start + config.eval.batchsize], judge.device)
            features, scores = judge.judge(*draw_from_captions(denoiser, config, judge, noise, amp))
            stats.update(features)
            similarities += scores
            bar.update(len(features) * processes.num_processes)

    gathered = gather_object([(stats, similarities)])
    stats = FeatureStats()
    for part, _ in gathered:
        stats.merge(part)
    scores = [score for _, part in gathered for score in part]
    return {
        "frechet_distance": distance_to(judge.reference, stats, judge.ref_path),
        "clip_score": float(np.mean(scores)) if scores else None,
        "n": stats.n,
        "network": judge.network.name,
        "seconds": round(time.perf_counter() - started, 2),
    }


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


def draw_from_captions(
    denoiser: EDMPrecond, config: Config, judge: Judge, noise: SeededNoise, amp: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images (B, H, W, 3) uint8 of the captions that the seeds choose, and their embeddings.

    Without captions each seed chooses a class, if the model has such (as published), unless
    `eval.class_idx` is the class of all.
    """
    latents = noise.randn(latent_shape(denoiser))
    captions = conds = None
    if judge.captions is not None:
        captions = judge.choose_captions(noise)
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
        amp=amp,
    )
    return images, captions


def evaluate_into(
    results: Results,
    checkpoint: Path,
    denoiser: EDMPrecond,
    config: Config,
    judge: Judge,
    *,
    step: int | None = None,
    amp: str = "no",
) -> Record:
    """evaluate_checkpoint for the denoiser that `checkpoint` holds, and record it.

    `step` of its training; None = the checkpoint is called <step>.pt.

    Called by all processes. What `results` holds already for this file and these settings is
    returned as it is.
    """
    what = {
        "step": int(checkpoint.stem) if step is None else step,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": file_hash(checkpoint),
        **evaluation_settings(config, judge, amp),
    }
    if known := results.find(what):
        return known
    record = {**what, **evaluate_checkpoint(denoiser, config, judge, amp=amp)}
    if PartialState().is_main_process:
        results.add(record)
    return record


def evaluation_settings(config: Config, judge: Judge, amp: str) -> dict[str, Any]:
    """All that figures depend on besides the weights, as plain values."""
    sampling = config.sampling
    captions = "none"
    if judge.captions is not None:
        captions = judge.captions.info.meta.get("captions_hash", str(config.eval.feat_path))
    return {
        "cfg_scale": sampling.cfg_scale,
        "num_steps": sampling.num_steps,
        "solver": sampling.solver,
        **sampling.model_dump(mode="json", exclude_defaults=True),
        **config.eval.model_dump(include={"seeds", "class_idx"}, exclude_none=True),
        "n": config.eval.fid_sample_size,
        "network": judge.network.name,
        "reference": judge.reference.source or str(judge.ref_path),
        "captions": captions,
        "norm_feature": config.data.norm_feature,
        **config.encoders.model_dump(mode="json", include={"image_mean"}, exclude_none=True),
        "clip": judge.clip.identity,
        "vae": judge.autoencoder.identity,
        "amp": amp,
    }


def file_hash(path: Path) -> str:
    """SHA-256 of a file, its first 16 digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
