"""Evaluation of checkpoints: generate images of test captions, compute metrics, record them."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from models.edm import EDMPrecond
from utils.base.errors import UserError
from utils.base.locks import FolderLock
from utils.base.processes import is_main_process, main_process_only
from utils.config.schema import Config
from utils.data.lmdb_reader import LMDBReader
from utils.evaluation.caption_variety import CaptionVariety
from utils.evaluation.evaluator import Evaluator
from utils.evaluation.feature_store import FeatureBlocks, Rows
from utils.evaluation.generated import Generated, fill_blocks, generate_seeds, seeds_to_evaluate
from utils.evaluation.kept_images import KeptImages
from utils.evaluation.references import Reference
from utils.evaluation.results import CONTENT, Record, Results, setting_names
from utils.pretrained.priors import with_proposed_freedom
from utils.sampling.generate import sampler_settings

PAIRS = 8  # images that are kept with their nearest training images


def evaluate_checkpoint(
    denoiser: EDMPrecond,
    config: Config,
    evaluator: Evaluator,
    partial: Path,
    *,
    kept: KeptImages | None = None,
) -> dict[str, Any]:
    """Evaluate `eval.fid_sample_size` images of test captions, sampled as `sampling` says.

    All processes call this, divide the work, and get the result.

    Args:
        partial: folder for finished batches. After a kill the next call goes on from there, with
            any number of processes; the metrics do not change.
        kept: writes images that stay.

    Returns:
        The metrics of `ImageSet`; those of `CopyCheck` where training and held-out images are
        there; those of `CaptionVariety` if `eval.variety_captions` asks for them; `images_drawn`
        (images generated, more than `n` only after a kill), and `seconds`.
    """
    started = time.perf_counter()
    if evaluator.captions is not None and denoiser.model.cond_width != evaluator.clip.dim:
        raise UserError(
            f"the model takes conditions of {denoiser.model.cond_width} numbers, but "
            f"{config.eval.feat_path} holds embeddings of {evaluator.clip.dim}"
        )
    seeds, size = seeds_to_evaluate(config), config.eval.batchsize
    blocks = FeatureBlocks(partial, len(seeds))

    def generate(positions: list[int]) -> Generated:
        return generate_seeds(denoiser, config, evaluator, [seeds[p] for p in positions])

    def features(positions: list[int], generated: Generated) -> Rows:
        rows = evaluator.features(generated.images, generated.captions)
        rows |= evaluator.copies.rows(generated.images, positions, rows.get("pairs"))
        if kept is not None:
            rows |= kept.save(positions, [seeds[p] for p in positions], generated)
        return rows

    before = fill_blocks(blocks, generate, features, evaluator.device, size, "evaluate")
    variety = None
    if config.eval.variety_captions:
        variety = CaptionVariety(denoiser, config, evaluator, partial, kept)
        before += variety.generate()

    def finish() -> dict[str, Any]:
        metrics = evaluator.metrics(blocks) | evaluator.copies.metrics(blocks)
        if variety is not None:
            metrics |= variety.metrics()
        if kept is not None:
            kept.finish(blocks)
            if pairs := evaluator.copies.nearest_pairs(PAIRS):
                of_pairs = [seeds[pair.position] for pair in pairs]
                kept.save_pairs(
                    pairs, generate_seeds(denoiser, config, evaluator, of_pairs), of_pairs
                )
        seconds = round(before + time.perf_counter() - started, 2)
        return {**metrics, "images_drawn": blocks.images_generated, "seconds": seconds}

    return main_process_only(finish)


def configs_to_evaluate(config: Config) -> dict[str, Config]:
    """Return name -> config of each combination of guidance scale, steps and solver.

    The choices are the lists of the `eval` section; an empty list stands for the key of `sampling`.
    Raises UserError if a sampler does not exist, or if `sampling.freedom` is auto and the prior
    proposes none.
    """
    config = with_proposed_freedom(config)
    sampling, lists = config.sampling, config.eval
    combined = [
        {"solver": solver, "num_steps": num_steps, "cfg_scale": cfg_scale}
        for solver in dict.fromkeys(lists.solvers or [sampling.solver])
        for num_steps in dict.fromkeys(lists.num_steps or [sampling.num_steps])
        for cfg_scale in dict.fromkeys(lists.cfg_scales or [sampling.cfg_scale])
    ]
    configs = [
        config.model_copy(update={"sampling": sampling.model_copy(update=one)}) for one in combined
    ]
    for one in configs:
        sampler_settings(one.sampling, config.distill.sigmas)  # raises now rather than after hours
    return dict(zip(setting_names(combined), configs, strict=True))


class Evaluation:
    """Evaluation of one checkpoint file with one sampler setting, and its record in `results`.

    All processes make it and call its methods. Looking for the record needs no network.
    """

    def __init__(
        self,
        results: Results,
        checkpoint: Path,
        config: Config,
        evaluator: Evaluator,
        step: int,
    ) -> None:
        """`step`: of the training that wrote the checkpoint."""
        self.results, self.config, self.evaluator = results, config, evaluator
        self.settings: Record = {
            "step": step,
            "checkpoint": checkpoint.name,
            "checkpoint_sha256": main_process_only(lambda: file_hash(checkpoint)),
            **evaluation_settings(config, evaluator),
        }
        self.name = folder_name(self.settings)
        self.partial = results.folder / "partial" / self.name
        self.kept = KeptImages(results.folder / "images" / self.name, config, evaluator.captions)

    def recorded(self) -> Record | None:
        """Return the record of this file and these settings; None if there is none.

        It does not count if images are to be kept (`eval.save_images`) and one is missing.
        """
        seeds = seeds_to_evaluate(self.config)

        def find() -> Record | None:
            record = self.results.find(self.settings) if self.kept.are_there(seeds) else None
            if record is not None:  # a kill may have come between the record and the end of `run`
                shutil.rmtree(self.partial, ignore_errors=True)
            return record

        return main_process_only(find)

    def run(self, denoiser: EDMPrecond) -> Record:
        """Evaluate the denoiser that the checkpoint holds, record the metrics, return the record.

        Raises UserError if another evaluation writes to the folder, or the disk is full.
        """
        with disk_errors(self.results.folder), ExitStack() as stack:
            self.partial.mkdir(parents=True, exist_ok=True)
            if is_main_process():
                stack.enter_context(FolderLock(self.partial, "evaluation"))
            metrics = evaluate_checkpoint(
                denoiser, self.config, self.evaluator, self.partial, kept=self.kept
            )
            images, config = f"images/{self.name}", self.config.to_dict()
            record = {**self.settings, **metrics, "images": images, "config": config}
            if is_main_process():
                self.results.add(record)
                shutil.rmtree(self.partial)
        return record


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise a UserError of one line for the error of a full or read-only disk."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise UserError(
            f"{folder}: cannot be written ({fault.strerror}); make room or set its rights, and "
            "start again: it goes on from there"
        ) from fault


def folder_name(settings: Record) -> str:
    """Return a readable folder name of an evaluation, with a hash of all its settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    scale = "none" if settings["cfg_scale"] is None else f"{settings['cfg_scale']:g}"
    sampler = f"{settings['num_steps']}{settings['solver']}"
    return f"{settings['step']:07d}-cfg{scale}-{sampler}-{digest}"


def evaluation_settings(config: Config, evaluator: Evaluator) -> dict[str, Any]:
    """Return all settings that change the metrics, besides the weights, as plain values."""
    sampling, reference = config.sampling, evaluator.reference
    captions = "none"
    if evaluator.captions is not None:
        meta, path = evaluator.captions.info.meta, str(config.eval.feat_path)
        captions = meta.get("content_hash", meta.get("captions_hash", path))
    optional: dict[str, Any] = {}  # a setting that is off has no entry, as in older records
    if config.eval.variety_captions:
        optional |= config.eval.model_dump(include={"variety_captions", "variety_seeds"})
    if reference.features is not None:
        optional["reference_features"] = len(reference.features)
    if others := evaluator.references[1:]:
        optional["more_references"] = [f"{r.network} {r.identity}" for r in others]
    return {
        "cfg_scale": sampling.cfg_scale,
        "num_steps": sampling.num_steps,
        "solver": sampling.solver,
        **sampling.model_dump(
            mode="json", exclude_defaults=True, exclude={"preset", "compile", "preview"}
        ),
        **config.eval.model_dump(include={"seeds", "class_idx"}, exclude_none=True),
        "n": config.eval.fid_sample_size,
        "network": evaluator.network.name,
        "reference": reference.identity,
        **optional,
        "captions": captions,
        "norm_feature": config.data.norm_feature,
        **config.encoders.model_dump(
            mode="json", include={"image_mean", "prior"}, exclude_none=True
        ),
        **content_settings(config, evaluator.captions, evaluator.references),
        "clip": evaluator.clip.identity,
        "vae": evaluator.autoencoder.identity,
        "amp": sampling.amp,
    }


def content_settings(
    config: Config, captions: LMDBReader | None = None, references: Sequence[Reference] = ()
) -> dict[str, str]:
    """Return hashes of the files that change the metrics and are known by their places alone.

    Records that were made before these entries count for any content.
    """
    encoders = config.encoders
    files = {key: getattr(encoders, key) for key in ("image_mean", "latent_statistics")}
    if config.sampling.freedom:
        files["prior"] = encoders.prior
    for i, reference in enumerate(references):
        if reference.content is None and reference.source is None:
            files[f"reference{i or ''}"] = reference.path
    if captions is not None and not {"content_hash", "captions_hash"} & captions.info.meta.keys():
        files["captions"] = captions.folder / "data.mdb"
    return {
        f"{key}{CONTENT}": file_hash(path)
        for key, path in files.items()
        if path is not None and path.is_file()
    }


def reference_settings(evaluator: Evaluator) -> dict[str, Any]:
    """Return settings of the references that change the metrics, if there are any.

    These are the number of features in the first reference, and the references of other networks.
    """
    settings: dict[str, Any] = {}
    if evaluator.reference.features is not None:
        settings["reference_features"] = len(evaluator.reference.features)
    if others := evaluator.references[1:]:
        settings["more_references"] = [f"{r.network} {r.identity}" for r in others]
    return settings


def file_hash(path: Path) -> str:
    """Return the first 16 digits of a file's SHA-256; read it again only if the file changes."""
    state = path.stat()
    return _file_hash(path, state.st_size, state.st_mtime_ns)


@cache
def _file_hash(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
